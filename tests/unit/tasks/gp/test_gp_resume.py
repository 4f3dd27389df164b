"""A run that is killed after any step goes on to the very same end."""

import pytest
import torch
from gp_cases import METHODS, learner

from bayesrule.runs import CheckpointFolder, RunFolder
from bayesrule.tasks.gp.em import Schedule
from bayesrule.tasks.gp.inference import SGPR, AdamSVGP
from bayesrule.tasks.history import History
from bayesrule.tasks.signals import StopRequest

CASES = {
    **{name: ("bernoulli_logit", make, Schedule(3, 2, 2, 0.05)) for name, make in METHODS.items()},
    "adam": ("bernoulli_logit", lambda: AdamSVGP(0.05), Schedule(3, 2, 2, 0.05)),
    "sgpr": ("gaussian", SGPR, Schedule(4, 0, 2, 0.05)),
    "softmax-batches": ("softmax", METHODS["projected"], Schedule(4, 2, 1, 0.05, 20)),
    "per-datum-batches": ("poisson", METHODS["per_datum"], Schedule(4, 2, 1, 0.05, 25)),
    "e-steps-alone": ("poisson", METHODS["projected"], Schedule(3, 2, 0, 0.05)),
    "cut-short": ("gaussian", METHODS["projected"], Schedule(3, 2, 2, 0.05, None, 3)),
}


class Killed(Exception):
    pass


def attempt(folder, case, kill_at=None):
    """Run in `folder`, as a process would: learner and history are new each time."""
    name, make, schedule = CASES[case]
    history = History(RunFolder(folder, "0" * 16))
    em = learner(name, make(), schedule, history)
    take = em.step

    def step(number):
        if number == kill_at:
            raise Killed
        take(number)

    em.step = step
    try:
        checkpoints = CheckpointFolder(folder / "checkpoints")
        em.run(checkpoints, StopRequest(), seconds=0.0, progress=False)
    except Killed:
        return None
    finally:
        history.close()
    chol, q = em.posterior()
    state = [chol, q.mean, q.half, *(p.detach() for p in em.gp.parameters())]
    rows = (folder / ("0" * 16) / "metrics.jsonl").read_bytes()
    return em.bounds, rows, state


@pytest.fixture
def folder(tmp_path):
    def make(name):
        (tmp_path / name / ("0" * 16)).mkdir(parents=True)
        return tmp_path / name

    return make


@pytest.mark.parametrize("case", CASES)
def test_resumed_after_every_step(case, folder):
    bounds, rows, state = attempt(folder("whole"), case)
    schedule = CASES[case][2]
    assert len(bounds) == rows.count(b"\n")
    assert len(bounds) == (1 if schedule.max_steps else schedule.iterations) + (case == "cut-short")
    broken = folder("broken")
    for step in range(schedule.total):
        assert attempt(broken, case, kill_at=step) is None
    again = attempt(broken, case)
    assert again[0] == pytest.approx(bounds, abs=0.0, nan_ok=True)
    assert again[1] == rows
    assert all(torch.equal(a, b) for a, b in zip(again[2], state, strict=True))


def test_rows_of_an_attempt_without_a_checkpoint_do_not_count(folder):
    there = folder("run")
    (there / ("0" * 16) / "metrics.jsonl").write_text('{"step": 7}\n')
    _, rows, _ = attempt(there, "projected")
    assert b'"step": 7}' not in rows
    assert rows == attempt(folder("other"), "projected")[1]
