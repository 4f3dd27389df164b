"""A Gaussian process that is killed or stopped ends as one that was not, bit by bit."""

import signal

import pytest

RUN = (
    *("train", "task=gp", "data=iris", "task.batch_size=40", "model.inducing=30"),
    *("task.iterations=60", "task.e_steps=2", "task.m_steps=2", "trainer.eval_every=15"),
    *("metrics.mc_samples=8", "metrics.ece_null_draws=0"),
)
OFTEN = "trainer.checkpoint_seconds=0.02"  # not part of the run's identity


@pytest.mark.fault("kill -9 and SIGTERM in a Gaussian process")
def test_killed_then_stopped_then_finished(cli, other_cli):
    assert other_cli(*RUN).returncode == 0
    killed = cli.stop_after_checkpoints(3, signal.SIGKILL, *RUN, OFTEN)
    assert killed.returncode == -signal.SIGKILL
    assert cli.checkpoints()
    stopped = cli.stop_after_checkpoints(3, signal.SIGTERM, *RUN, OFTEN)
    assert stopped.returncode == 143, stopped.stderr
    assert "the same command resumes it" in stopped.stderr
    finished = cli(*RUN)
    assert finished.returncode == 0, finished.stderr
    assert cli.outcome() == other_cli.outcome()
