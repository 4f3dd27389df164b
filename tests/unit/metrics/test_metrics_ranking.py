"""OOD detection, selective prediction and the uncertainty split: limits and invariances."""

import math

import pytest
import torch

from bayesrule import metrics as M

RANKING = (M.auroc, M.aupr_out, M.aupr_in, M.fpr95, M.fpr95_id)
SELECTIVE = (M.aurc, M.e_aurc, M.augrc, M.risk_at_coverage, M.coverage_at_risk)
TRANSFORMS = (
    lambda s: 1e3 * s,
    lambda s: s - 1e3,
    lambda s: 1e3 * s - 1e3,
    torch.exp,
    lambda s: s**3,
)


def draws(n, seed, ties=True):
    g = torch.Generator().manual_seed(seed)
    s = torch.randn(n, generator=g, dtype=torch.float64)
    return (4 * s).round() / 4 if ties else s


def samples(n_samples=7, n=30, n_classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n_samples, n, n_classes, generator=g, dtype=torch.float64)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("ties", [False, True])
def test_increasing_transforms_change_no_ranking(transform, ties):
    s_id, s_ood = draws(70, 0, ties), draws(50, 1, ties) + 0.5
    for value in RANKING:
        assert float(value(transform(s_id), transform(s_ood))) == float(value(s_id, s_ood))
    error = (draws(70, 2) > 0.3).double()
    for value in SELECTIVE:
        assert float(value(transform(s_id), error)) == float(value(s_id, error))


def test_perfect_reversed_and_constant_scores():
    low, high = torch.zeros(8), torch.ones(5)
    assert [float(f(low, high)) for f in RANKING] == [1, 1, 1, 0, 0]
    assert float(M.auroc(high, low)) == 0.0
    assert float(M.fpr95(high, low)) == 1.0
    same = torch.zeros(5)
    assert float(M.auroc(low, same)) == 0.5
    assert float(M.aupr_out(low, same)) == pytest.approx(5 / 13)
    assert float(M.aupr_in(low, same)) == pytest.approx(8 / 13)


def test_95_per_cent_exactly_is_enough():
    s_ood = torch.arange(20.0)
    s_id = torch.tensor([0.5, 0.5, 1.5, 7.0])
    assert float(M.fpr95(s_id, s_ood)) == 0.5  # threshold 1: 19 of 20 found, 1.5 and 7 flagged
    assert float(M.fpr95(s_id, s_ood, tpr=1.0)) == 1.0


def test_auroc_is_symmetric_and_aupr_is_not():
    s_id, s_ood = draws(70, 0), draws(50, 1) + 0.5
    assert float(M.auroc(s_id, s_ood)) == pytest.approx(float(M.auroc(-s_ood, -s_id)), abs=1e-15)
    assert float(M.aupr_out(s_id, s_ood)) == pytest.approx(float(M.aupr_in(-s_ood, -s_id)))
    assert float(M.aupr_out(s_id, s_ood)) != pytest.approx(float(M.aupr_in(s_id, s_ood)))


@pytest.mark.parametrize("value", RANKING)
def test_missing_group_is_nan(value):
    with pytest.warns(RuntimeWarning, match="no items"):
        assert math.isnan(float(value(torch.zeros(3), torch.zeros(0))))
    with pytest.warns(RuntimeWarning, match="no items"):
        assert math.isnan(float(value(torch.zeros(0), torch.zeros(3))))
    with pytest.raises(M.InvalidPrediction, match="NaN"):
        value(torch.tensor([0.0, float("nan")]), torch.zeros(3))


def test_scores_by_hand():
    lp = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    assert float(M.msp_score(lp)) == pytest.approx(0.3)
    assert float(M.entropy_score(lp)) == pytest.approx(
        -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    )
    logits = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]], dtype=torch.float64)
    expected = -2.0 * math.log(math.exp(1.0) + math.exp(0.5))
    assert float(M.energy_score(logits, temperature=2.0)) == pytest.approx(expected)
    with pytest.raises(M.InvalidPrediction, match="temperature"):
        M.energy_score(logits, temperature=0.0)


def test_selective_prediction_by_hand():
    kappa = torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
    error = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert M.risk_coverage_curve(kappa, error).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert float(M.aurc(kappa, error)) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert float(M.e_aurc(kappa, error)) == pytest.approx((1 / 2 + 1 / 3) / 4)
    assert float(M.augrc(kappa, error)) == pytest.approx(3 / 16)
    assert float(M.risk_at_coverage(kappa, error, 0.5)) == 0.5
    assert float(M.coverage_at_risk(kappa, error, 0.25)) == 1.0  # risk is not monotone
    assert float(M.coverage_at_risk(kappa, error, 0.05)) == 0.25
    assert float(M.coverage_at_risk(-kappa, 1 - error, 0.05)) == 0.0


def test_no_errors_and_only_errors():
    kappa = draws(20, 3)
    for value in (M.aurc, M.e_aurc, M.augrc, M.risk_at_coverage):
        assert float(value(kappa, torch.zeros(20))) == 0.0
    assert float(M.aurc(kappa, torch.ones(20))) == pytest.approx(1.0)
    assert float(M.e_aurc(kappa, torch.ones(20))) == pytest.approx(0.0, abs=1e-15)
    assert float(M.coverage_at_risk(kappa, torch.zeros(20), 0.0)) == 1.0


def test_constant_confidence_has_the_error_rate_at_every_coverage():
    error = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    risk = M.risk_coverage_curve(torch.zeros(5), error)
    assert risk.tolist() == pytest.approx([0.4] * 5)


@pytest.mark.parametrize("value", SELECTIVE)
def test_selective_values_of_nothing_are_nan(value):
    with pytest.warns(RuntimeWarning, match="no items"):
        assert math.isnan(float(value(torch.zeros(0), torch.zeros(0))))


def test_split_adds_up_and_mutual_information_is_not_negative():
    split = M.decompose(samples())
    assert float((split.total - split.aleatoric - split.epistemic).abs().max()) < 1e-12
    assert float(split.epistemic.min()) > 0
    predictive = M.predictive_log_probs(samples())
    assert torch.allclose(M.entropy(predictive), split.total, atol=1e-12, rtol=0)
    assert torch.equal(M.mutual_information(samples()), split.epistemic)


def test_split_by_hand():
    p = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    split = M.decompose(p.log())
    assert [float(part) for part in split] == pytest.approx([math.log(2), 0.0, math.log(2)])
    normalised = M.decompose(p.log(), normalised=True)
    assert float(normalised.epistemic) == pytest.approx(1.0)
    assert float(M.variation_ratio(p.log())) == 0.5
    weighted = M.decompose(p.log(), torch.tensor([1.0, 0.0]))
    assert float(weighted.total) == float(weighted.epistemic) == 0.0


def test_one_or_equal_samples_have_no_epistemic_part():
    one = samples(1)
    assert M.decompose(one).epistemic.tolist() == [0.0] * 30
    assert torch.equal(M.predictive_log_probs(one), one[0])
    many = samples(1, 2000).expand(3, -1, -1)  # rounding alone would go below zero here
    assert float(M.decompose(many).epistemic.min()) == 0.0
    equal = one.expand(5, -1, -1)
    assert float(M.decompose(equal).epistemic.max()) < 1e-15
    assert M.variation_ratio(equal).tolist() == [0.0] * 30


def test_float32_samples_never_give_a_negative_mutual_information():
    lp = samples(3).float() * 1.0
    nearly = torch.stack([lp[0], lp[0] + 1e-7 * lp[1], lp[0]])
    assert float(M.decompose(nearly).epistemic.min()) >= 0.0


def test_predictive_is_the_mean_of_probabilities_not_of_logits():
    lp = samples()
    assert torch.allclose(M.predictive_log_probs(lp).exp(), lp.exp().mean(0), atol=1e-15, rtol=0)
    zeros = torch.tensor([[[0.0, -math.inf]], [[0.0, -math.inf]]], dtype=torch.float64)
    assert M.predictive_log_probs(zeros).tolist() == [[0.0, -math.inf]]


def test_split_refuses_what_is_not_a_set_of_distributions():
    with pytest.raises(M.InvalidPrediction, match="sum to"):
        M.decompose(torch.zeros(2, 3, 4))
    with pytest.raises(M.InvalidPrediction, match="at least one sample"):
        M.decompose(torch.zeros(0, 3, 4))
    with pytest.raises(M.InvalidPrediction, match="weights"):
        M.decompose(samples(2), torch.tensor([0.5, 0.6]))


def test_law_of_total_variance():
    g = torch.Generator().manual_seed(0)
    mean = torch.randn(6, 10, generator=g, dtype=torch.float64)
    std = 0.1 + torch.rand(6, 10, generator=g, dtype=torch.float64)
    split = M.variance_decomposition(mean, std)
    assert torch.allclose(split.epistemic, mean.square().mean(0) - mean.mean(0).square())
    assert torch.allclose(split.total, split.aleatoric + split.epistemic, atol=1e-12, rtol=0)
    assert torch.allclose(M.moment_match(mean, std)[1].square(), split.total)
