"""A fault at the n-th change on disk, over the whole life of a run; then the same command again."""

import signal

import pytest
from forked import ForkedCommandLine

RUN = (
    *("train", "posterior=ivon", "data.train_size=100", "data.label_noise=0.2", "model.hidden=[8]"),
    *("model.dropout=0.1", "trainer.epochs=3", "trainer.eval_every=2", "trainer.log_every=1"),
    *("metrics.mc_samples=2", "metrics.ece_null_draws=0", "metrics.prefixes=[1]"),
    "trainer.checkpoint_seconds=0",
)
MOMENTS = 32
IN_TEST = (13, 29)


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory):
    """Return the outcome of an undisturbed run and how many changes on disk it makes."""
    folder = tmp_path_factory.mktemp("whole")
    first = ForkedCommandLine(warm, folder / "first")
    assert first(*RUN).returncode == 0  # makes the cache of prepared data
    cli = ForkedCommandLine(warm, folder / "runs")
    result = cli(*RUN, hook={"kind": "at", "action": None, "count": str(folder / "count")})
    assert result.returncode == 0, result.stderr
    assert cli.outcome() == first.outcome()
    return cli.outcome(), int((folder / "count").read_text())


def moments():
    return [pytest.param(m, marks=() if m in IN_TEST else pytest.mark.slow) for m in range(MOMENTS)]


def at(whole, moment, action):
    return {"kind": "at", "action": action, "number": 1 + moment * whole[1] // MOMENTS}


def same_again(fork, whole):
    assert fork("runs", "ls").returncode == 0
    result = fork(*RUN)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert fork.outcome() == whole[0]
    assert fork("runs", "verify").returncode == 0


@pytest.mark.fault("kill -9 at any change on disk of a run")
@pytest.mark.parametrize("moment", moments())
def test_kill_nine(fork, whole, moment):
    result = fork(*RUN, hook=at(whole, moment, "SIGKILL"))
    assert result.returncode == -signal.SIGKILL
    same_again(fork, whole)


@pytest.mark.fault("SIGTERM at any change on disk of a run")
@pytest.mark.parametrize("moment", moments())
def test_sigterm(fork, whole, moment):
    check_stopped(fork, whole, fork(*RUN, hook=at(whole, moment, "SIGTERM")), 143)


@pytest.mark.fault("Ctrl-C at any change on disk of a run")
@pytest.mark.parametrize("moment", moments())
def test_sigint(fork, whole, moment):
    check_stopped(fork, whole, fork(*RUN, hook=at(whole, moment, "SIGINT")), 130)


def check_stopped(fork, whole, result, code):
    assert result.returncode in (0, code, 128 - code), result.stderr
    assert "Traceback" not in result.stderr
    if result.returncode == 0:
        assert fork.outcome() == whole[0]
    same_again(fork, whole)


@pytest.mark.fault("disk full from any change on disk of a run on")
@pytest.mark.parametrize("moment", moments())
def test_disk_full(fork, whole, moment):
    check_failed(fork, whole, fork(*RUN, hook=at(whole, moment, "ENOSPC")), "no space is left")


@pytest.mark.fault("input/output error at any change on disk of a run")
@pytest.mark.parametrize("moment", moments())
def test_input_output_error(fork, whole, moment):
    check_failed(fork, whole, fork(*RUN, hook=at(whole, moment, "EIO1")), "nput/output error")


def check_failed(fork, whole, result, reason):
    assert result.returncode in (0, 1), result.stderr
    assert "Traceback" not in result.stderr
    if result.returncode == 0:
        assert fork.outcome() == whole[0]
    else:
        assert reason in result.stderr
    same_again(fork, whole)
