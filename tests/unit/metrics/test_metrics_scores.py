"""Closed forms, limits and refusals of the classification scores and calibration errors."""

import math

import pytest
import torch

from bayesrule import metrics as M
from bayesrule.errors import BayesruleError

CORE = (
    M.nll,
    M.brier,
    M.brier_top,
    M.accuracy,
    M.err,
    M.top_k_accuracy,
    M.ece,
    M.rmsce,
    M.rmsce_debiased,
    M.mce,
    M.oce,
    M.uce,
    M.ada_ece,
    M.cw_ece,
    M.ks_ce,
    M.ece_null,
)


def predictions(n=50, n_classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    lp = torch.randn(n, n_classes, generator=g, dtype=torch.float64).log_softmax(-1)
    return lp, torch.randint(n_classes, (n,), generator=g)


def test_right_and_certain():
    y = torch.tensor([0, 2, 1, 1])
    lp = torch.nn.functional.one_hot(y, 3).double().log()
    for score in (M.nll, M.brier, M.brier_top, M.err, M.ece, M.mce, M.ada_ece, M.cw_ece, M.ks_ce):
        assert float(score(lp, y)) == 0.0
    assert float(M.accuracy(lp, y)) == 1.0
    assert math.copysign(1.0, float(M.nll(lp, y))) == 1.0


def test_wrong_and_certain():
    y = torch.tensor([1, 0, 0])
    lp = torch.nn.functional.one_hot(torch.tensor([0, 1, 2]), 3).double().log()
    assert float(M.nll(lp, y)) == pytest.approx(-math.log(1e-12), rel=1e-15)
    assert float(M.nll_n_zero(lp, y)) == 3.0
    assert float(M.brier(lp, y)) == 2.0
    assert float(M.ece(lp, y)) == float(M.oce(lp, y)) == float(M.mce(lp, y)) == 1.0
    assert float(M.uce(lp, y)) == 0.0


def test_uniform_and_balanced():
    n_classes = 5
    y = torch.arange(n_classes).repeat(3)
    lp = torch.full((15, n_classes), -math.log(n_classes), dtype=torch.float64)
    assert float(M.nll(lp, y)) == pytest.approx(math.log(n_classes), abs=1e-15)
    assert float(M.brier(lp, y)) == pytest.approx(1 - 1 / n_classes, abs=1e-15)
    for score in (M.ece, M.ada_ece, M.cw_ece, M.ks_ce, M.mce):
        assert float(score(lp, y)) == pytest.approx(0.0, abs=1e-15)
    assert float(M.accuracy(lp, y)) == 0.2  # ties go to class 0


def test_tiny_probabilities_are_not_floored():
    lp = torch.tensor([[0.0, -800.0]], dtype=torch.float64)
    y = torch.tensor([1])
    assert float(M.nll(lp, y)) == 800.0
    assert float(M.nll_n_zero(lp, y)) == 0.0


def test_top_k_ties_go_to_the_lowest_class():
    lp = torch.tensor([[0.1, 0.3, 0.3, 0.3]], dtype=torch.float64).log()
    ranks = {1: 1, 2: 2, 3: 3, 0: 4}
    for target, first_k in ranks.items():
        hits = [float(M.top_k_accuracy(lp, torch.tensor([target]), k)) for k in (1, 2, 3, 4, 9)]
        assert hits == [float(k >= first_k) for k in (1, 2, 3, 4, 9)]


def test_relabelling_classes_changes_nothing():
    lp, y = predictions()
    order = torch.tensor([2, 0, 3, 1])
    position = order.argsort()
    for score in CORE:
        assert float(score(lp[:, order], position[y])) == pytest.approx(float(score(lp, y)))


def test_flipping_a_binary_label_set_swaps_right_and_wrong():
    lp, y = predictions(n_classes=2)
    assert float(M.accuracy(lp, 1 - y)) == pytest.approx(float(M.err(lp, y)))
    assert float(M.auroc_ovr(lp, 1 - y)[1]) == pytest.approx(1 - float(M.auroc_ovr(lp, y)[1]))


@pytest.mark.parametrize("edge", [k / 15 for k in range(1, 16)] + [k / 10 for k in range(1, 11)])
def test_bins_are_closed_on_the_right(edge):
    n_bins = 15 if abs(edge * 15 - round(edge * 15)) < 1e-12 else 10
    conf = torch.tensor([edge, edge + 1e-7, edge - 1e-7, edge + 1e-16], dtype=torch.float64)
    occupied = [
        int(M.reliability_bins(c[None], torch.ones(1), n_bins).counts.nonzero()) for c in conf
    ]
    last = round(edge * n_bins) - 1
    assert occupied == [last, min(last + 1, n_bins - 1), last, last]


def test_confidence_zero_and_one_have_a_bin():
    bins = M.reliability_bins(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), 10)
    assert bins.counts.tolist() == [1.0] + [0.0] * 8 + [1.0]
    assert bins.conf[9] == bins.acc[9] == 1.0
    assert bool(bins.conf[5].isnan())
    assert float(bins.ece()) == 0.0


def test_reliability_bins_by_hand():
    conf = torch.tensor([0.55, 0.6, 0.95, 0.91], dtype=torch.float64)
    bins = M.reliability_bins(conf, torch.tensor([1.0, 0.0, 1.0, 0.0]), 10)
    assert bins.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert float(bins.conf[5]) == pytest.approx(0.575)
    assert float(bins.ece()) == pytest.approx(0.5 * 0.075 + 0.5 * 0.43)
    assert float(bins.mce()) == pytest.approx(0.43)
    assert float(bins.mce_count()) == 2.0
    assert float(bins.ace_nonempty()) == pytest.approx((0.075 + 0.43) / 2)


def test_overconfidence_and_underconfidence_add_up():
    lp, y = predictions(200)
    y = torch.where(lp.amax(-1) < -0.7, lp.argmax(-1), y)  # under-confident where unsure
    assert float(M.oce(lp, y) + M.uce(lp, y)) == pytest.approx(float(M.ece(lp, y)), abs=1e-15)
    assert float(M.oce(lp, y)) > 0 < float(M.uce(lp, y))
    assert float(M.ece(lp, y)) <= float(M.rmsce(lp, y)) <= float(M.mce(lp, y))


def test_adaptive_bins_never_split_ties_and_never_exceed_the_distinct_values():
    conf = torch.tensor([0.5] * 7 + [0.7] * 2 + [0.9], dtype=torch.float64)
    for n_bins in (1, 2, 5, 15, 100):
        bins = M.adaptive_bins(conf, torch.ones(10), n_bins)
        assert len(bins.counts) <= min(n_bins, 3)
        assert float(bins.counts.min()) > 0
        assert float(bins.total) == 10.0
    assert M.adaptive_bins(conf, torch.ones(10), 5).counts.tolist() == [7.0, 2.0, 1.0]
    spread = torch.linspace(0.1, 0.9, 10, dtype=torch.float64)
    assert M.adaptive_bins(spread, torch.ones(10), 4).counts.tolist() == [2.0, 3.0, 3.0, 2.0]


def test_class_without_items_stays_in_the_classwise_mean():
    lp = torch.tensor([[0.5, 0.4, 0.1]] * 4, dtype=torch.float64).log()
    y = torch.tensor([0, 0, 1, 1])
    assert float(M.cw_ece(lp, y)) == pytest.approx((0.0 + 0.1 + 0.1) / 3, abs=1e-15)


def test_ece_pos_is_about_class_one():
    lp = torch.tensor([[0.9, 0.1]] * 10, dtype=torch.float64).log()
    y = torch.tensor([1] + [0] * 9)
    assert float(M.ece_pos(lp, y)) == pytest.approx(0.0, abs=1e-15)
    assert float(M.ece_pos(lp, 1 - y)) == pytest.approx(0.8, abs=1e-15)


def test_debiased_error_of_calibrated_predictions_is_smaller():
    g = torch.Generator().manual_seed(0)
    conf = torch.rand(2000, generator=g, dtype=torch.float64)
    correct = (torch.rand(2000, generator=g, dtype=torch.float64) < conf).double()
    bins = M.reliability_bins(conf, correct)
    assert 0 <= float(bins.rmsce_debiased()) < float(bins.rmsce())


def test_null_error_shrinks_with_items_and_repeats_bitwise():
    conf = torch.full((100,), 0.8, dtype=torch.float64)
    draws = M.ece_null_draws(conf)
    assert torch.equal(draws, M.ece_null_draws(conf))
    assert not torch.equal(draws, M.ece_null_draws(conf, seed=1))
    expected = math.sqrt(2 / math.pi * 0.8 * 0.2 / 100)  # E|mean of Bernoulli - p|
    assert float(draws.mean()) == pytest.approx(expected, rel=0.3)
    assert float(M.ece_null_draws(conf.repeat(100)).mean()) < float(draws.mean()) / 5


@pytest.mark.parametrize("score", CORE)
def test_ignored_and_masked_items_equal_removed_items(score):
    lp, y = predictions(60)
    keep = torch.arange(60) % 3 != 0
    expected = float(score(lp[keep], y[keep]))
    broken = lp.clone()
    broken[~keep] = float("nan")
    assert float(score(broken, y, mask=keep)) == expected
    ignored = torch.where(keep, y, -100)
    assert float(score(broken, ignored)) == expected
    shaped = (broken.reshape(3, 20, 4), ignored.reshape(3, 20))
    assert float(score(*shaped)) == expected
    other = torch.where(keep, y, -1)
    assert float(score(broken, other, ignore_index=-1)) == expected


@pytest.mark.parametrize("score", CORE)
def test_no_items_gives_nan_and_a_warning(score):
    lp, y = predictions(3)
    with pytest.warns(RuntimeWarning, match="no items"):
        assert math.isnan(float(score(lp, torch.full_like(y, -100))))


@pytest.mark.parametrize("score", CORE)
def test_one_item(score):
    assert math.isfinite(float(score(*predictions(1))))


def test_float32_log_probabilities_are_accepted_and_scored_in_float64():
    lp, y = predictions(500, 10)
    assert M.nll(lp.float(), y).dtype == torch.float64
    for score in (M.nll, M.brier, M.accuracy, M.ece):
        assert float(score(lp.float(), y)) == pytest.approx(float(score(lp, y)), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lp, y: (lp.exp(), y), "log_softmax"),
        (lambda lp, y: (lp * 3, y), "sum to"),
        (lambda lp, y: (lp.index_fill(0, torch.tensor([2]), float("nan")), y), "row 2"),
        (lambda lp, y: (lp, y + 1), "not a class"),
        (lambda lp, y: (lp, y.double()), "integers"),
        (lambda lp, y: (lp[:-1], y), "do not fit"),
        (lambda lp, y: (lp, y[:, None]), "do not fit"),
    ],
)
def test_wrong_inputs_are_refused_with_a_sentence(change, message):
    lp, y = predictions(8)
    y[0] = 3
    with pytest.raises(M.InvalidPrediction, match=message):
        M.nll(*change(lp, y))
    with pytest.raises(BayesruleError):
        M.ece(*change(lp, y))


def test_mask_of_another_shape_is_refused():
    lp, y = predictions(8)
    with pytest.raises(M.InvalidPrediction, match="mask"):
        M.nll(lp, y, mask=torch.ones(7))
