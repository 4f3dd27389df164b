"""The Bernoulli family where numbers saturate, and its concrete relaxation."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from bayesrule.errors import Unsupported
from bayesrule.posteriors import (
    Bernoulli,
    PointMass,
    concrete_log_prob,
    concrete_sample,
    concrete_slope,
    half_logit,
    load_posterior,
    save_posterior,
)
from bayesrule.posteriors.bernoulli import sign

F64 = torch.float64
EXTREME = torch.tensor([-1e9, -200.0, -9.0, 0.0, 9.0, 200.0, 1e9])


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_saturated_natural_parameters_stay_finite_and_exact(dtype, tmp_path):
    lam = EXTREME.to(dtype)
    q = Bernoulli({"w": lam})
    flipped = Bernoulli({"w": -lam})
    assert q.entropy().item() == pytest.approx(math.log(2) + 2 * 19 * math.exp(-18), rel=1e-4)
    assert q.kl(q).item() == 0.0
    certain = Bernoulli({"w": lam[[0, -1]]})
    assert certain.log_prob(certain.mode).item() == 0.0
    assert certain.entropy().item() == 0.0
    assert certain.kl(flipped_pair := Bernoulli({"w": -lam[[0, -1]]})).item() == pytest.approx(4e9)
    assert flipped_pair.log_prob(certain.mode).item() == pytest.approx(-4e9)
    draws = certain.sample(gen(), 1000)["w"]
    assert torch.equal(draws, certain.mode["w"].expand(1000, 2))
    # lambda is what is stored: the mean has forgotten it, the algebra and the files have not
    half = (q * q) ** 0.5
    assert torch.equal(half.lam["w"], lam)
    assert torch.equal((q / flipped).lam["w"], 2 * lam)
    save_posterior(q, tmp_path)
    assert torch.equal(load_posterior(tmp_path).lam["w"], lam)


def test_variance_does_not_cancel():
    lam = torch.tensor([0.0, 3.0, 12.0, 40.0], dtype=F64)
    expected = [1 / np.cosh(x) ** 2 for x in lam.tolist()]
    np.testing.assert_allclose(Bernoulli({"w": lam}).variance()["w"], expected, rtol=1e-14)


def test_entropy_gradient_is_minus_the_natural_parameter():
    """d H / d mu = -lambda, the base measure being constant (Khan and Rue, 2023)."""
    mu = torch.tensor([-0.9, -0.2, 0.0, 0.7], dtype=F64, requires_grad=True)
    lam = torch.atanh(mu)
    a = 2 * lam.abs()
    entropy = (torch.nn.functional.softplus(-a) + a * torch.sigmoid(-a)).sum()
    assert entropy.item() == pytest.approx(Bernoulli({"w": lam}).entropy().item(), rel=1e-14)
    (grad,) = torch.autograd.grad(entropy, mu)
    torch.testing.assert_close(grad, -lam, rtol=1e-13, atol=1e-13)


def test_divergence_gradient_is_the_difference_of_natural_parameters():
    """d KL(q || r) / d mu = lambda - lambda_0: the prior's term in the learning rule."""
    mu = torch.tensor([-0.9, -0.2, 0.1, 0.7], dtype=F64)
    lam0 = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=F64)
    prior, h = Bernoulli({"w": lam0}), 1e-6
    for j in range(4):
        e = torch.eye(4, dtype=F64)[j] * h
        up, down = (Bernoulli({"w": torch.atanh(mu + t)}).kl(prior).item() for t in (e, -e))
        assert (up - down) / (2 * h) == pytest.approx(float(torch.atanh(mu)[j] - lam0[j]), abs=1e-8)


def test_only_binary_weights_have_a_probability():
    q = Bernoulli({"w": EXTREME})
    for wrong in (0.0, 0.5, 2.0, float("nan")):
        with pytest.raises(Unsupported, match=r"theta\['w'\] must be binary"):
            q.log_prob({"w": torch.full((7,), wrong)})
    with pytest.raises(Unsupported, match=r"PointMass on R\^P"):
        q.kl(PointMass({"w": EXTREME}))


def test_the_sign_of_zero_is_plus_one():
    assert sign(torch.tensor([-0.0, 0.0, -1e-30, 3.0])).tolist() == [1.0, 1.0, -1.0, 1.0]
    assert torch.equal(Bernoulli.uniform({"w": EXTREME}).mode["w"], torch.ones(7))


# ------------------------------------------------------------ the relaxation


def test_the_noise_is_half_a_logistic_variable_and_finite():
    u = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert torch.isfinite(half_logit(u)).all()
    x = torch.linspace(0.01, 0.99, 99, dtype=F64)
    torch.testing.assert_close(torch.sigmoid(2 * half_logit(x)), x, rtol=1e-12, atol=0)


def test_at_temperature_zero_the_relaxed_draw_is_a_draw():
    lam = torch.tensor([-1.2, -0.1, 0.4, 2.0])
    u = torch.rand(100_000, 4, generator=gen(1))
    w = concrete_sample(lam, half_logit(u), 1e-10)
    assert set(w.unique().tolist()) == {-1.0, 1.0}
    p = Bernoulli({"w": lam}).probs["w"]
    spread = (p * (1 - p) / 100_000).sqrt()
    assert bool((((w > 0).float().mean(0) - p).abs() < 4.5 * spread).all())


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_slope_is_the_derivative_with_respect_to_the_mean(tau):
    mu = torch.linspace(-0.95, 0.95, 9, dtype=F64, requires_grad=True)
    delta = half_logit(torch.rand(9, generator=gen(2), dtype=F64))
    w = concrete_sample(torch.atanh(mu), delta, tau)
    (grad,) = torch.autograd.grad(w.sum(), mu)
    slope = concrete_slope(w, torch.atanh(mu), tau, eps=0.0).detach()
    torch.testing.assert_close(slope, grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_density_of_the_relaxed_draw(tau):
    lam = torch.tensor(0.4, dtype=F64)

    def density(w):
        return concrete_log_prob(torch.tensor(w, dtype=F64), lam, tau).exp().item()

    edge = 1 - 1e-12
    area = integrate.quad(density, -edge, edge, limit=500)[0]
    assert area == pytest.approx(1.0, abs=2e-5)
    draws = concrete_sample(lam, half_logit(torch.rand(200_000, generator=gen(3), dtype=F64)), tau)
    for low, high in ((-0.9, -0.3), (-0.3, 0.2), (0.2, 0.9)):
        share = ((draws > low) & (draws < high)).double().mean().item()
        wanted = integrate.quad(density, low, high)[0]
        assert share == pytest.approx(wanted, abs=4.5 * math.sqrt(wanted / 200_000))
