"""Memory selection against dense references and by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from bayesrule.corrections.selection import (
    k_centre,
    lambda_trace,
    leverage_scores,
    per_class_quota,
    select,
    weighted_jacobian,
)
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Bernoulli, Categorical

N, C, P = 60, 3, 5
STRATEGIES = ["lambda_descend", "lambda_ascend", "random", "k_centre", "leverage"]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


LOGITS = 3.0 * randn(N, C)
TARGET = torch.randint(C, (N,), generator=gen(1))
FEATURES = randn(N, P, seed=2)


def chosen(strategy: str, m: int, **changes) -> torch.Tensor:
    given = {"target": TARGET, "logits": LOGITS, "features": FEATURES, "generator": gen(7)}
    return select(strategy, m, **{**given, **changes})


def test_the_trace_is_the_one_of_the_likelihoods_hessian():
    dense = Categorical().hessian(LOGITS).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(lambda_trace(LOGITS), dense, rtol=1e-12, atol=1e-15)
    one = LOGITS[:, :1]
    torch.testing.assert_close(lambda_trace(one), Bernoulli().hessian(one).reshape(N))


def test_the_trace_keeps_its_precision_for_confident_items():
    logits = torch.tensor([[45.0, 0.0], [46.0, 0.0], [-46.0, 0.0]], dtype=torch.float64)
    expected = 2.0 * torch.exp(torch.tensor([-45.0, -46.0, -46.0], dtype=torch.float64))
    torch.testing.assert_close(lambda_trace(logits), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_selection_does_not_see_a_constant_added_to_all_logits_of_an_item(strategy):
    shifted = LOGITS + 5.0 * randn(N, 1, seed=9)
    assert chosen(strategy, 12).equal(chosen(strategy, 12, logits=shifted))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("m", [3, 10, 30])
def test_a_memory_has_exactly_floor_m_over_c_items_of_each_class(strategy, m):
    indices = chosen(strategy, m)
    assert torch.bincount(TARGET[indices], minlength=C).tolist() == [m // C] * C
    assert len(indices.unique()) == len(indices)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_selection_is_deterministic_and_takes_all_when_all_are_asked_for(strategy):
    assert chosen(strategy, 9).equal(chosen(strategy, 9))
    assert chosen(strategy, N).sort().values.equal(torch.arange(N))
    assert len(chosen(strategy, 0)) == 0
    assert len(chosen(strategy, 10, balanced=False)) == 10


def test_random_follows_its_generator():
    assert not chosen("random", 9).equal(chosen("random", 9, generator=gen(8)))


def test_lambda_takes_the_extremes_of_each_class():
    score = lambda_trace(LOGITS)
    for strategy, largest in (("lambda_descend", True), ("lambda_ascend", False)):
        indices = chosen(strategy, 9)
        for c in range(C):
            own = score[c == TARGET].sort(descending=largest).values[:3]
            assert score[indices[TARGET[indices] == c]].equal(own)


def test_where_a_class_has_too_few_the_others_get_the_rest():
    assert per_class_quota([2, 50], 20) == [2, 18]
    assert per_class_quota([1, 30, 30], 30) == [1, 15, 14]
    assert per_class_quota([1, 3, 30], 12) == [1, 3, 8]
    assert per_class_quota([10, 10], 7) == [3, 3]  # nobody is short: exactly floor(m / C)
    assert per_class_quota([4, 3], 7) == [4, 3]
    assert per_class_quota([4, 3], 70) == [4, 3]


def test_leverage_equals_the_dense_hat_matrix_in_both_spaces():
    for n, p in ((12, 4), (4, 12)):
        jacobian, logits = randn(n, C, p, seed=3), randn(n, C, seed=4)
        rows = weighted_jacobian(jacobian, logits)
        blocks = jacobian.mT @ Categorical().hessian(logits) @ jacobian
        inverse = torch.linalg.inv(blocks.sum(0) + 0.3 * torch.eye(p, dtype=torch.float64))
        expected = (blocks @ inverse).diagonal(dim1=-2, dim2=-1).sum(-1)
        scores = leverage_scores(rows, 0.3)
        torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-12)
        assert (scores > 0).all()


def test_leverage_of_features_is_that_of_the_weighted_design():
    rows = lambda_trace(LOGITS).sqrt().unsqueeze(1) * FEATURES
    hat = rows @ torch.linalg.inv(rows.mT @ rows + 2.0 * torch.eye(P).double()) @ rows.mT
    scores = leverage_scores(weighted_jacobian(FEATURES, LOGITS), 2.0)
    torch.testing.assert_close(scores, hat.diagonal())
    best = chosen("leverage", 4, balanced=False, prior_prec=2.0)
    assert best.equal(hat.diagonal().argsort(descending=True)[:4])


def test_k_centre_is_within_twice_the_best_radius_and_survives_duplicates():
    points = randn(9, 2, seed=5)

    def radius(centres) -> float:
        return float(torch.cdist(points, points[list(centres)]).min(1).values.max())

    best = min(radius(c) for c in itertools.combinations(range(9), 3))
    assert radius(k_centre(points, 3).tolist()) <= 2.0 * best
    assert k_centre(torch.zeros(4, 2), 4).sort().values.tolist() == [0, 1, 2, 3]


def test_what_a_strategy_needs_is_said():
    with pytest.raises(Unsupported, match="lambda_descend needs logits"):
        chosen("lambda_descend", 3, logits=None)
    with pytest.raises(Unsupported, match="k_centre needs features or inputs"):
        chosen("k_centre", 3, features=None)
    with pytest.raises(Unsupported, match="one of lambda_descend"):
        chosen("best", 3)
