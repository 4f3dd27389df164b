"""A federated run killed at any instant ends as an uninterrupted one: duals and bytes too."""

import signal

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
