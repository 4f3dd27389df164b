"""A federated run killed at any instant ends as an uninterrupted one: duals and bytes too."""

import contextlib
import importlib.util
import signal
import time
from pathlib import Path

import pytest

RUN = (
    *("train", "task=federated", "federated=bayes_admm", "posterior=ivon", "posterior.lr=0.02"),
    *("posterior.rescale_lr=false", "posterior.hess_init=0.05", "data=digits", "model.hidden=[8]"),
    *("task.clients=4", "task.rounds=40", "task.dropout=0.2", "task.stragglers=0.3"),
    *("trainer.epochs=2", "metrics.mc_samples=2", "metrics.ece_null_draws=0"),
)
OFTEN = "trainer.checkpoint_seconds=0.01"  # not part of the run's identity


@pytest.mark.fault("kill -9 in federated rounds")
@pytest.mark.slow
def test_kill_nine_at_several_moments(cli, other_cli):
    whole = other_cli(*RUN)
    assert whole.returncode == 0, whole.stderr
    for count in (3, 11):
        killed = cli.stop_after_checkpoints(count, signal.SIGKILL, *RUN, OFTEN)
        assert killed.returncode == -signal.SIGKILL
    finished = cli(*RUN)
    assert finished.returncode == 0, finished.stderr
    assert cli.outcome() == other_cli.outcome()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_run_on_ray_is_killed_and_stopped(cli, other_cli):
    """Nothing of Ray is left behind, and the same command ends as the local engine does."""
    assert other_cli(*RUN).returncode == 0
    words = (*RUN, "engine=flower", "engine.workers=2", OFTEN)
    before = ray_processes()
    for count, signum in ((3, signal.SIGKILL), (8, signal.SIGTERM)):
        stopped = cli.stop_after_checkpoints(count, signum, *words)
        assert stopped.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
        limit = time.monotonic() + 150  # Ray's agents look for their dead server for a minute
        while ray_processes() - before and time.monotonic() < limit:
            time.sleep(0.2)
        assert not ray_processes() - before
    finished = cli(*words)
    assert finished.returncode == 0, finished.stderr
    assert cli.outcome() == other_cli.outcome()


def ray_processes():
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"raylet" in path.read_bytes() or b"ray::" in path.read_bytes():
                found.add(path.parent.name)
    return found
