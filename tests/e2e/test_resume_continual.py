"""A stream killed at any instant, within an experience or between two, ends bit-equal.

What else a stop can do (signals, every correction) is in tests/contract/corrections, in process.
"""

import json
import signal

import pytest

RUN = (
    *("train", "task=continual", "scenario=split", "scenario.n_tasks=4", "data=digits"),
    *("data.train_size=400", "model.hidden=[20]", "model.dropout=0.1", "posterior=ivon"),
    *("correction=der_pp", "correction.size=30", "trainer.epochs=25", "trainer.batch_size=16"),
    *("trainer.log_every=7", "metrics.mc_samples=4"),
)
OFTEN = "trainer.checkpoint_seconds=0.05"  # not part of the run's identity


def details(cli):
    record = json.loads((cli.folder() / "record.json").read_text())
    return record["details"]["continual"]


@pytest.mark.fault("kill -9 in a stream of tasks")
def test_kill_nine_within_experiences(cli, other_cli):
    whole = other_cli(*RUN)
    assert whole.returncode == 0, whole.stderr
    assert not list(other_cli.folder().glob("checkpoints/*"))  # a finished run needs none
    for phase in ("experience1", "experience3"):
        killed = cli.stop_after_checkpoints(2, signal.SIGKILL, *RUN, OFTEN, below=phase)
        assert killed.returncode == -signal.SIGKILL
    left = cli.folder() / "checkpoints"
    assert sorted(p.name for p in left.iterdir() if p.is_dir()) == ["experience3"]
    finished = cli(*RUN)
    assert finished.returncode == 0, finished.stderr
    assert cli.outcome() == other_cli.outcome()
    assert details(cli) == details(other_cli)
