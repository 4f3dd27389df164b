"""Learning-rate factors against their formulas, and the number of steps."""

import math

import pytest

from bayesrule.tasks.schedule import learning_rate_factor, planned_steps

BASE = {
    "schedule": "cosine", "warmup": 0.1, "final_lr": 0.0, "milestones": [0.5, 0.75], "gamma": 0.1,
}  # fmt: skip


def test_warm_up_then_cosine():
    factor = learning_rate_factor(BASE, 100)
    assert [factor(t) for t in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert factor(10) == 1.0
    for t in (20, 55, 99):
        expected = 0.5 * (1 + math.cos(math.pi * (t - 10) / 90))
        assert factor(t) == pytest.approx(expected, abs=1e-15)
    assert factor(100) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 50, 0.6),
        ("linear", 100, 0.2),
        ("constant", 77, 1.0),
        ("step", 49, 1.0),
        ("step", 50, 0.1),
        ("step", 80, 0.01),
    ],
)
def test_other_schedules(schedule, step, expected):
    cfg = {**BASE, "schedule": schedule, "warmup": 0.0, "final_lr": 0.2}
    assert learning_rate_factor(cfg, 100)(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "drop", "limit", "expected"),
    [(100, False, None, 30), (101, False, None, 33), (101, True, None, 30), (101, False, 7, 7)],
)
def test_planned_steps(n, drop, limit, expected):
    cfg = {"epochs": 3, "batch_size": 10, "drop_last": drop, "max_steps": limit}
    assert planned_steps(cfg, n) == expected
