import os
import pickle
import random
import subprocess
import sys
import time
import warnings

import pytest
import torch

from bayesrule.errors import BayesruleError, CorruptFile
from bayesrule.runs import checkpoint
from bayesrule.runs.checkpoint import CheckpointFolder, load_verified, save_verified, verify_file


def test_save_keeps_the_newest(tmp_path):
    folder = CheckpointFolder(tmp_path / "c", keep=2)
    assert folder.latest() is None
    assert folder.load_latest() is None
    for step in (0, 5, 10, 200):
        folder.save(b"payload %d" % step, step)
    assert folder.steps() == [10, 200]
    assert folder.load_latest() == (200, b"payload 200")
    assert folder.read(10) == b"payload 10"
    assert sorted(entry.name for entry in folder.path.iterdir()) == [
        "step-000000000010.ckpt",
        "step-000000000200.ckpt",
    ]


def test_a_callable_writes_the_payload_in_pieces(tmp_path):
    folder = CheckpointFolder(tmp_path)

    def write(file):
        for part in (b"ab", bytearray(b"cd"), memoryview(b"ef")):
            assert file.write(part) == 2

    folder.save(write, 1)
    assert folder.load_latest() == (1, b"abcdef")


def test_steps_given_up_are_removed(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(b"old", 50)
    folder.save(b"older", 40)
    folder.save(b"new", 45)
    assert folder.steps() == [40, 45]


def _damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[len(data) // 3] ^= 4
    elif kind == "flip trailer":
        data[-3] ^= 1
    elif kind == "truncate":
        del data[-100:]
    elif kind == "truncate one byte":
        del data[-1:]
    elif kind == "empty":
        data.clear()
    elif kind == "longer":
        data += b"x"
    path.write_bytes(data)


KINDS = ["flip", "flip trailer", "truncate", "truncate one byte", "empty", "longer"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_said_once_kept_and_the_one_before_used(tmp_path, kind):
    folder = CheckpointFolder(tmp_path)
    folder.save(b"a" * 1000, 1)
    folder.save(b"b" * 1000, 2)
    _damage(folder.file(2), kind)
    damaged = folder.file(2).read_bytes()
    with pytest.warns(UserWarning, match="the one before is used") as caught:
        assert folder.load_latest() == (1, b"a" * 1000)
    assert len(caught) == 1
    assert str(folder.file(2)) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder.latest() == 1  # reported once
    assert (tmp_path / "step-000000000002.ckpt.corrupt").read_bytes() == damaged
    folder.save(b"c", 3)
    folder.save(b"d", 4)
    folder.save(b"e", 5)
    folder.clear()
    assert (tmp_path / "step-000000000002.ckpt.corrupt").read_bytes() == damaged
    assert folder.steps() == []


def test_all_damaged_means_the_beginning(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(b"a", 1)
    _damage(folder.file(1), "flip trailer")
    with pytest.warns(UserWarning, match="starts from its beginning"):
        assert folder.load_latest() is None


def test_a_flipped_bit_in_any_byte_is_noticed(tmp_path):
    folder = CheckpointFolder(tmp_path)
    path = folder.save(bytes(range(64)), 1)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (5 * position) % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile):
            verify_file(path)


def test_objects_round_trip_bit_equal(tmp_path):
    generator = torch.Generator().manual_seed(3)
    torch.rand(7, generator=generator)
    state = {
        "w": torch.randn(50, 3, dtype=torch.float64),
        "half": torch.randn(4).bfloat16(),
        "generator": generator.get_state(),
        "step": 17,
        "names": ["a", ("b", None)],
    }
    folder = CheckpointFolder(tmp_path)
    folder.save_object(state, 17)
    step, loaded = folder.load_latest_object()
    assert step == 17
    for name in ("w", "half", "generator"):
        assert torch.equal(loaded[name], state[name])
        assert loaded[name].dtype == state[name].dtype
    assert loaded["names"] == state["names"]
    # plain torch reads the file too: the trailer does not disturb it
    plain = torch.load(folder.file(17), weights_only=True)
    assert torch.equal(plain["w"], state["w"])
    assert CheckpointFolder(tmp_path / "none").load_latest_object() is None


def test_save_verified_keeps_the_previous_one(tmp_path):
    path = tmp_path / "last.ckpt"
    for number in range(3):
        save_verified({"n": number, "t": torch.full((100,), float(number))}, path)
    assert load_verified(path)["n"] == 2
    assert load_verified(tmp_path / "last.ckpt.previous")["n"] == 1
    assert sorted(e.name for e in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.previous"]


@pytest.mark.parametrize("kind", KINDS)
def test_load_verified_falls_back_to_the_previous_one(tmp_path, kind):
    path = tmp_path / "last.ckpt"
    save_verified({"n": 0}, path)
    save_verified({"n": 1}, path)
    _damage(path, kind)
    with pytest.warns(UserWarning, match="checkpoint before it"):
        assert load_verified(path) == {"n": 0}
    assert (tmp_path / "last.ckpt.corrupt").exists()
    with pytest.warns(UserWarning, match="missing"):
        assert load_verified(path) == {"n": 0}
    save_verified({"n": 2}, path)
    assert load_verified(path) == {"n": 2}
    _damage(path, kind)
    _damage(tmp_path / "last.ckpt.previous", kind)
    with pytest.raises(CorruptFile, match="no whole checkpoint before it"):
        load_verified(path)


def test_load_verified_without_any_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_verified(tmp_path / "x.ckpt")


def test_without_hard_links_the_previous_one_is_kept_too(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(1, "no links here")

    monkeypatch.setattr(checkpoint.os, "link", refuse)
    path = tmp_path / "last.ckpt"
    save_verified({"n": 0}, path)
    save_verified({"n": 1}, path)
    assert load_verified(path) == {"n": 1}
    assert load_verified(tmp_path / "last.ckpt.previous") == {"n": 0}


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_files_are_refused_and_run_nothing(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.ckpt"
    if zipped:
        save_verified({"a": _Evil()}, path)
    else:
        CheckpointFolder(tmp_path).save(pickle.dumps(_Evil(), protocol=2), 1).rename(path)
    with pytest.raises(CorruptFile, match=r"x\.ckpt"):
        load_verified(path)
    assert not (tmp_path / "pwned").exists()
    path.rename(CheckpointFolder(tmp_path).file(4))
    with pytest.raises(CorruptFile, match="step-000000000004"):
        CheckpointFolder(tmp_path).load_latest_object()
    assert not (tmp_path / "pwned").exists()


def test_what_torch_cannot_read_is_said(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(b"not a torch file", 1)
    with pytest.raises(CorruptFile):
        folder.load_latest_object()


def test_a_failing_save_leaves_the_earlier_ones(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(b"one", 1)

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(BayesruleError, match="no space is left"):
        folder.save(fails, 2)
    assert folder.load_latest() == (1, b"one")
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.file(1).name]


def test_kill_9_while_saving_never_loses_the_newest_whole_checkpoint(tmp_path):
    code = """
import sys
from bayesrule.runs.checkpoint import CheckpointFolder
folder = CheckpointFolder(sys.argv[1])
step = (folder.latest() or 0) + 1
while True:
    folder.save(step.to_bytes(8, "big") * 40000, step)
    print(step, flush=True)
    step += 1
"""
    reported = 0
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        first = int(process.stdout.readline())
        assert first > reported
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        lines = process.stdout.read().split("\n")[:-1]
        process.wait()
        reported = int(lines[-1]) if lines else first
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step, payload = CheckpointFolder(tmp_path).load_latest()
        assert step >= reported
        assert payload == step.to_bytes(8, "big") * 40000
        reported = step


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        CheckpointFolder(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step"):
        CheckpointFolder(tmp_path).save(b"", -1)
