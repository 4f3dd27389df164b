"""Rows of the table: conjugate Bayes, Kalman, EM, SVI, VMP, NCVMP, CVI, mixtures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.posteriors import (
    Beta,
    Categorical,
    DiagonalGaussian,
    Dirichlet,
    ExponentialFamily,
    FullGaussian,
    Gamma,
    GaussMarkov,
    Mixture,
    Natural,
    Wishart,
)
from bayesrule.rule import problems
from bayesrule.rule.approximations import Approximations, StepSizes
from bayesrule.rule.gradients import (
    ConjugateGradient,
    InNaturalCoordinates,
    NodeGradient,
    QuadratureGradient,
)
from bayesrule.rule.losses import LinearModel
from bayesrule.rule.mixture_model import FullMixture, UnitMixture
from bayesrule.rule.mixtures import Derivatives, GridGradient
from bayesrule.rule.oracles import inference as oracles
from bayesrule.rule.problems import GMM_PRIOR, N_ITERATES
from bayesrule.rule.recipe import EXACT, Iterates, Recipe
from bayesrule.rule.rule import MixtureState, natural_step

__all__ = ["RECIPES"]

EYE2 = torch.eye(2, dtype=torch.float64)


def _posterior(rule: Any, q: ExponentialFamily, n: int = 1) -> Any:
    return rule.posterior(rule.run(rule.start(q), n)[-1])


def _vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------ conjugate models

N_COUNTS = 40


def _counts(seed: int) -> dict[str, np.ndarray]:
    rng = problems.rng_of(seed, "counts")
    return {
        "flips": (rng.random(N_COUNTS) < 0.3).astype(float),
        "poisson": rng.poisson(2.5, N_COUNTS).astype(float),
        "classes": rng.integers(0, 4, N_COUNTS),
        "vectors": rng.standard_normal((N_COUNTS, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]]),
    }


def conjugate_ours(recipe: Recipe, seed: int) -> Iterates:
    """One step in four models, each from a start drawn by the seed."""
    data, rng = _counts(seed), problems.rng_of(seed, "conjugate start")
    a, b = (_vec(*rng.uniform(0.5, 9.0, 4)) for _ in range(2))
    flips = [
        Natural({"p": _vec(y)}, {"p": _vec(1 - y)}) for y in data["flips"]
    ]  # Bernoulli likelihood: y log p + (1 - y) log(1 - p)
    rates = [
        Natural({"rate": _vec(y)}, {"rate": _vec(-1.0)}) for y in data["poisson"]
    ]  # Poisson: y log rate - rate
    classes = [
        Natural({"p": torch.nn.functional.one_hot(torch.tensor(int(y)), 4).double()}, {})
        for y in data["classes"]
    ]
    vectors = [
        Natural({"X": _vec(0.5)[0]}, {"X": -0.5 * torch.outer(x, x)})
        for x in torch.from_numpy(data["vectors"])
    ]  # N(0, X^-1): (log|X| - x^T X x) / 2
    beta = recipe.rule(
        ConjugateGradient(Beta({"p": _vec(2.0)}, {"p": _vec(3.0)}).natural(), flips), Beta
    )
    gamma = recipe.rule(
        ConjugateGradient(Gamma({"rate": _vec(1.5)}, {"rate": _vec(0.5)}).natural(), rates), Gamma
    )
    dirichlet = recipe.rule(
        ConjugateGradient(
            Dirichlet({"p": torch.full((4,), 1.2, dtype=torch.float64)}).natural(), classes
        ),
        Dirichlet,
    )
    prior = Wishart({"X": _vec(4.0)[0]}, {"X": EYE2})
    wishart = recipe.rule(ConjugateGradient(prior.natural(), vectors), Wishart)
    q_beta = _posterior(beta, Beta({"p": a[:1]}, {"p": b[:1]}))
    q_gamma = _posterior(gamma, Gamma({"rate": a[1:2]}, {"rate": b[1:2]}))
    q_dirichlet = _posterior(dirichlet, Dirichlet({"p": a}))
    q_wishart = _posterior(wishart, Wishart({"X": 2.0 + a[0]}, {"X": b[0] * EYE2}))
    return [
        q_beta.a["p"], q_beta.b["p"], q_gamma.shape["rate"], q_gamma.rate["rate"],
        q_dirichlet.concentration["p"], q_wishart.df["X"], q_wishart.rate["X"],
    ]  # fmt: skip


def conjugate_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Counts, as in textbooks."""
    data = _counts(seed)
    ones = data["flips"].sum()
    return [
        [2.0 + ones], [3.0 + N_COUNTS - ones],
        [1.5 + data["poisson"].sum()], [0.5 + N_COUNTS],
        1.2 + np.bincount(data["classes"], minlength=4),
        4.0 + N_COUNTS, np.eye(2) + data["vectors"].T @ data["vectors"],
    ]  # fmt: skip


def kalman_ours(recipe: Recipe, seed: int) -> Iterates:
    """One step from a random chain; the marginals of the joint posterior."""
    model = problems.state_space(seed)
    m0, P0, A, Q, H, R, y = (torch.from_numpy(part) for part in model)
    T = len(y)
    prior = GaussMarkov.from_transitions("x", T, (m0, P0), A, Q)
    H_R = H.mT @ torch.linalg.inv(R)
    sites = []
    for t in range(T):
        nat = prior.natural() * 0.0
        nat.nat1["x"][t] = H_R @ y[t]
        nat.nat2["x/diagonal"][t] = -0.5 * H_R @ H
        sites.append(nat)
    rule = recipe.rule(ConjugateGradient(prior.natural(), sites))
    start = GaussMarkov(
        {"x": problems.start(seed, 2 * T, sd=1.0).reshape(T, 2)},
        {"x": problems.random_precision(seed, 2).expand(T, 2, 2)},
        {"x": torch.zeros(T - 1, 2, 2, dtype=torch.float64)},
    )
    means, covs = _posterior(rule, start).marginals()["x"]
    return [means, covs, means[-1], covs[-1]]


def kalman_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Smoother, and the filter at the last time."""
    return oracles.rts_smoother(*problems.state_space(seed))


# ------------------------------------------------------------------------------------- EM


def _em_start(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = problems.iris()[0].numpy()
    rows = problems.rng_of(seed, "em").choice(len(x), 3, replace=False)
    return np.full(3, 1 / 3), x[rows].copy(), np.repeat(np.eye(x.shape[1])[None], 3, 0)


def em_ours(recipe: Recipe, seed: int) -> Iterates:
    """The indicators take a full step; the parameters too, at their modes, with a flat prior."""
    model = FullMixture(recipe.approximations, problems.iris()[0], _em_start(seed))
    return [part for _ in range(N_ITERATES) for part in model.step()]


def em_theirs(recipe: Recipe, seed: int) -> Iterates:
    """scikit-learn, one step at a time."""
    return oracles.em_by_sklearn(problems.iris()[0].numpy(), *_em_start(seed), N_ITERATES)


# ------------------------------------------------------------------- mean fields: SVI, VMP


def _svi_batches(seed: int) -> list[Tensor]:
    return problems.batches(seed, 150, 15, N_ITERATES)


def svi_rates(n: int) -> list[float]:
    """Return rho_t = (t + 10)^-0.7, t = 0, 1, ... (Robbins-Monro)."""
    return [float((t + 10) ** -0.7) for t in range(n)]


def svi_ours(recipe: Recipe, seed: int) -> Iterates:
    """Batches of 15 with falling steps; then all data with rho = 1."""
    x, start = problems.iris()[0], problems.svi_start(seed)
    model = UnitMixture(recipe.approximations, x, GMM_PRIOR, start)
    out: list[Tensor] = []
    for batch, rho in zip(_svi_batches(seed), svi_rates(N_ITERATES), strict=True):
        out += model.step(rho, batch)
    model = UnitMixture(replace(recipe.approximations, minibatch=False), x, GMM_PRIOR, start)
    for _ in range(N_ITERATES):
        out += model.step(recipe.steps.rho)
    return out


def svi_theirs(recipe: Recipe, seed: int) -> Iterates:
    """The stochastic updates in NumPy; then coordinate ascent, item by item."""
    x = problems.iris()[0].numpy()
    batches = [batch.numpy() for batch in _svi_batches(seed)]
    stochastic = oracles.stochastic_mixture(
        x, problems.svi_start(seed), GMM_PRIOR, batches, svi_rates(N_ITERATES)
    )
    sweeps = oracles.coordinate_ascent(x, problems.svi_start(seed), GMM_PRIOR, N_ITERATES)
    return [*stochastic, *sweeps]


PRECISION_PRIOR = (1e-2, 1e-2)


def _vmp_start(seed: int) -> tuple[float, float]:
    tau, alpha = problems.rng_of(seed, "vmp").uniform(0.5, 2.0, 2)
    return float(tau), float(alpha)


def vmp_ours(recipe: Recipe, seed: int) -> Iterates:
    """Weights, noise precision and weight precision take full steps in turn."""
    x, y = problems.diabetes()
    N, P = x.shape
    a0, b0 = PRECISION_PRIOR
    tau, alpha = (_vec(value) for value in _vmp_start(seed))
    q_w = FullGaussian({"w": torch.zeros(P).double()}, torch.eye(P).double())
    q_tau = Gamma({"tau": _vec(a0)}, {"tau": _vec(b0)})
    q_alpha = Gamma({"alpha": _vec(a0)}, {"alpha": _vec(b0)})
    out: list[Tensor] = []
    for _ in range(N_ITERATES):
        # node w: tau (y^T X w - w^T X^T X w / 2) - alpha w^T w / 2
        S = tau * x.mT @ x + alpha * torch.eye(P).double()
        q_w = _node(recipe, q_w, Natural({"w": tau * x.mT @ y}, -0.5 * S))
        m, cov = q_w.mean["w"], q_w.covariance
        # node tau: (N/2) log tau - tau E||y - X w||^2 / 2, with its prior
        error = (y - x @ m).square().sum() + (x.mT @ x * cov).sum()
        likelihood = Natural({"tau": _vec(0.5 * N)}, {"tau": -0.5 * error.reshape(1)})
        prior = Gamma({"tau": _vec(a0)}, {"tau": _vec(b0)}).natural()
        q_tau = _node(recipe, q_tau, prior + likelihood)
        # node alpha: (P/2) log alpha - alpha E||w||^2 / 2, with its prior
        size = m.square().sum() + cov.diagonal().sum()
        weights = Natural({"alpha": _vec(0.5 * P)}, {"alpha": -0.5 * size.reshape(1)})
        prior = Gamma({"alpha": _vec(a0)}, {"alpha": _vec(b0)}).natural()
        q_alpha = _node(recipe, q_alpha, prior + weights)
        tau, alpha = q_tau.mean["tau"], q_alpha.mean["alpha"]
        out += [m, q_w.precision]
        out += [torch.cat([q.shape[k], q.rate[k]]) for q, k in ((q_tau, "tau"), (q_alpha, "alpha"))]
    return out


def _node(recipe: Recipe, q: Any, messages: Natural[Any]) -> Any:
    """Move one node by the sum of its messages."""
    return _posterior(recipe.rule(NodeGradient(messages), type(q)), q)


def vmp_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Coordinate ascent in NumPy."""
    x, y = problems.diabetes()
    return oracles.variational_regression(
        x.numpy(), y.numpy(), PRECISION_PRIOR, PRECISION_PRIOR, _vmp_start(seed), N_ITERATES
    )


# ---------------------------------------------------------------------- NCVMP and CVI


def _two_features() -> tuple[Tensor, Tensor]:
    x, y = problems.breast_cancer(2)
    return x, y


def ncvmp_ours(recipe: Recipe, seed: int) -> Iterates:
    """Lambda <- -grad_mu E[lbar], by Bonnet's and Price's theorems."""
    gradient = InNaturalCoordinates(QuadratureGradient(LinearModel.logistic(*_two_features(), 1.0)))
    rule = recipe.rule(gradient)
    q = FullGaussian({"theta": problems.start(seed, 2)}, 10.0 * EYE2)
    out: list[Tensor] = []
    for state in rule.run(rule.start(q), N_ITERATES):
        now = rule.posterior(state)
        assert isinstance(now, FullGaussian)
        out += [now.mean["theta"], now.precision]
    return out


def ncvmp_theirs(recipe: Recipe, seed: int) -> Iterates:
    """The same with an explicit Fisher matrix."""
    m, S = problems.start(seed, 2), 10.0 * EYE2
    Sm = S @ m
    lam = torch.stack([Sm[0], Sm[1], -0.5 * S[0, 0], -S[0, 1], -0.5 * S[1, 1]])
    return oracles.explicit_gaussian_natural_gradient(*_two_features(), 1.0, lam, N_ITERATES)


def cvi_ours(recipe: Recipe, seed: int) -> Iterates:
    """Sites L_i in one dimension each; lambda = lambda_0 + sum_i L_i."""
    model = problems.logistic(10)
    x, rho = model.x, recipe.steps.rho
    site = Natural({"f": torch.zeros(len(x)).double()}, {"f": torch.zeros(len(x)).double()})
    prior = FullGaussian({"theta": torch.zeros(10).double()}, torch.eye(10).double())
    q, out = prior, []
    for _ in range(50):
        m = q.mean["theta"]
        slope, curvature = model.expected_slopes(m, q.covariance)
        # grad_mu E[-log p(y_i | f_i)] for f_i ~ N(x_i^T m, x_i^T Sigma x_i)
        grad = Natural({"f": slope - curvature * (x @ m)}, {"f": 0.5 * curvature})
        site = natural_step(site, grad, rho)
        total = Natural({"theta": x.mT @ site.nat1["f"]}, x.mT @ (site.nat2["f"].unsqueeze(-1) * x))
        q = FullGaussian.from_natural(prior.natural() + total)
        out += [q.mean["theta"], q.precision]
    return out


def cvi_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Variational online Newton in NumPy, from the prior."""
    x, y = problems.breast_cancer(10)
    return oracles.variational_newton(
        x.numpy(), y.numpy(), np.zeros(10), np.eye(10), prec=1.0, rho=recipe.steps.rho, n=50
    )


# ------------------------------------------------------- mixtures of exponential families


def quartic(theta: Tensor) -> Tensor:
    """Return (theta^2 - 4)^2 / 16 + theta / 4, with two wells."""
    return (theta.square() - 4).square() / 16 + theta / 4


def _quartic_derivatives(theta: Tensor) -> Derivatives:
    t = theta[:, 0]
    grad, hess = (t.square() - 4) * t / 4 + 0.25, (3 * t.square() - 4) / 4
    return Derivatives(quartic(t), grad.unsqueeze(-1), hess.reshape(-1, 1, 1))


def _grid() -> Tensor:
    return torch.linspace(-16.0, 16.0, 8001, dtype=torch.float64)


def _two_components(seed: int) -> tuple[float, Tensor, Tensor]:
    rng = problems.rng_of(seed, "components")
    v, m = rng.normal(0, 0.3), np.array([-1.0, 1.0]) + 0.3 * rng.standard_normal(2)
    return float(v), torch.from_numpy(m), torch.from_numpy(rng.uniform(0.7, 1.3, 2))


def mix_ef_ours(recipe: Recipe, seed: int) -> Iterates:
    """Two Gaussians in one dimension, expectations on a grid."""
    v, m, s = _two_components(seed)
    parts = [FullGaussian({"theta": m[k : k + 1]}, s[k].reshape(1, 1)) for k in range(2)]
    pi = torch.softmax(_vec(v, 0.0), 0)
    rule = recipe.rule(GridGradient(_quartic_derivatives, _grid()))
    out = []
    for state in rule.run(rule.start(Mixture(parts, pi)), N_ITERATES):
        assert isinstance(state, MixtureState)
        v_now = (state.logits[0] - state.logits[1]).reshape(1)
        out.append(torch.cat([v_now, state.means[:, 0], state.precisions[:, 0, 0]]))
    return out


def mix_ef_theirs(recipe: Recipe, seed: int) -> Iterates:
    """An explicit joint Fisher matrix and an automatic gradient."""
    return oracles.explicit_mixture_natural_gradient(
        quartic, _grid(), _two_components(seed), recipe.steps.rho, N_ITERATES
    )


RECIPES = (
    Recipe(
        "conjugate", "inference", "Conjugate Bayes", (Beta, Gamma, Dirichlet, Wishart),
        StepSizes(1.0), Approximations(),
        "lambda = lambda_0 + sum_i lambda_i(y_i), after one step",
        "Beta-Bernoulli, Gamma-Poisson, Dirichlet-multinomial, Wishart-Gaussian; 40 items",
        "counts", EXACT, conjugate_ours, conjugate_theirs,
    ),
    Recipe(
        "kalman", "inference", "Kalman smoother", (GaussMarkov,),
        StepSizes(1.0), Approximations(),
        "S = prior precision + diag(H^T R^-1 H), after one step",
        "position and velocity, 50 steps",
        "Kalman filter and Rauch-Tung-Striebel smoother in NumPy", EXACT,
        kalman_ours, kalman_theirs,
    ),
    Recipe(
        "em", "inference", "Expectation maximisation",
        (Categorical, Dirichlet, FullGaussian, Wishart),
        StepSizes(1.0), Approximations(delta=True),
        "E step: q(z); M step: the mode of the parameters' q",
        "mixture of 3 Gaussians on iris standardised, flat prior",
        "sklearn GaussianMixture, one step at a time", EXACT, em_ours, em_theirs,
    ),
    Recipe(
        "svi", "inference", "Stochastic variational inference",
        (Categorical, Dirichlet, DiagonalGaussian),
        StepSizes(1.0), Approximations(minibatch=True),
        "lambda <- (1-rho) lambda + rho [lambda_0 + (N/M) sum_i E_q(z_i)[t(y_i, z_i)]]",
        "mixture of 3 Gaussians of unit variance on iris standardised",
        "NumPy; with all data and rho = 1 coordinate ascent", EXACT, svi_ours, svi_theirs,
    ),
    Recipe(
        "vmp", "inference", "Variational message passing", (FullGaussian, Gamma),
        StepSizes(1.0), Approximations(),
        "each node takes the sum of its messages",
        "regression with unknown noise and weight precision, diabetes",
        "coordinate ascent in NumPy", EXACT, vmp_ours, vmp_theirs,
    ),
    Recipe(
        "ncvmp", "inference", "Non-conjugate VMP", (FullGaussian,),
        StepSizes(1.0), Approximations(),
        "lambda = sum_a grad_mu E[log f_a]",
        "logistic regression, first 2 features of breast_cancer, delta = 1",
        "F(lambda)^-1 grad_lambda, all derivatives automatic", EXACT, ncvmp_ours, ncvmp_theirs,
    ),
    Recipe(
        "cvi", "inference", "Conjugate-computation VI", (FullGaussian,),
        StepSizes(0.1), Approximations(),
        "L_i <- (1-rho) L_i + rho grad_mu E[log p(y_i | theta)], lambda = lambda_0 + sum_i L_i",
        "logistic regression, first 10 features of breast_cancer, delta = 1",
        "variational online Newton in NumPy, 50 iterates", EXACT, cvi_ours, cvi_theirs,
    ),
    Recipe(
        "mix_ef", "inference", "Mixtures of exponential families", (Mixture,),
        StepSizes(0.05), Approximations(),
        "the joint natural gradient of q(z, theta), exact expectations",
        "two Gaussians on a quartic with two wells, one dimension",
        "joint Fisher matrix by summation, gradient automatic", EXACT,
        mix_ef_ours, mix_ef_theirs,
    ),
)  # fmt: skip
