"""Regression metrics against properscoring, scipy, torchmetrics and quadrature."""

import math

import metric_oracles as oracle
import numpy as np
import properscoring
import pytest
import torch
from scipy import integrate, optimize, stats
from torchmetrics.functional.regression import continuous_ranked_probability_score

from bayesrule import metrics as M


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    mean = rng.normal(size=(5, 40))
    std = rng.uniform(0.3, 1.5, size=(5, 40))
    y = rng.normal(size=40) * 1.3
    return torch.tensor(mean), torch.tensor(std), torch.tensor(y)


def test_gaussian_scores_equal_scipy_and_properscoring(data):
    mean, std, y = data[0][0], data[1][0], data[2]
    logpdf = stats.norm.logpdf(y.numpy(), mean.numpy(), std.numpy())
    assert float(M.nll_gauss(mean, std, y)) == pytest.approx(-logpdf.mean(), abs=1e-12)
    theirs = properscoring.crps_gaussian(y.numpy(), mean.numpy(), std.numpy())
    np.testing.assert_allclose(M.crps_gauss(mean, std, y).numpy(), theirs, atol=1e-12)
    lo, hi = stats.norm.interval(0.9, mean.numpy(), std.numpy())
    ours = M.gaussian_interval(mean, std, 0.1)
    np.testing.assert_allclose(ours[0].numpy(), lo, atol=1e-12)
    np.testing.assert_allclose(ours[1].numpy(), hi, atol=1e-12)
    cdf = stats.norm.cdf(y.numpy(), mean.numpy(), std.numpy())
    np.testing.assert_allclose(M.pit_gauss(mean, std, y).numpy(), cdf, atol=1e-12)


def test_ensemble_crps_equals_properscoring_and_torchmetrics(data):
    samples, y = data[0], data[2]
    theirs = properscoring.crps_ensemble(y.numpy(), samples.numpy().T)
    np.testing.assert_allclose(M.crps_ens(samples, y).numpy(), theirs, atol=1e-12)
    tm = continuous_ranked_probability_score(samples.T, y)
    assert float(M.crps_ens(samples, y).mean()) == pytest.approx(float(tm), abs=1e-6)
    x = samples.numpy()
    pairs = np.abs(x[:, None] - x[None]).sum((0, 1))
    fair = np.abs(x - y.numpy()).mean(0) - pairs / (2 * 5 * 4)
    np.testing.assert_allclose(M.crps_fair(samples, y).numpy(), fair, atol=1e-12)


def test_mixture_scores_equal_quadrature_and_root_finding(data):
    mean, std, y = (t[..., :6] for t in data)
    crps = M.crps_mixture(mean, std, y)
    pit = M.pit_mixture(mean, std, y)
    for n in range(6):
        mu, sigma, target = mean[:, n].numpy(), std[:, n].numpy(), float(y[n])

        def cdf(t, mu=mu, sigma=sigma):
            return stats.norm.cdf(t, mu, sigma).mean()

        left = integrate.quad(lambda t: cdf(t) ** 2, -15, target, epsabs=1e-11, limit=200)[0]
        right = integrate.quad(lambda t: (1 - cdf(t)) ** 2, target, 15, epsabs=1e-11, limit=200)[0]
        assert float(crps[n]) == pytest.approx(left + right, abs=1e-8)
        assert float(pit[n]) == pytest.approx(cdf(target), abs=1e-12)
        for p in (0.025, 0.5, 0.95):
            root = optimize.brentq(lambda t, p=p: cdf(t) - p, -15, 15, xtol=1e-13)
            assert float(M.mixture_quantile(mean, std, p)[n]) == pytest.approx(root, abs=1e-9)
    density = stats.norm.pdf(y.numpy(), mean.numpy(), std.numpy()).mean(0)
    assert float(M.nll_mixture(mean, std, y)) == pytest.approx(-np.log(density).mean(), abs=1e-12)
    total = np.sqrt((std.numpy() ** 2).mean(0) + mean.numpy().var(0))
    matched = stats.norm.logpdf(y.numpy(), mean.numpy().mean(0), total)
    assert float(M.nll_mm(mean, std, y)) == pytest.approx(-matched.mean(), abs=1e-12)


def test_quantiles_of_separated_components():
    mean = torch.tensor([[-1e3], [1e3]], dtype=torch.float64)
    std = torch.full_like(mean, 1e-3)
    for p in (0.1, 0.9):
        x = M.mixture_quantile(mean, std, p)
        assert float(M.pit_mixture(mean, std, x)) == pytest.approx(p, abs=1e-9)


def test_crps_of_a_mixture_of_one_component_is_the_gaussian_one(data):
    mean, std, y = data
    one = M.crps_mixture(mean[:1], std[:1], y)
    np.testing.assert_allclose(one.numpy(), M.crps_gauss(mean[0], std[0], y).numpy(), atol=1e-12)


def test_ensemble_crps_goes_to_the_gaussian_one():
    g = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([1.0, 0.5, 2.0])
    y = torch.tensor([0.3, 2.0, -2.0])
    x = mean + std * torch.randn(20000, 3, generator=g, dtype=torch.float64)
    exact = M.crps_gauss(mean, std, y)
    np.testing.assert_allclose(M.crps_ens(x, y).numpy(), exact.numpy(), atol=0.03)
    assert abs(float((M.crps_fair(x, y) - exact).mean())) < 0.02


def test_intervals_and_levels_by_loops(data):
    mean, std, y = data[0][0], data[1][0], data[2]
    lo, hi = M.gaussian_interval(mean, std, 0.5)
    inside = [lo[n] <= y[n] <= hi[n] for n in range(40)]
    assert 0 < sum(inside) < 40
    assert float(M.picp(lo, hi, y)) == pytest.approx(sum(inside) / 40)
    score = 0.0
    for n in range(40):
        below, above = max(0.0, float(lo[n] - y[n])), max(0.0, float(y[n] - hi[n]))
        score += float(hi[n] - lo[n]) + 2 / 0.5 * (below + above)
    assert float(M.interval_score(lo, hi, y, 0.5)) == pytest.approx(score / 40, abs=1e-12)
    width = float((hi - lo).mean())
    assert float(M.mpiw(lo, hi)) == pytest.approx(width, abs=1e-12)
    assert float(M.nmpiw(lo, hi, y)) == pytest.approx(width / float(y.max() - y.min()), abs=1e-12)
    pit = M.pit_gauss(mean, std, y)
    levels = [0.05 * k for k in range(1, 20)]
    one = np.mean([abs(t - np.mean([float(p) <= t for p in pit])) for t in levels])
    two = np.mean([abs(t - np.mean([abs(2 * float(p) - 1) <= t for p in pit])) for t in levels])
    assert float(M.qce(pit)) == pytest.approx(one, abs=1e-12)
    assert float(M.qce_central(pit)) == pytest.approx(two, abs=1e-12)
    z2 = ((y - mean) / std).square().mean()
    assert float(M.var_calibration(mean, std, y)) == pytest.approx(float(z2), abs=1e-12)
    for n_bins in (1, 3, 10):
        expected = oracle.expected_normalised_calibration_error(
            mean.numpy(), std.numpy(), y.numpy(), n_bins
        )
        assert float(M.ence(mean, std, y, n_bins)) == pytest.approx(expected, abs=1e-12)


def test_sample_quantiles_and_pit(data):
    samples, y = data[0], data[2].clone()
    y[0] = samples[2, 0]
    lo, hi = M.sample_interval(samples, 0.1)
    expected = np.quantile(samples.numpy(), [0.05, 0.95], axis=0)
    np.testing.assert_allclose(torch.stack([lo, hi]).numpy(), expected, atol=1e-12)
    pit = [
        sum((x < t) + 0.5 * (x == t) for x in column) / 5
        for column, t in zip(samples.T.tolist(), y.tolist())
    ]
    np.testing.assert_allclose(M.pit_samples(samples, y).numpy(), pit, atol=1e-12)


def test_gaussian_draws_are_calibrated():
    g = torch.Generator().manual_seed(5)
    n = 20000
    mean = torch.randn(n, generator=g, dtype=torch.float64)
    std = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    y = mean + std * torch.randn(n, generator=g, dtype=torch.float64)
    for alpha in (0.05, 0.1, 0.5):
        coverage = float(M.picp(*M.gaussian_interval(mean, std, alpha), y))
        assert abs(coverage - (1 - alpha)) < 4 * math.sqrt(alpha * (1 - alpha) / n)
    pit = M.pit_gauss(mean, std, y)
    assert float(M.qce(pit)) < 0.01 < float(M.qce(pit[:100]))
    assert float(M.qce(M.pit_gauss(mean, 2 * std, y))) > 0.05
    assert float(M.var_calibration(mean, std, y)) == pytest.approx(1.0, abs=0.05)
    assert float(M.ence(mean, std, y)) < 0.03 < 0.4 < float(M.ence(mean, 2 * std, y))
