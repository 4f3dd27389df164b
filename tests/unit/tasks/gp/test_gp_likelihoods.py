"""Observation models: expectations and derivatives against quadrature, sums and differences."""

import math

import numpy as np
import pytest
import torch
from gp_cases import KINDS, data, observation
from scipy import integrate, stats

from bayesrule.errors import ConfigError
from bayesrule.tasks.gp.likelihoods import LIKELIHOODS, LogPoisson, Softmax, check_likelihood

ONE_LATENT = sorted(set(KINDS) - {"softmax"})


def log_density(name, y, f, noise=0.2):
    """log p(y | f), by SciPy."""
    scale = math.sqrt(noise)
    return {
        "gaussian": lambda: stats.norm.logpdf(y, f, scale),
        "student_t": lambda: stats.t.logpdf(y, 4.0, f, scale),
        "poisson": lambda: stats.poisson.logpmf(y, np.exp(f)),
        "bernoulli_logit": lambda: -np.logaddexp(0.0, -(2 * y - 1) * f),
        "bernoulli_probit": lambda: stats.norm.logcdf((2 * y - 1) * f),
    }[name]()


def marginals(n, seed=3):
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(1, n, generator=g, dtype=torch.float64)
    return mean, 0.05 + 0.4 * torch.rand(1, n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", ONE_LATENT)
def test_expectation_and_predictive_are_the_integrals(name):
    _, y = data(name, n=5)
    mean, var = marginals(5)
    obs = observation(name)
    expected = obs.expected_log_prob(y, mean, var, 0)
    predictive = obs.log_predictive(y, mean, var, 0, 1)
    # 20 nodes are exact for polynomials of degree 39, not for the tails of Student's t
    tolerance = {"student_t": 2e-3}.get(name, 1e-6)
    for n in range(5):
        m, s, target = mean[0, n].item(), var[0, n].sqrt().item(), y[n].item()

        def weighted(f, fn, m=m, s=s, target=target):
            return stats.norm.pdf(f, m, s) * fn(log_density(name, target, f))

        limits = (m - 9 * s, m + 9 * s)
        value = integrate.quad(weighted, *limits, (lambda v: v,), epsabs=1e-12)[0]
        assert expected[n].item() == pytest.approx(value, abs=tolerance)
        value = integrate.quad(weighted, *limits, (np.exp,), epsabs=1e-12)[0]
        assert predictive[n].item() == pytest.approx(math.log(value), abs=tolerance)


@pytest.mark.parametrize("name", ONE_LATENT)
def test_derivatives_are_those_of_the_expectation(name):
    _, y = data(name, n=6)
    mean, var = marginals(6)
    obs, h = observation(name), 1e-5
    g1, g2 = obs.gradients(y, mean, var, 0)

    def value(m, v):
        return obs.expected_log_prob(y, m, v, 0)

    by_mean = (value(mean + h, var) - value(mean - h, var)) / (2 * h)
    by_var = (value(mean, var + h) - value(mean, var - h)) / (2 * h)
    assert torch.allclose(g1[0], by_mean, atol=1e-7)
    assert torch.allclose(g2[0], by_var, atol=1e-7)
    assert obs.log_concave == (name != "student_t")
    if obs.log_concave:
        assert (g2 < 0).all()


def test_poisson_is_in_closed_form():
    """E = y mu - exp(mu + v/2) - log y!, g1 = y - e, g2 = -e/2; quadrature agrees to 1e-10."""
    y = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)
    mean, var = marginals(4)
    obs = observation("poisson")
    e = (mean + 0.5 * var).exp()
    g1, g2 = obs.gradients(y, mean, var, 0)
    assert torch.allclose(g1, y - e, atol=1e-14)
    assert torch.allclose(g2, -0.5 * e, atol=1e-14)
    closed = obs.expected_log_prob(y, mean, var, 0)
    by_quadrature = super(LogPoisson, obs.likelihood).expected_log_prob(
        y, torch.distributions.Normal(mean[0], var[0].sqrt())
    )
    assert torch.allclose(closed, by_quadrature, atol=1e-10)


def test_softmax_derivatives_are_those_of_the_expectation():
    """The mean's exactly (same draws), the variance's in expectation (Price's theorem)."""
    obs = Softmax(3, samples=40_000)
    y = torch.tensor([0, 2])
    g = torch.Generator().manual_seed(1)
    mean = torch.randn(3, 2, generator=g, dtype=torch.float64)
    var = 0.2 + torch.rand(3, 2, generator=g, dtype=torch.float64)
    g1, g2 = obs.gradients(y, mean, var, seed=5)
    m, v = mean.clone().requires_grad_(), var.clone().requires_grad_()
    total = obs.expected_log_prob(y, m, v, seed=5).sum()
    by_mean, by_var = torch.autograd.grad(total, (m, v))
    assert torch.allclose(g1, by_mean, atol=1e-12)
    assert (g2 < 0).all()
    assert torch.allclose(g2, by_var, atol=0.01)


def test_softmax_of_two_classes_is_logistic_of_the_difference():
    obs = Softmax(2, samples=100_000)
    logit = observation("bernoulli_logit")
    mean = torch.tensor([[0.4], [-0.3]], dtype=torch.float64)
    var = torch.tensor([[0.5], [0.8]], dtype=torch.float64)
    for label in (0, 1):
        sign = 1.0 - 2.0 * label
        both = obs.log_predictive(torch.tensor([label]), mean, var, 2, 100_000)
        one = logit.log_predictive(
            torch.ones(1, dtype=torch.float64), sign * (mean[:1] - mean[1:]), var.sum(0)[None], 0, 1
        )
        assert both.item() == pytest.approx(one.item(), abs=0.01)


def test_draws_depend_on_the_seed_alone():
    obs, (_, y) = observation("softmax"), data("softmax", n=4)
    mean, var = torch.zeros(3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again, other = (obs.expected_log_prob(y, mean, var, seed) for seed in (7, 7, 8))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["regression", "classification", "lm"])
@pytest.mark.parametrize("n_outputs", [1, 2, 4])
@pytest.mark.parametrize("name", ["auto", *LIKELIHOODS])
def test_a_likelihood_fits_the_data_or_is_refused(name, kind, n_outputs):
    fits = {
        "regression": n_outputs == 1 and name in ("auto", "gaussian", "student_t", "poisson"),
        "classification": name in ("auto", "softmax") or (n_outputs < 3 and "bernoulli" in name),
        "lm": False,
    }[kind]
    if fits:
        check_likelihood(name, kind, n_outputs)
        return
    with pytest.raises(ConfigError) as refusal:
        check_likelihood(name, kind, n_outputs)
    assert len(str(refusal.value).split()) >= 8
