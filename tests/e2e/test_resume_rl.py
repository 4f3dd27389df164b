"""Reinforcement learning killed at any instant ends as an uninterrupted run: the buffer too."""

import signal

import pytest

RUN = (
    *("train", "task=rl", "env=cartpole", "posterior=ivon", "posterior.lr=0.01"),
    *("model.hidden=[8]", "task.bootstrap=online", "task.kappa=0.5", "task.env_steps=1800"),
    *("task.learning_starts=100", "task.replay=700", "task.period=50", "task.window=500"),
    *("task.eval_every=900", "task.eval_episodes=2", "trainer.batch_size=8"),
)
OFTEN = "trainer.checkpoint_seconds=0.05"  # not part of the run's identity


@pytest.mark.fault("kill -9 in reinforcement learning")
def test_kill_nine_at_several_moments(cli, other_cli):
    whole = other_cli(*RUN)
    assert whole.returncode == 0, whole.stderr
    assert not other_cli.checkpoints()  # a finished run needs none
    for count in (2, 6):  # of which two may be there from the time before
        killed = cli.stop_after_checkpoints(count, signal.SIGKILL, *RUN, OFTEN)
        assert killed.returncode == -signal.SIGKILL
    assert list(cli.folder().glob("checkpoints/train/replay/*.segment"))
    finished = cli(*RUN)
    assert finished.returncode == 0, finished.stderr
    assert cli.outcome() == other_cli.outcome()
    assert not list(cli.folder().glob("checkpoints/*"))
