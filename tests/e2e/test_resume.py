"""Killed, stopped or damaged: the same command ends as an uninterrupted run does, bit by bit."""

import signal

import pytest
from command_line import CommandLine

RUN = (
    "train",
    "posterior=ivon",
    "data.label_noise=0.2",
    "model.dropout=0.1",  # the global random state matters too
    "trainer.epochs=80",
    "trainer.eval_every=20",
    "trainer.log_every=7",
    "metrics.mc_samples=4",
    "metrics.ece_null_draws=0",
)
OFTEN = "trainer.checkpoint_seconds=0.05"  # not part of the run's identity


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cli = CommandLine(tmp_path_factory.mktemp("whole") / "runs")
    result = cli(*RUN)
    assert result.returncode == 0, result.stderr
    assert not cli.checkpoints()  # a finished run needs none
    return cli.outcome()


@pytest.mark.fault("kill -9 in training, three times in a row")
def test_kill_nine_at_several_moments(cli, uninterrupted):
    for count in (1, 3, 2):
        killed = cli.stop_after_checkpoints(count, signal.SIGKILL, *RUN, OFTEN)
        assert killed.returncode == -signal.SIGKILL
    assert cli.checkpoints()
    finished = cli(*RUN, OFTEN)
    assert finished.returncode == 0, finished.stderr
    assert cli.outcome() == uninterrupted


@pytest.mark.fault("SIGTERM or Ctrl-C in training")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_a_checkpoint(cli, uninterrupted, signum, code):
    stopped = cli.stop_after_checkpoints(1, signum, *RUN, OFTEN)
    assert stopped.returncode == code, stopped.stderr
    assert "the same command resumes it" in stopped.stderr
    assert cli("runs", "ls").stdout.count("stopped") == 1
    assert cli(*RUN).returncode == 0
    assert cli.outcome() == uninterrupted


@pytest.mark.fault("damaged or hostile checkpoint")
@pytest.mark.parametrize("damage", ["truncated", "flipped", "hostile"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(
    cli, uninterrupted, damage, tmp_path
):
    cli.stop_after_checkpoints(3, signal.SIGTERM, *RUN, OFTEN)
    newest = cli.checkpoints()[-1]
    assert len(cli.checkpoints()) == 2
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.write_bytes(_pickle_that_writes(tmp_path / "owned"))
    finished = cli(*RUN)
    assert finished.returncode == 0, finished.stderr
    assert newest.name in finished.stderr  # a sentence names the file
    assert not (tmp_path / "owned").exists()
    assert cli.outcome() == uninterrupted


@pytest.mark.fault("hostile checkpoint with a right checksum")
def test_a_hostile_checkpoint_with_a_right_checksum_is_refused(cli, tmp_path):
    from bayesrule.runs import CheckpointFolder

    cli.stop_after_checkpoints(2, signal.SIGTERM, *RUN, OFTEN)
    folder = CheckpointFolder(cli.checkpoints()[0].parent)
    folder.save(_pickle_that_writes(tmp_path / "owned"), 10_000)
    result = cli(*RUN)
    assert not (tmp_path / "owned").exists()
    assert result.returncode in (0, 1)  # refused, or the one before was used
    assert "refused" in result.stderr
    assert "never run" in result.stderr


@pytest.mark.fault("kill -9 in a later member of an ensemble")
def test_an_ensemble_killed_in_a_later_member(cli, other_cli):
    words = ("train", "posterior=deep_ensemble", "posterior.members=3", "posterior.member=ivon",
             "trainer.epochs=8", "trainer.log_every=5", *RUN[-2:])  # fmt: skip
    assert other_cli(*words).returncode == 0
    for member in ("member1", "member2"):
        killed = cli.stop_after_checkpoints(2, signal.SIGKILL, *words, OFTEN, below=member)
        assert killed.returncode == -signal.SIGKILL
    finished = cli(*words, OFTEN)
    assert finished.returncode == 0, finished.stderr
    assert cli.outcome() == other_cli.outcome()


@pytest.mark.fault("SIGTERM in a sweep")
def test_a_signal_stops_a_whole_sweep(cli):
    words = ("train", "-m", "seed=0,1", *RUN[1:], "trainer.epochs=500", OFTEN)
    stopped = cli.stop_after_checkpoints(1, signal.SIGTERM, *words)
    assert stopped.returncode == 143, stopped.stderr
    assert "does the rest" in stopped.stderr
    assert len([p for p in cli.runs.iterdir() if len(p.name) == 16]) == 1  # the second never began


@pytest.mark.fault("the same run twice at once")
def test_the_same_run_twice_at_once(cli):
    first = cli.start(*RUN, "trainer.epochs=2000")
    while not list(cli.runs.glob(".locks/*.holder")):
        assert first.poll() is None
    second = cli(*RUN, "trainer.epochs=2000")
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr
    first.kill()
    first.wait()


def _pickle_that_writes(path):
    import pickle

    class Payload:
        def __reduce__(self):
            return open, (str(path), "w")

    return pickle.dumps(Payload())
