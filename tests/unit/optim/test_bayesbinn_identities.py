"""The identities of BayesBiNN, against closed forms, autograd and quadrature, in float64."""

import itertools
import math

import pytest
import torch

from bayesrule.errors import Unsupported
from bayesrule.optim import BayesBiNN
from bayesrule.optim.bayesbinn import bayesbinn_update
from bayesrule.posteriors import (
    Bernoulli,
    DiagonalGaussian,
    concrete_sample,
    concrete_slope,
    half_logit,
)

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.randn(shape, generator=gen(seed), dtype=F64)


class Weights(torch.nn.Module):
    """A vector of weights under a loss."""

    def __init__(self, values):
        super().__init__()
        self.w = torch.nn.Parameter(values.clone())

    def closure(self, loss):
        def run():
            value = loss(self.w)
            value.backward()
            return value

        return run


def make(values, **options):
    model = Weights(values)
    options = {"lr": 0.1, "ess": 7.0, "tau": 0.8, "lam_init": 0.5, "binary": "all", **options}
    return model, BayesBiNN(model.named_parameters(), seed=3, **options)


def quadratic(seed=0, n=6):
    A, b = rand(n, n, seed=seed), rand(n, seed=seed + 1)
    A = A + A.T
    return A, b, lambda w: 0.5 * w @ A @ w + b @ w


# ------------------------------------------------------------ the reparameterisation


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_statistic_is_the_chain_rule_through_the_mean(tau):
    """d loss(w(mu)) / d mu by autograd equals s g, the statistic of one sample (eq. 11)."""
    _, _, loss = quadratic()
    u = torch.rand(6, generator=gen(1), dtype=F64)
    model, opt = make(
        rand(6), tau=tau, eps=0.0, lr=1.0, kl_weight=0.0, ess=1.0, noise=lambda like: u.clone()
    )
    lam = opt.posterior().lam["w"]
    mu = torch.tanh(lam).requires_grad_()
    w = concrete_sample(torch.atanh(mu), half_logit(u), tau)
    (expected,) = torch.autograd.grad(loss(w), mu)
    opt.step(model.closure(loss))
    torch.testing.assert_close(lam - opt.posterior().lam["w"], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_linear_loss_gives_the_gradient_of_the_relaxed_objective(tau):
    """E_u[s] = d E_u[w] / d mu by quadrature: the gradient of the relaxed objective, which is
    biased for the true one (it is not 1)."""
    mu, h = torch.linspace(-0.9, 0.9, 7, dtype=F64), 1e-5
    u = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000
    delta = half_logit(u)

    def mean_w(mu):
        return torch.stack([concrete_sample(torch.atanh(m), delta, tau).mean() for m in mu])

    slope = torch.stack(
        [
            concrete_slope(concrete_sample(lam, delta, tau), lam, tau, eps=0.0).mean()
            for lam in torch.atanh(mu)
        ]
    )
    numeric = (mean_w(mu + h) - mean_w(mu - h)) / (2 * h)
    torch.testing.assert_close(slope, numeric, rtol=1e-4, atol=0)
    if tau != 1.0:  # at tau = 1 and mu = 0 the bias happens to be small
        assert (slope - 1.0).abs().max() > 0.05


def test_the_relaxation_s_bias_vanishes_with_the_temperature():
    """For a quadratic loss on {-1, 1}^P the gradient is offdiag(A) mu + b; the relaxed estimate
    comes to it as tau falls, while the loss at the mean has A mu + b, another vector."""
    A, b, _ = quadratic(n=3)
    lam = torch.tensor([0.3, -0.2, 0.8], dtype=F64)
    mu = torch.tanh(lam)
    exact = (A - torch.diag(torch.diagonal(A))) @ mu + b
    u = torch.rand(400_000, 3, generator=gen(5), dtype=F64)
    bias = []
    for tau in (1.0, 0.5, 0.1):
        w = concrete_sample(lam, half_logit(u), tau)
        estimate = (concrete_slope(w, lam, tau, eps=0.0) * (w @ A + b)).mean(0)
        bias.append(float((estimate - exact).norm()))
    assert bias[0] > bias[1] > bias[2]
    assert bias[2] < 0.4 * bias[0]
    assert (A @ mu + b - exact).norm() > 0.1


# ------------------------------------------------------------ the update


def test_fixed_point_of_a_linear_loss_is_the_exact_posterior():
    """Bayes' rule: prior lambda_0, loss N c w; q* has lambda = lambda_0 - N c."""
    c, prior = rand(5, seed=1), Bernoulli({"w": rand(5, seed=2)})
    model, opt = make(rand(5), estimator="mean", lr=0.5)
    opt.set_prior(prior)
    for _ in range(80):
        opt.step(model.closure(lambda w: c @ w))
    expected = prior.lam["w"] - 7.0 * c
    torch.testing.assert_close(opt.posterior().lam["w"], expected, rtol=1e-12, atol=1e-12)


def test_a_step_of_size_one_lands_on_prior_minus_gradient():
    _, _, loss = quadratic()
    lam0 = rand(6, seed=4)
    model, opt = make(rand(6), lr=1.0, estimator="mean")
    opt.set_prior(Bernoulli({"w": lam0}))
    mu = model.w.detach().clone()
    (g,) = torch.autograd.grad(loss(point := mu.requires_grad_()), point)
    opt.step(model.closure(loss))
    torch.testing.assert_close(opt.posterior().lam["w"], lam0 - 7.0 * g, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_steps_are_the_pure_functions(samples, lag, beta):
    """The optimiser's in-place blocks against `bayesbinn_update` and `concrete_slope`."""
    _, _, loss = quadratic()
    draws = [torch.rand(6, generator=gen(i), dtype=F64) for i in range(4 * samples)]
    lam0 = rand(6, seed=8)
    given = iter(draws)
    model, opt = make(
        rand(6), beta=beta, lag_mu=lag, mc_samples=samples, kl_weight=0.3,
        noise=lambda like: next(given).clone(),
    )  # fmt: skip
    opt.set_prior(Bernoulli({"w": lam0}))
    lam = before = opt.posterior().lam["w"]
    momentum, ours = torch.zeros(6, dtype=F64), iter(draws)
    for step in range(1, 5):
        stat = torch.zeros(6, dtype=F64)
        for _ in range(samples):
            w = concrete_sample(lam, half_logit(next(ours)), 0.8).requires_grad_()
            (g,) = torch.autograd.grad(loss(w), w)
            stat += concrete_slope(w.detach(), before if lag else lam, 0.8) * g / samples
        new, momentum = bayesbinn_update(
            lam, momentum, stat, lam0, steps=step, lr=0.1, ess=7.0, beta=beta, kl_weight=0.3
        )
        before, lam = lam, new
        opt.step(model.closure(loss))
        torch.testing.assert_close(opt.posterior().lam["w"], lam, rtol=1e-10, atol=1e-10)
        assert torch.equal(model.w, torch.tanh(opt.posterior().lam["w"]))


def test_without_momentum_the_step_is_the_learning_rule():
    """lambda <- (1 - rho) lambda - rho (N s g - lambda_0)."""
    lam, stat, lam0 = rand(9), rand(9, seed=1), rand(9, seed=2)
    new, _ = bayesbinn_update(lam, torch.zeros(9, dtype=F64), stat, lam0, steps=3, lr=0.2, ess=5.0)
    expected = 0.8 * lam - 0.2 * (5.0 * stat - lam0)
    torch.testing.assert_close(new, expected, rtol=1e-14, atol=1e-14)


# ------------------------------------------------------------ the limit of low temperature


def test_at_temperature_zero_the_increment_is_a_straight_through_step():
    """float32, tau = 1e-10: w = sign(lambda + delta), the increment over s is STE's gradient."""
    A, b = rand(40, 40).float(), rand(40, seed=1).float()
    lam0 = (0.7 * rand(40, seed=2)).float()
    seen = []

    def loss(w):
        seen.append(w.detach().clone())
        return 0.5 * w @ A @ w + b @ w

    u = torch.rand(40, generator=gen(6))
    model, opt = make(
        rand(40).float(), tau=1e-10, kl_weight=0.0, lr=1.0, ess=1.0, noise=lambda like: u.clone()
    )
    opt.set_posterior(Bernoulli({"w": lam0}))
    opt.step(model.closure(loss))
    (w,) = seen
    assert torch.equal(w, torch.where(lam0 + half_logit(u) >= 0, 1.0, -1.0))
    ste = (0.5 * (A + A.T) @ w + b).double()
    increment = (lam0 - opt.posterior().lam["w"]).double()
    slope = 1.0 / (1.0 - torch.tanh(lam0).double() ** 2)
    torch.testing.assert_close(increment, slope * ste, rtol=2e-4, atol=2e-4)
    assert torch.equal(increment.sign(), ste.sign())


def test_the_paper_s_setting_keeps_finite_numbers():
    """tau = 1e-10 and |lambda| growing without bound: nothing overflows, weights stay binary."""
    model, opt = make(rand(50).float(), tau=1e-10, lam_init=10.0, ess=1000.0, lr=1e-4)
    target = rand(50, seed=1).float().sign()
    for _ in range(300):
        opt.step(model.closure(lambda w: (w - target).square().mean()))
    q = opt.posterior()
    assert q.lam["w"].abs().max() > 1e5
    assert torch.isfinite(q.lam["w"]).all()
    assert torch.equal(q.mode["w"], target)
    with opt.sampled_params():
        assert torch.equal(model.w.detach(), target)
    assert q.entropy() < 1e-3


# ------------------------------------------------------------ draws, start, prior


def test_draws_for_prediction_are_binary_with_the_right_frequency():
    lam = torch.tensor([-1.5, -0.3, 0.0, 0.4, 2.0], dtype=F64).repeat(4000, 1)
    model, opt = make(lam)
    opt.set_posterior(Bernoulli({"w": lam}))
    with opt.sampled_params():
        assert set(model.w.unique().tolist()) == {-1.0, 1.0}
        up = (model.w > 0).double().mean(0)
    p = torch.sigmoid(2 * lam[0])
    assert bool(((up - p).abs() < 4.5 * (p * (1 - p) / 4000).sqrt()).all())
    assert torch.equal(model.w, torch.tanh(lam))


def test_it_starts_from_the_signs_of_the_model_s_weights():
    values = torch.tensor([-0.2, 0.0, 0.3, 4.0], dtype=F64)
    model, opt = make(values, lam_init=2.0)
    assert opt.posterior().lam["w"].tolist() == [-2.0, 2.0, 2.0, 2.0]
    assert torch.equal(model.w, torch.tanh(opt.posterior().lam["w"]))


def test_a_posterior_becomes_start_and_prior():
    """What continual learning does: yesterday's posterior is today's prior and today's start."""
    _, _, loss = quadratic()
    model, first = make(rand(6), mc_samples=2)
    for _ in range(5):
        first.step(model.closure(loss))
    q = first.posterior()
    other, second = make(rand(6, seed=9), mc_samples=2)
    second.set_posterior(q)
    second.set_prior(q)
    assert torch.equal(second.prior().lam["w"], q.lam["w"])
    assert torch.equal(other.w, model.w)
    assert second.posterior().kl(second.prior()).item() == 0.0
    assert torch.equal(make(rand(6))[1].prior().lam["w"], torch.zeros(6, dtype=F64))
    # and the prior is part of the saved state
    third, resumed = make(rand(6, seed=9), mc_samples=2)
    resumed.load_state_dict(second.state_dict())
    third.load_state_dict(other.state_dict())
    for optimizer, weights in ((second, other), (resumed, third)):
        for _ in range(3):
            optimizer.step(weights.closure(loss))
    assert torch.equal(second.posterior().lam["w"], resumed.posterior().lam["w"])
    assert torch.equal(resumed.prior().lam["w"], q.lam["w"])


def test_priors_that_do_not_fit_are_refused():
    _, opt = make(rand(4))
    gaussian = DiagonalGaussian({"w": rand(4)}, {"w": torch.ones(4, dtype=F64)})
    for take in (opt.set_prior, opt.set_posterior):
        with pytest.raises(Unsupported, match=r"DiagonalGaussian lives on R\^P"):
            take(gaussian)
        with pytest.raises(Unsupported, match=r"shape of 'w'"):
            take(Bernoulli({"w": rand(3)}))
        with pytest.raises(Unsupported, match=r"'w' is only in the first"):
            take(Bernoulli({"v": rand(4)}))


def test_the_prior_s_term_is_the_gradient_of_the_divergence():
    """No data: lambda moves along d KL / d mu = lambda - lambda_0, and ends at the prior."""
    model, opt = make(rand(4), lr=0.5)
    prior = Bernoulli({"w": rand(4, seed=3)})
    opt.set_prior(prior)
    before = [opt.posterior().kl(prior).item()]
    for _ in range(60):
        opt.step(model.closure(lambda w: 0.0 * w.sum()))
        before.append(opt.posterior().kl(prior).item())
    assert all(a > b - 1e-15 for a, b in itertools.pairwise(before))
    assert before[-1] == pytest.approx(0.0, abs=1e-12)
    assert math.isclose(opt.posterior().lam["w"][0], prior.lam["w"][0], rel_tol=1e-9)
