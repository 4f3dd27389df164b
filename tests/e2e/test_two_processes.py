"""`trainer=ddp_cpu`: a run in two processes ends, repeats and resumes as a run in one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayesrule.cli.main import main

RUN = (
    "train",
    "trainer=ddp_cpu",
    "posterior=ivon",
    "data.label_noise=0.2",
    "model.dropout=0.1",
    "trainer.epochs=8",
    "trainer.eval_every=4",
    "trainer.log_every=7",
    "metrics.mc_samples=4",
    "metrics.ece_null_draws=0",
)
OFTEN = "trainer.checkpoint_seconds=0.05"  # not part of the run's identity


def processes_of(folder):
    """Return the processes whose command line names the run's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended meanwhile
            continue
        if os.fsencode(folder) in words and state != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc to see the processes")
def test_killed_and_resumed_ends_as_an_uninterrupted_run(cli, other_cli):
    whole = other_cli(*RUN)
    assert whole.returncode == 0, whole.stderr
    expected = other_cli.outcome()
    status, metrics, history, _ = expected
    assert status == "done"
    assert metrics["test/acc@mean"] > 0.5
    steps = [json.loads(line)["step"] for line in history.splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 8 * 16  # one writer: no row twice

    killed = cli.stop_after_checkpoints(3, signal.SIGKILL, *RUN, OFTEN)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while (left := processes_of(cli.folder())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, "ranks outlive their parent, and the lock on the run is free"
    assert not (cli.folder() / "outcome.json").exists(), "ranks worked on without their parent"
    assert cli.checkpoints()

    resumed = cli(*RUN)
    assert resumed.returncode == 0, resumed.stderr
    assert cli.outcome() == expected


def test_several_nodes_need_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path))
    assert main([*RUN, "trainer.nodes=2", "trainer.batch_size=40"]) == 2
    assert "torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rank_that_diverges_ends_all_and_gives_the_reason(cli):
    failed = cli(*RUN, "posterior.lr=1e30", "posterior.weight_decay=0.1")
    assert failed.returncode == 1
    assert "training diverged" in failed.stderr
    (record,) = [json.loads(p.read_text()) for p in cli.runs.glob("*/record.json")]
    assert record["status"] == "failed"


def _torchrun(cli, *words, nodes=1, per_node=2, port=0):
    """Start torchrun, once per node, on the same command line."""
    meeting = ("--standalone",)
    if nodes > 1:
        meeting = ("--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", "1",
                   "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1")  # fmt: skip
    command = [
        *(sys.executable, "-m", "torch.distributed.run", *meeting),
        *("--nproc-per-node", str(per_node), "-m", "bayesrule.cli.main", *words),
    ]
    started = [
        subprocess.Popen(
            command, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(nodes)
    ]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * nodes, told
    return told


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    "strategy", ["ddp", pytest.param("statistics_ddp", marks=pytest.mark.slow)]
)
def test_two_nodes_under_torchrun_learn_what_two_processes_of_one_do(
    cli, other_cli, strategy, monkeypatch
):
    words = (*RUN, f"trainer.strategy={strategy}", "trainer.epochs=2", "trainer.eval_every=1")
    monkeypatch.setenv("BAYESRULE_RUNS", str(other_cli.runs))
    assert main(list(words)) == 0  # starts two processes itself
    told = _torchrun(cli, *words, "trainer.devices=1", "trainer.nodes=2",
                     nodes=2, per_node=1, port=_free_port())  # fmt: skip
    assert sum("test/nll" in out for out, _ in told) == 1  # one of all processes reports
    assert cli.outcome() == other_cli.outcome()


@pytest.mark.slow
def test_one_torchrun_is_the_same_run(cli, other_cli):
    assert other_cli(*RUN, "trainer.epochs=2").returncode == 0
    _torchrun(cli, *RUN, "trainer.epochs=2")
    assert cli.folder().name == other_cli.folder().name
    assert cli.outcome() == other_cli.outcome()
