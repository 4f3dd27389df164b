"""`bayesrule dashboard`: what it refuses, and that it serves and ends quietly."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from bayesrule.cli.main import main


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESRULE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def test_a_busy_port_is_said_in_a_sentence(runs, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["dashboard", "--runs", str(runs), "--port", str(port)]) == 1
    message = capsys.readouterr().err
    assert f"port {port} is in use" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "words", [["--runs", "/nowhere"], ["--results", "/nowhere"], ["--port", "70000"]]
)
def test_wrong_options_are_refused(words, capsys):
    assert main(["dashboard", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_it_serves_this_machine_and_ends_quietly(runs):
    words = [
        sys.executable,
        "-m",
        "bayesrule.cli.main",
        "dashboard",
        "--port",
        "0",
        "--runs",
        str(runs),
    ]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        assert (
            b"There are no runs in" in urllib.request.urlopen(address + "runs", timeout=30).read()
        )
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors
