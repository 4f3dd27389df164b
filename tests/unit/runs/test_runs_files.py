import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayesrule.errors import BayesruleError, ConfigError, CorruptFile
from bayesrule.runs import files
from bayesrule.runs.files import (
    JsonlWriter,
    atomic_writer,
    read_json,
    read_jsonl,
    remove_leftovers,
    set_aside,
    sha256_file,
    truncate_to,
    write_atomic,
    write_json,
)


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "deep" / "x.bin"
    write_atomic(target, b"one")
    write_atomic(target, "zw\u00f6lf")
    assert target.read_text() == "zw\u00f6lf"
    assert [entry.name for entry in target.parent.iterdir()] == ["x.bin"]


def test_a_raising_writer_changes_nothing(tmp_path):
    target = tmp_path / "x"
    write_atomic(target, b"before")

    def interrupted():
        with atomic_writer(target) as file:
            file.write(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        interrupted()
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def _limited(limit, code, *arguments):
    """Run code in a process whose files may not grow beyond `limit` bytes."""

    def set_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-B", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=set_limit,
    )


def test_a_disk_that_is_full_is_said_in_a_sentence_and_nothing_is_lost(tmp_path):
    target = tmp_path / "x.bin"
    write_atomic(target, b"before")
    code = """
import sys
from bayesrule.errors import BayesruleError
from bayesrule.runs.files import write_atomic
try:
    write_atomic(sys.argv[1], bytes(3_000_000))
except BayesruleError as error:
    print(error)
    sys.exit(7)
"""
    done = _limited(100_000, code, target)
    assert done.returncode == 7, done.stderr
    assert str(target) in done.stdout
    assert re.search(r"\d+\.\d MB free", done.stdout)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_no_space_left_is_named(tmp_path, monkeypatch):
    target = tmp_path / "x.bin"
    write_atomic(target, b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BayesruleError, match="no space is left on the device"):
        write_atomic(target, b"after")
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_folder_is_said_in_a_sentence(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(BayesruleError, match=re.escape(str(blocker / "x"))):
        write_atomic(blocker / "x", b"")


def test_jsonl_on_a_full_disk_takes_back_the_part_written(tmp_path):
    path = tmp_path / "m.jsonl"
    code = """
import sys
from bayesrule.errors import BayesruleError
from bayesrule.runs.files import JsonlWriter
writer = JsonlWriter(sys.argv[1])
try:
    for step in range(1000):
        writer.append({"step": step, "text": "x" * 97})
except BayesruleError as error:
    print(step, error)
    sys.exit(7)
"""
    done = _limited(10_000, code, path)
    assert done.returncode == 7, done.stderr
    step = int(done.stdout.split()[0])
    assert step > 10
    rows = read_jsonl(path)
    assert [row["step"] for row in rows] == list(range(step))


def test_kill_9_in_the_middle_of_writes_leaves_a_whole_file(tmp_path):
    target = tmp_path / "x.json"
    code = """
import sys
from bayesrule.runs.files import write_json
number = 0
while True:
    number += 1
    write_json(sys.argv[1], {"number": number, "filling": [number] * 20000})
    if number == 1:
        print("started", flush=True)
"""
    for delay in (0.0, 0.013, 0.037):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "started\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        content = read_json(target)  # the checksum holds
        assert content["filling"] == [content["number"]] * 20000
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_json_round_trip_with_non_finite_numbers(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"a": [1, 2.5, math.nan], "b": math.inf, "c": -math.inf, "d": {"e": "ü"}})
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert len(strict["sha256"]) == 64
    content = read_json(path)
    assert content == {"a": [1, 2.5, "nan"], "b": "inf", "c": "-inf", "d": {"e": "ü"}}
    assert math.isnan(float(content["a"][2]))
    assert float(content["c"]) == -math.inf


def test_json_refuses_what_is_not_plain_and_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"^a\.b "):
        write_json(tmp_path / "r.json", {"a": {"b": object()}})
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_any_byte_of_a_record_is_noticed(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"status": "done", "metrics": {"test/nll@mean": 0.4321}, "list": [1, None]})
    whole = path.read_bytes()
    content = read_json(path)
    noticed = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (5 * position) % 8
        path.write_bytes(damaged)
        try:
            # blanks between tokens may change without changing what is said
            same = read_json(path) == content
        except CorruptFile:
            noticed += 1
        else:
            assert same
    assert noticed > 0.9 * len(whole)


def test_truncated_records_are_noticed(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"status": "done", "metrics": {"a": 1.5}})
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # without its last newline it is whole
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            read_json(path)


@pytest.mark.parametrize("text", ["[1]", "3", '{"a": 1}', '{"a": NaN, "sha256": "0"}', "[" * 99999])
def test_other_content_is_noticed(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(CorruptFile):
        read_json(path)


def test_without_checksum(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"a": 1}, checksum=False)
    assert json.loads(path.read_text()) == {"a": 1}
    assert read_json(path, checksum=False) == {"a": 1}


def test_jsonl_appends_and_resumes_at_a_length(tmp_path):
    path = tmp_path / "m" / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        writer.append({"step": 1, "loss": 0.5})
        length = writer.sync()
        writer.append({"step": 2, "loss": math.nan})
    assert length == len(path.read_bytes().split(b"\n")[0]) + 1
    assert read_jsonl(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan"}]
    with JsonlWriter(path, resume_at=length) as writer:
        writer.append({"step": 2, "loss": 0.25})
    assert read_jsonl(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    writer.close()


def test_jsonl_with_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n{"ste')
    with pytest.warns(UserWarning, match=r"cut short .*2 whole rows"):
        assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    with JsonlWriter(path) as writer:
        writer.append({"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_jsonl_with_a_bad_last_line_and_a_bad_line_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n{"st\x00\xff\n')
    with pytest.warns(UserWarning, match="cut short"):
        assert read_jsonl(path) == [{"step": 1}]
    path.write_bytes(b'{"step":1}\n7\n{"step":3}\n')
    with pytest.raises(CorruptFile, match="line 2"):
        read_jsonl(path)


def test_jsonl_empty_and_long_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        assert writer.sync() == 0
    assert read_jsonl(path) == []
    with JsonlWriter(path) as writer:
        writer.append({"a": "x" * (3 << 20)})
    with path.open("ab") as file:
        file.write(b"y" * (2 << 20))
    with JsonlWriter(path) as writer:
        writer.append({"b": 1})
    assert [list(row) for row in read_jsonl(path)] == [["a"], ["b"]]


def test_jsonl_killed_writer_loses_no_line_it_reported(tmp_path):
    path = tmp_path / "metrics.jsonl"
    code = """
import sys
from bayesrule.runs.files import JsonlWriter
writer = JsonlWriter(sys.argv[1])
for step in range(100000):
    writer.append({"step": step})
    print(step, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    while int(process.stdout.readline()) < 200:
        pass
    process.kill()
    rest = process.stdout.read().split()
    process.wait()
    last = int(rest[-1]) if rest and rest[-1].isdigit() else 200
    rows = read_jsonl(path)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= min(last, 200)


def test_truncate_to(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"12345")
    truncate_to(path, 3)
    assert path.read_bytes() == b"123"
    with pytest.raises(CorruptFile, match=r"3 bytes.*4"):
        truncate_to(path, 4)
    truncate_to(tmp_path / "missing", 0)
    with pytest.raises(CorruptFile):
        truncate_to(tmp_path / "missing", 1)


def test_sha256_file_and_set_aside(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(path) == ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert set_aside(path).name == "a.corrupt"
    path.write_bytes(b"d")
    assert set_aside(path).name == "a.corrupt2"
    assert (tmp_path / "a.corrupt").read_bytes() == b"abc"


def test_file_modes_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "x", b"")
    finally:
        os.umask(old)
    assert Path(tmp_path / "x").stat().st_mode & 0o777 == 0o644
