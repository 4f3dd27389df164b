"""The rule's identities: its two Gaussian forms, mirror descent, fixed points, limits of rows."""

import itertools

import numpy as np
import pytest
import torch
from scipy import optimize

from bayesrule.posteriors import (
    Bernoulli,
    DiagonalGaussian,
    FullGaussian,
    Mixture,
    Natural,
    concrete_sample,
    concrete_slope,
    half_logit,
)
from bayesrule.rule import (
    Approximations,
    BayesianLearningRule,
    BernoulliGradient,
    ComponentGradient,
    GridGradient,
    InNaturalCoordinates,
    LossGradient,
    QuadratureGradient,
    StepSizes,
    function_loss,
    problems,
)
from bayesrule.rule.mixture_model import FullMixture, UnitMixture
from bayesrule.rule.mixtures import Derivatives, mixture_log_density
from bayesrule.rule.oracles import inference as oracles
from bayesrule.rule.problems import GMM_PRIOR


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def rel(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


# ------------------------------------------------------------------------- Gaussian forms


@pytest.mark.parametrize("delta", [False, True])
def test_the_two_forms_of_the_gaussian_rule_agree(delta):
    gradient = QuadratureGradient(problems.logistic(6))
    q = FullGaussian({"theta": problems.start(3, 6)}, 20 * problems.random_precision(3, 6))
    how, steps = Approximations(delta=delta), StepSizes(0.2)
    moments = BayesianLearningRule(FullGaussian, gradient, steps, how)
    natural = BayesianLearningRule(FullGaussian, InNaturalCoordinates(gradient), steps, how)
    one, two = moments.start(q), natural.start(q)
    for _ in range(15):
        one, two = moments.step(one), natural.step(two)
        p, r = moments.posterior(one), natural.posterior(two)
        assert rel(p.precision, r.precision) < 1e-12
        assert rel(p.mean["theta"], r.mean["theta"]) < 1e-12


def test_the_new_precision_moves_the_mean():
    """With the old one the two forms differ at once: order matters."""
    gradient = QuadratureGradient(problems.logistic(6))
    q = FullGaussian({"theta": problems.start(3, 6)}, 20 * problems.random_precision(3, 6))
    rule = BayesianLearningRule(FullGaussian, gradient, StepSizes(0.2))
    state = rule.step(rule.start(q))
    g, _ = gradient.moments(q.mean["theta"], q.precision, Approximations(), None, curvature=True)
    old = q.mean["theta"] - 0.2 * torch.linalg.solve(q.precision, g)
    new = q.mean["theta"] - 0.2 * torch.linalg.solve(state.scale, g)
    assert rel(state.mean, new) < 1e-14
    assert rel(state.mean, old) > 1e-3


def test_mirror_descent_solves_the_same_problem():
    """mu <- argmin <grad_mu L, mu> + KL(q_mu || q_now) / rho, one dimension, solved by SciPy."""
    target = function_loss(lambda theta: (theta[0] - 1.0) ** 4 + 0.5 * theta[0] ** 2)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(20))
    weights = weights / weights.sum()
    m, s, rho = 0.3, 2.0, 0.1
    points = m + nodes / np.sqrt(s)
    g = float(sum(w * target.grad(p.reshape(1))[0] for w, p in zip(weights, points)))
    H = float(sum(w * target.hess(p.reshape(1))[0, 0] for w, p in zip(weights, points)))
    # gradient of L = E[lbar] - H(q) in mu: grad_mu E + lambda
    slope1, slope2 = g - H * m + s * m, 0.5 * H - 0.5 * s

    def objective(x):
        m_new, v_new = x[0], np.exp(x[1])
        inner = slope1 * m_new + slope2 * (v_new + m_new**2)
        kl = 0.5 * (s * v_new + s * (m - m_new) ** 2 - 1 - np.log(s * v_new))
        return inner + kl / rho

    found = optimize.minimize(objective, [m, -np.log(s)], method="BFGS", options={"gtol": 1e-10}).x
    expected_s = (1 - rho) * s + rho * H
    expected_m = m - rho * g / expected_s
    assert found[0] == pytest.approx(expected_m, abs=1e-6)
    assert np.exp(-found[1]) == pytest.approx(expected_s, rel=1e-6)


def test_a_fixed_point_has_matching_natural_gradients():
    """lambda* = grad_mu E[-lbar]: E[grad] = 0 and S = E[hess] (500 steps of 0.1)."""
    gradient = QuadratureGradient(problems.logistic(10))
    rule = BayesianLearningRule(FullGaussian, gradient, StepSizes(0.1))
    q = FullGaussian({"theta": problems.start(0, 10, sd=1.0)}, 10 * torch.eye(10).double())
    state = rule.run(rule.start(q), 500)[-1]
    g, H = gradient.moments(state.mean, state.scale, Approximations(), None, curvature=True)
    assert g.abs().max() < 1e-8
    assert (H - state.scale).abs().max() < 1e-8


def test_sites_and_the_joint_rule_take_the_same_steps():
    """CVI with sites at 0 = the rule from the prior, at the same rho."""
    from bayesrule.rule.recipes import find_recipe

    recipe = find_recipe("cvi")
    sites = recipe.ours(recipe, 0)
    rule = BayesianLearningRule(
        FullGaussian, QuadratureGradient(problems.logistic(10)), recipe.steps
    )
    prior = FullGaussian({"theta": torch.zeros(10).double()}, torch.eye(10).double())
    for t, state in enumerate(rule.run(rule.start(prior), len(sites) // 2)):
        assert rel(sites[2 * t], state.mean) < 1e-11
        assert rel(sites[2 * t + 1], state.scale) < 1e-11


# ------------------------------------------------------------------------- binary weights


A = f64([0.9, -0.4, 0.7], [-0.4, -1.1, 0.3], [0.7, 0.3, 0.8])
b = f64(0.5, -0.2, 0.1)
LAM = f64(0.3, -0.2, 0.8)


def quadratic():
    return function_loss(lambda w: 0.5 * w @ A @ w + b @ w)


def bernoulli_gradient(**how):
    gradient = BernoulliGradient(quadratic())
    return gradient.grad_mu(Bernoulli({"w": LAM}), Approximations(**how), None).nat1["w"]


def test_the_exact_gradient_of_a_quadratic_leaves_out_its_diagonal():
    mu = torch.tanh(LAM)
    exact = (A - torch.diag(A.diagonal())) @ mu + b
    torch.testing.assert_close(bernoulli_gradient(), exact, rtol=0, atol=1e-14)
    at_mean = A @ mu + b
    torch.testing.assert_close(bernoulli_gradient(delta=True), at_mean, rtol=0, atol=1e-14)
    assert (exact - at_mean).abs().min() > 0.1  # the rows of STE and BayesBiNN differ
    at_sign = A @ f64(1, -1, 1) + b
    for temp in (0.0, 1e-6):
        found = bernoulli_gradient(delta=True, temp=temp)
        torch.testing.assert_close(found, at_sign, rtol=0, atol=1e-14)


def test_the_relaxed_gradient_is_exact_as_the_temperature_falls():
    g = torch.Generator().manual_seed(0)
    delta = half_logit(torch.rand(400_000, 3, generator=g, dtype=torch.float64))
    exact = bernoulli_gradient()
    errors = []
    for tau in (1.0, 0.2, 0.05):
        w = concrete_sample(LAM, delta, tau)
        each = concrete_slope(w, LAM, tau) * (w @ A + b)
        standard_error = float(each.std(0).max()) / 400_000**0.5
        errors.append((float((each.mean(0) - exact).abs().max()), standard_error))
    bias = [error for error, _ in errors]
    assert bias[0] > 20 * errors[0][1]  # real at tau = 1 ...
    assert bias[1] < 0.8 * bias[0]
    assert bias[2] < 0.4 * bias[0] + 4 * errors[2][1]  # ... and falling


def test_the_relaxed_gradient_of_the_class_is_that_estimate():
    draws = [f64(0.2, 0.7, 0.9), f64(0.6, 0.1, 0.4)]
    stream = iter(draws)
    gradient = BernoulliGradient(quadratic(), draws=2, noise=lambda like: next(stream))
    found = gradient.grad_mu(Bernoulli({"w": LAM}), Approximations(temp=0.7), None).nat1["w"]
    expected = torch.zeros(3).double()
    for u in draws:
        w = torch.tanh((LAM + 0.5 * torch.log(u / (1 - u))) / 0.7)
        s = (1 - w**2 + 1e-10) / (0.7 * (1 - torch.tanh(LAM) ** 2 + 1e-10))
        expected += 0.5 * s * (A @ w + b)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_the_rule_on_binary_weights_finds_the_mean_field():
    """Fixed point lambda = -grad_mu E[l], which is coordinate ascent's too."""
    rule = BayesianLearningRule(Bernoulli, BernoulliGradient(quadratic()), StepSizes(0.5))
    state = rule.run(rule.start(Bernoulli({"w": LAM})), 300)[-1]
    mu = torch.tanh(LAM).clone()
    for _, j in itertools.product(range(200), range(3)):
        mu[j] = torch.tanh(-(A[j] @ mu - A[j, j] * mu[j] + b[j]))
    found = rule.posterior(state).mean["w"]
    torch.testing.assert_close(found, mu, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------ mixtures


def test_one_component_has_no_repulsion():
    m, S = f64([0.4, -1.0]), f64([[2.0, 0.3], [0.3, 1.0]])
    theta = f64([0.4, -1.0], [1.0, 2.0])
    d = mixture_log_density(theta, torch.zeros(1).double(), m, S)
    torch.testing.assert_close(d.grad, -(theta - m) @ S[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(d.hess, -S.expand(2, 2, 2), rtol=0, atol=1e-13)


def test_derivatives_of_a_mixture_are_autograds():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(3, generator=g, dtype=torch.float64)
    means = torch.randn(3, 2, generator=g, dtype=torch.float64)
    S = torch.stack([problems.random_precision(k, 2) for k in range(3)])
    theta = torch.randn(5, 2, generator=g, dtype=torch.float64)
    family = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.MultivariateNormal(means, precision_matrix=S),
    )
    d = mixture_log_density(theta, logits, means, S)
    for n in range(5):
        at = theta[n]
        torch.testing.assert_close(d.value[n], family.log_prob(at), rtol=0, atol=1e-12)
        grad = torch.autograd.functional.jacobian(family.log_prob, at)
        hess = torch.autograd.functional.hessian(family.log_prob, at)
        torch.testing.assert_close(d.grad[n], grad, rtol=0, atol=1e-11)
        torch.testing.assert_close(d.hess[n], hess, rtol=0, atol=1e-11)


def test_draws_of_components_average_to_the_grid():
    def loss(theta):
        t = theta[:, 0]
        return Derivatives(t.square() / 2, theta, torch.ones(len(t), 1, 1).double())

    args = (f64(0.2, -0.1), f64([-1.0], [1.2]), f64([[1.5]], [[0.8]]))
    g = torch.Generator().manual_seed(0)

    def noise(like):
        return torch.randn(like.shape, generator=g, dtype=like.dtype)

    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    exact = GridGradient(loss, grid).components(*args, Approximations())
    drawn = ComponentGradient(loss, 40_000, noise).components(*args, Approximations())
    for one, two in zip(exact, drawn, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0.03)


def test_the_weights_of_a_mixture_do_not_see_a_constant():
    """log(pi_k / pi_K) steps along E_k[d] - E_K[d]."""

    def loss(shift):
        def at(theta):
            zero = torch.zeros(len(theta), 1).double()
            return Derivatives(zero[:, 0] + shift, zero, zero.unsqueeze(-1))

        return at

    q = Mixture([FullGaussian({"x": f64(m)}, f64([1.0])) for m in (-1.0, 2.0)], [0.3, 0.7])
    found = []
    for shift in (0.0, 5.0):
        gradient = ComponentGradient(loss(shift))
        how = Approximations(delta=True)
        rule = BayesianLearningRule(Mixture, gradient, StepSizes(0.1), how)
        found.append(rule.step(rule.start(q)).logits)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-14)
    still = BayesianLearningRule(Mixture, gradient, StepSizes(0.1, weights=0.0), how)
    torch.testing.assert_close(
        still.step(still.start(q)).logits.exp(), f64(0.3, 0.7), rtol=0, atol=1e-14
    )


# -------------------------------------------------------------------------- mixture models


def test_coordinate_ascent_never_lowers_the_bound():
    x, start = problems.iris()[0], problems.svi_start(7)
    model = UnitMixture(Approximations(), x, GMM_PRIOR, start)
    bounds = []
    for _ in range(40):
        state = [part.numpy() for part in model.step(1.0)]
        bounds.append(oracles.mixture_elbo(x.numpy(), *state, GMM_PRIOR))
    assert min(np.diff(bounds)) > -1e-12 * abs(bounds[0]) - 1e-9
    assert bounds[-1] - bounds[0] > 1.0


def test_without_delta_em_is_variational_bayes():
    """Independently: sums over items, Bishop's equations 10.51 to 10.63 with flat priors."""
    from scipy.special import digamma

    x = problems.iris()[0].numpy()[:60, :2]
    start = (f64(0.5, 0.5).numpy(), x[[0, 55]], np.stack([np.eye(2)] * 2))
    model = FullMixture(Approximations(), torch.from_numpy(x), start)
    q_pi, q_mu, q_prec = model.weights, list(model.means), list(model.precisions)
    model.step()
    alpha = q_pi.concentration["pi"].numpy()
    log_r = np.zeros((len(x), 2))
    for k in range(2):
        nu, V = float(q_prec[k].df["X"]), np.linalg.inv(q_prec[k].rate["X"].numpy())
        m, C = q_mu[k].mean["mu"].numpy(), q_mu[k].covariance.numpy()
        log_det = digamma(nu / 2) + digamma((nu - 1) / 2) + 2 * np.log(2) + np.log(np.linalg.det(V))
        for n, row in enumerate(x):
            e = row - m
            log_r[n, k] = digamma(alpha[k]) + 0.5 * (
                log_det - nu * e @ V @ e - nu * np.trace(V @ C)
            )
    r = np.exp(log_r - log_r.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    np.testing.assert_allclose(model.weights.concentration["pi"], 1 + r.sum(0), rtol=1e-12)
    for k in range(2):
        nu, V = float(q_prec[k].df["X"]), np.linalg.inv(q_prec[k].rate["X"].numpy())
        S = r[:, k].sum() * nu * V
        np.testing.assert_allclose(model.means[k].precision, S, rtol=1e-10)
        m = (r[:, k] @ x) / r[:, k].sum()
        np.testing.assert_allclose(model.means[k].mean["mu"], m, rtol=1e-10)
        rate = sum(
            r[n, k] * (np.outer(row - m, row - m) + np.linalg.inv(S)) for n, row in enumerate(x)
        )
        np.testing.assert_allclose(model.precisions[k].rate["X"], rate, rtol=1e-10)
        assert float(model.precisions[k].df["X"]) == pytest.approx(r[:, k].sum() + 3)


# ------------------------------------------------------------------- draws and curvatures


def test_draws_average_to_the_quadrature():
    g = torch.Generator().manual_seed(0)
    gradient = LossGradient(
        problems.logistic(4), 400, lambda like: torch.randn(4, generator=g, dtype=like.dtype)
    )
    exact = QuadratureGradient(problems.logistic(4))
    for S in (200 * problems.random_precision(0, 4), torch.full((4,), 150.0).double()):
        m, how = problems.start(0, 4, sd=0.3), Approximations()
        one = gradient.moments(m, S, how, None, curvature=True)
        two = exact.moments(m, S, how, None, curvature=True)
        for a, c in zip(one, two, strict=True):
            torch.testing.assert_close(a, c, rtol=0.02, atol=1.0)


def test_curvatures_of_logistic_regression():
    loss, m = problems.logistic(5), problems.start(0, 5, sd=0.5)
    batch = torch.tensor([3, 77, 400, 12])
    x, y = loss.x[batch], loss.y[batch]
    p = torch.sigmoid(x @ m)
    grads = (p - y).unsqueeze(-1) * x
    factor = 569 / 4
    g = factor * grads.sum(0) + m
    eye = torch.eye(5).double()
    expected = {
        "exact": factor * (x.mT * (p * (1 - p))) @ x + eye,
        "gn": factor * grads.mT @ grads + eye,
        "sqgrad": torch.outer(g, g),
    }
    for hess, H in expected.items():
        how = Approximations(delta=True, minibatch=True, hess=hess)
        for S, wanted in ((eye, H), (eye.diagonal(), H.diagonal())):
            found_g, found = LossGradient(loss).moments(m, S, how, batch, curvature=True)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(found_g, g, rtol=1e-10, atol=1e-10)


def test_a_conjugate_minibatch_is_scaled_up():
    from bayesrule.posteriors import Gamma
    from bayesrule.rule import ConjugateGradient

    prior = Gamma({"r": f64(1.0)}, {"r": f64(0.5)})
    sites = [Natural({"r": f64(y)}, {"r": f64(-1.0)}) for y in (2.0, 0.0, 5.0, 3.0)]
    how = Approximations(minibatch=True)
    rule = BayesianLearningRule(
        Gamma, ConjugateGradient(prior.natural(), sites), StepSizes(1.0), how
    )
    q = rule.posterior(rule.step(rule.start(prior), torch.tensor([0, 2])))
    assert q.shape["r"].item() == pytest.approx(1.0 + 2 * 7.0)
    assert q.rate["r"].item() == pytest.approx(0.5 + 4.0)


def test_momentum_is_between_the_natural_parameters():
    """lambda_{t+1} = (1-rho) lambda_t - rho grad + gamma (lambda_t - lambda_{t-1})."""
    rule = BayesianLearningRule(
        Bernoulli,
        BernoulliGradient(quadratic()),
        StepSizes(0.1, momentum=0.5),
        Approximations(momentum="heavy_ball"),
    )
    q = Bernoulli({"w": LAM})
    states = [rule.start(q)]
    states += rule.run(states[0], 3)
    lams = [state.lam.nat1["w"] for state in states]
    for t in (1, 2):
        mu = torch.tanh(lams[t])
        grad = (A - torch.diag(A.diagonal())) @ mu + b
        expected = 0.9 * lams[t] - 0.1 * grad + 0.5 * (lams[t] - lams[t - 1])
        torch.testing.assert_close(lams[t + 1], expected, rtol=0, atol=1e-14)


def test_diagonal_and_full_agree_where_the_curvature_is_diagonal():
    loss = function_loss(lambda t: (f64(1.0, 3.0) * t.square()).sum() / 2 + t.exp().sum())
    how = Approximations(delta=True)
    steps = StepSizes(0.3)
    m, s = f64(0.2, -0.5), f64(2.0, 1.0)
    diag = BayesianLearningRule(DiagonalGaussian, LossGradient(loss), steps, how)
    full = BayesianLearningRule(FullGaussian, LossGradient(loss), steps, how)
    one = diag.run(diag.start(DiagonalGaussian({"t": m}, {"t": s})), 5)[-1]
    two = full.run(full.start(FullGaussian({"t": m}, torch.diag(s))), 5)[-1]
    torch.testing.assert_close(one.mean, two.mean, rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.diag(one.scale), two.scale, rtol=0, atol=1e-13)
