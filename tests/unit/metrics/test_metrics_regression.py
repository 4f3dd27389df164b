"""Regression scores: limits and refusals (values are compared in tests/reference)."""

import math

import pytest
import torch

from bayesrule import metrics as M


def test_point_predictive():
    mean, y = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
    assert M.crps_gauss(mean, torch.zeros(2), y).tolist() == [0.0, 2.0]
    assert M.crps_ens(mean[None], y).tolist() == M.crps_fair(mean[None], y).tolist() == [0.0, 2.0]
    assert float(M.rmse(mean, y)) == pytest.approx(math.sqrt(2))
    assert float(M.mae(mean, y)) == 1.0


def test_mixture_of_equal_components_is_one_gaussian():
    mean, std = torch.tensor([[0.0, 1.0]]).repeat(4, 1), torch.tensor([[1.0, 2.0]]).repeat(4, 1)
    y = torch.tensor([0.5, -1.0])
    assert float(M.nll_mixture(mean, std, y)) == pytest.approx(
        float(M.nll_gauss(mean[0], std[0], y)), abs=1e-14
    )
    assert float(M.nll_mm(mean, std, y)) == pytest.approx(
        float(M.nll_gauss(mean[0], std[0], y)), abs=1e-14
    )
    assert torch.allclose(M.crps_mixture(mean, std, y), M.crps_gauss(mean[0], std[0], y))
    for one, many in zip(M.gaussian_interval(mean[0], std[0]), M.mixture_interval(mean, std)):
        assert torch.allclose(one, many, atol=1e-12)


def test_shifting_and_scaling_the_target():
    g = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 20, generator=g, dtype=torch.float64)
    std = 0.5 + torch.rand(3, 20, generator=g, dtype=torch.float64)
    y = torch.randn(20, generator=g, dtype=torch.float64)
    scaled = (5 * mean - 2, 5 * std, 5 * y - 2)
    assert float(M.nll_mixture(*scaled)) == pytest.approx(
        float(M.nll_mixture(mean, std, y)) + math.log(5), abs=1e-12
    )
    assert torch.allclose(M.crps_mixture(*scaled), 5 * M.crps_mixture(mean, std, y))
    assert torch.allclose(M.pit_mixture(*scaled), M.pit_mixture(mean, std, y))


def test_interval_ends_count_as_covered():
    lo, hi = torch.zeros(4), torch.ones(4)
    y = torch.tensor([0.0, 1.0, -0.1, 1.1])
    assert float(M.picp(lo, hi, y)) == 0.5
    assert float(M.interval_score(lo, hi, y, 0.5)) == pytest.approx(1 + 4 * 0.2 / 4)
    with pytest.warns(RuntimeWarning, match="no items"):
        assert math.isnan(float(M.picp(lo[:0], hi[:0], y[:0])))
    assert math.isnan(float(M.nmpiw(lo, hi, torch.ones(4))))


def test_uniform_pit_on_the_levels_is_calibrated():
    pit = torch.arange(1, 21, dtype=torch.float64) / 20
    assert float(M.qce(pit)) == pytest.approx(0.0, abs=1e-15)
    assert float(M.qce(torch.zeros(10))) == pytest.approx(0.5)
    assert float(M.qce_central(torch.full((10,), 0.5))) == pytest.approx(0.5)


def test_common_sigma_is_one_bin():
    y = torch.tensor([1.0, -1.0, 2.0, -2.0])
    value = float(M.ence(torch.zeros(4), torch.full((4,), 2.0), y))
    assert value == pytest.approx(abs(2 - math.sqrt(2.5)) / 2)


def test_sharpness_is_the_root_mean_variance():
    std = torch.tensor([1.0, 3.0])
    assert float(M.sharpness(std)) == pytest.approx(math.sqrt(5))
    assert float(M.mean_sigma(std)) == 2.0


def test_std_must_be_positive_and_shapes_must_fit():
    with pytest.raises(M.InvalidPrediction, match="observation noise"):
        M.nll_gauss(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.zeros(2))
    with pytest.raises(M.InvalidPrediction, match="same length"):
        M.rmse(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(M.InvalidPrediction, match="do not fit"):
        M.crps_ens(torch.zeros(5, 2), torch.zeros(3))
