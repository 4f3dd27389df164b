"""Metrics of a matrix of accuracies, against loops over their definitions and cases by hand."""

import math

import pytest
import torch

from bayesrule.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forgetting_max,
    forward_transfer,
    incremental_accuracy,
    intransigence,
    learning_accuracy,
    transfer_to_new,
)

# by hand: after tasks 1, 2, 3
HAND = torch.tensor([[0.9, 0.3, 0.1], [0.7, 0.8, 0.2], [0.8, 0.6, 0.7]], dtype=torch.float64)


def test_by_hand():
    assert average_accuracy(HAND) == pytest.approx(0.7)
    assert forgetting(HAND) == pytest.approx((0.1 + 0.2) / 2)
    assert forgetting_max(HAND) == pytest.approx((0.1 + 0.2) / 2)
    assert backward_transfer(HAND) == pytest.approx((-0.1 - 0.2) / 2)
    assert forward_transfer(HAND, [0.5, 0.1, 0.1]) == pytest.approx((0.2 + 0.1) / 2)
    assert learning_accuracy(HAND) == pytest.approx(0.8)
    assert transfer_to_new(HAND, [0.9, 0.9, 0.6]) == pytest.approx((-0.1 + 0.1) / 2)
    assert intransigence(HAND, [1.0, 1.0, 1.0]) == pytest.approx(0.2)
    assert incremental_accuracy(HAND) == pytest.approx((0.9 + 0.75 + 0.7) / 3)


def test_the_two_conventions_of_forgetting_differ_where_a_task_gets_better():
    better = torch.tensor([[0.5, 0.0], [0.9, 0.6]])
    assert forgetting(better) == pytest.approx(-0.4)  # Chaudhry: can be negative
    assert forgetting_max(better) == 0.0  # Mammoth: the last row counts too
    foreseen = torch.tensor([[0.5, 0.9, 0.0], [0.5, 0.6, 0.0], [0.5, 0.6, 0.6]])
    assert forgetting(foreseen) == pytest.approx(0.0)  # only from the task's own row on
    assert forgetting_max(foreseen) == pytest.approx(0.15)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_against_loops(n):
    g = torch.Generator().manual_seed(n)
    a = torch.rand(n, n, generator=g, dtype=torch.float64)
    b = torch.rand(n, generator=g, dtype=torch.float64)
    x = a.tolist()
    last = n - 1
    drops = [max(x[t][j] for t in range(j, last)) - x[last][j] for j in range(last)]
    assert forgetting(a) == pytest.approx(sum(drops) / last)
    drops = [max(x[t][j] for t in range(n)) - x[last][j] for j in range(last)]
    assert forgetting_max(a) == pytest.approx(sum(drops) / last)
    assert forgetting_max(a) >= 0.0
    assert backward_transfer(a) == pytest.approx(
        sum(x[last][j] - x[j][j] for j in range(last)) / last
    )
    fwt = sum(x[j - 1][j] - float(b[j]) for j in range(1, n)) / last
    assert forward_transfer(a, b) == pytest.approx(fwt)


def test_what_was_not_measured_does_not_matter():
    """Entries above the first superdiagonal are never looked at."""
    a = HAND.clone()
    a[0, 2] = math.nan
    assert math.isfinite(forgetting(a))
    assert forgetting_max(a) == forgetting_max(HAND)
    assert forward_transfer(a, [0.0, 0.0, 0.0]) == forward_transfer(HAND, [0.0, 0.0, 0.0])
    assert incremental_accuracy(a) == incremental_accuracy(HAND)


def test_one_task_has_no_past():
    one = torch.tensor([[0.8]])
    assert average_accuracy(one) == learning_accuracy(one) == pytest.approx(0.8)
    for metric in (forgetting, forgetting_max, backward_transfer):
        assert math.isnan(metric(one))
    assert math.isnan(forward_transfer(one, [0.1]))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"square"):
        average_accuracy(torch.zeros(2, 3))
