"""The table of metric keys: complete, consistent, and right about which way is better."""

import math

import pytest
import torch

from bayesrule import metrics as M


def test_directions_units_and_targets_are_filled_in():
    for key, info in M.DIRECTIONS.items():
        assert info.direction in {"higher", "lower", "target", "none"}, key
        assert info.definition, key
        assert info.unit, key
        assert info.target is None or info.direction == "target", key
        if info.direction == "target" and "{" not in key:
            assert info.target is not None, key


@pytest.mark.parametrize(
    ("key", "template"),
    [
        ("ece20", "ece{M}"),
        ("top3", "top{k}"),
        ("risk80", "risk{c}"),
        ("acc80", "acc{c}"),
        ("cov_r05", "cov_r{r}"),
        ("auroc_msp", "auroc"),
        ("fpr95_id_energy_svhn", "fpr95_id"),
        ("fpr95_far", "fpr95"),
        ("ood/auroc@mc64", "auroc"),
        ("test/acc@mean", "acc"),
        ("auroc_err", "auroc_err"),
    ],
)
def test_concrete_keys_find_their_entry(key, template):
    assert M.metric_info(key) == M.DIRECTIONS[template]


def test_coverage_keys_carry_their_nominal_level():
    assert M.metric_info("picp").target == 0.95
    assert M.metric_info("picp90").target == 0.9
    assert M.metric_info("var_calibration").target == 1.0
    assert M.higher_is_better("picp90") is None


def test_unknown_keys_are_refused():
    for key in ("accuracy", "ece{M}x", "ecex", "nll_"):
        with pytest.raises(KeyError, match="DIRECTIONS lists all keys"):
            M.metric_info(key)


def quality(sharp, n=400):
    """Classification values of predictions whose agreement with the labels grows with `sharp`."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(8, (n,), generator=g)
    noise = torch.randn(n, 8, generator=g, dtype=torch.float64)
    informed = noise + sharp * torch.nn.functional.one_hot(y, 8)
    metric = M.ClassificationMetrics(8, n_null=0)
    metric.update((4 * informed).log_softmax(-1), y)
    return metric.compute()


def test_directions_agree_with_better_and_worse_predictions():
    better, worse = quality(6.0), quality(1.0)
    checked = 0
    for key, value in better.items():
        direction = M.higher_is_better(key)
        if direction is None or math.isclose(value, worse[key]) or math.isnan(value):
            continue
        if key in {"auroc_err", "uce", "mce", "rmsce_debiased"}:
            continue  # not a matter of accuracy alone
        assert (value > worse[key]) == direction, key
        checked += 1
    assert checked >= 15


def test_regression_directions_agree_with_better_and_worse_predictions():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(500, generator=g, dtype=torch.float64)
    noise = torch.randn(500, generator=g, dtype=torch.float64)
    values = []
    for scale in (0.1, 3.0):
        metric = M.RegressionMetrics()
        metric.update(y + scale * noise, torch.full_like(y, 0.1), y)
        values.append(metric.compute())
    better, worse = values
    for key in ("nll", "nll_mm", "rmse", "mae", "crps", "qce", "ence", "interval_score"):
        assert M.higher_is_better(key) is False
        assert better[key] < worse[key], key
    for key in ("picp", "var_calibration"):
        target = M.metric_info(key).target
        assert abs(better[key] - target) < abs(worse[key] - target), key
