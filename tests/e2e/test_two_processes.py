"""`trainer=ddp_cpu`: a run in two processes ends, repeats and resumes as a run in one does."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

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


def test_several_nodes_need_torchrun(cli):
    refused = cli(*RUN, "trainer.nodes=2", "trainer.batch_size=40")
    assert refused.returncode == 2
    assert "torchrun" in refused.stderr


@pytest.mark.slow
def test_a_rank_that_diverges_ends_all_and_gives_the_reason(cli):
    failed = cli(*RUN, "posterior.lr=1e30", "posterior.weight_decay=0.1")
    assert failed.returncode == 1
    assert "training diverged" in failed.stderr
    (record,) = [json.loads(p.read_text()) for p in cli.runs.glob("*/record.json")]
    assert record["status"] == "failed"
