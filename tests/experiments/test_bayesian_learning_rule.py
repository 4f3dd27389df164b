"""What the studies of the Bayesian learning rule compute, against quadrature and enumeration."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from bayesrule.config import locate, root_dir


def paper(name):
    return locate(f"experiments.bayesian-learning-rule.{name}", root=root_dir())


@pytest.mark.parametrize("var", [0.04, 1.0, 4.0])
def test_the_smoothed_loss_is_the_expectation(var):
    smoothed = paper("flat.smoothed_loss")
    grid = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64)
    loss = smoothed(grid, 0.0)
    for m in (-2.1, 0.0, 1.7):
        density = stats.norm(m, var**0.5).pdf(grid.numpy())
        expected = np.trapezoid(density * loss.numpy(), grid.numpy())
        found = smoothed(torch.tensor([m], dtype=torch.float64), var).item()
        assert found == pytest.approx(expected, abs=1e-9)


def test_descent_goes_where_its_objective_leads():
    flat = paper("flat.FlatMinima")
    point = flat(var=0.0, rho=0.002, steps=300).path(3)
    bayes = flat(var=1.0, rho=0.2, steps=1500).path(3)
    assert point[0] == bayes[0] == pytest.approx(-2.1, abs=0.011)
    assert point[-1] == pytest.approx(-2.0, abs=1e-3)
    assert bayes[-1] == pytest.approx(2.0, abs=5e-3)


def test_squares_of_minibatch_gradients_count_the_noise():
    """E[ghat^2] and E[(N/M) sum g_i^2] over all batches of two of five items, by enumeration."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal((5, 3)) + 0.3
    batches = list(itertools.combinations(range(5), 2))
    sq = np.mean([(2.5 * g[list(b)].sum(0)) ** 2 for b in batches], 0)
    gn = np.mean([2.5 * (g[list(b)] ** 2).sum(0) for b in batches], 0)
    h = (g**2).sum(0)
    np.testing.assert_allclose(gn, h)
    compare = paper("curvature.CurvatureBias")(False, [2], 4000, 1.0)._compare
    found = compare(torch.from_numpy(g), 2, torch.Generator().manual_seed(0))
    assert found["curvature/gn_ratio_M2"] == pytest.approx(1.0, abs=0.03)
    assert found["curvature/sqgrad_ratio_M2"] == pytest.approx(np.median(sq / h), rel=0.05)
    error = abs(np.log10(found["curvature/sqgrad_ratio_M2"]))
    assert found["curvature/sqgrad_error_M2"] == pytest.approx(error)


def test_modes_are_counted_once_and_a_broken_mixture_finds_none():
    Modes = paper("modes.Modes")
    options = {"rho": 0.1, "steps": 40, "draws": 10}
    found, curves = Modes(
        "rule", delta=False, positive_definite=True, weights=False, **options
    )._answer(0)
    assert found["modes/failed"] == 0.0
    assert 1 <= found["modes/found_loosely"] <= 3
    assert len(curves["components"]["precisions"]) == 3
    broken, _ = Modes(
        "rule", delta=False, positive_definite=False, weights=True, rho=3.0, steps=20, draws=2
    )._answer(0)
    assert broken["modes/failed"] == 1.0
    assert broken["modes/found"] == broken["modes/all"] == 0.0


def test_the_fixed_point_is_approached():
    curve = paper("fixed_point.FixedPoint")(rho=0.2, steps=60, start_prec=1.0).residuals(1)
    assert curve["step"][0] == 0
    assert curve["step"][-1] == 60
    assert curve["grad"][-1] < 1e-3 * curve["grad"][0]
    assert curve["hess"][-1] < 1e-2 * curve["hess"][0]
