"""Rows of the table: OGN, VOGN, dropout, the straight-through estimator, BayesBiNN."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesrule.posteriors import Bernoulli, DiagonalGaussian, DropoutPosterior
from bayesrule.rule import problems
from bayesrule.rule.approximations import Approximations, StepSizes
from bayesrule.rule.gradients import BernoulliGradient, LossGradient, SpikeSlabGradient
from bayesrule.rule.losses import DataLoss, gaussian_prior
from bayesrule.rule.oracles import deep_learning as oracles
from bayesrule.rule.problems import N_ITERATES, NoiseStream
from bayesrule.rule.recipe import EXACT, LIMIT, Iterates, Recipe
from bayesrule.rule.rule import GaussianState, NaturalState

__all__ = ["RECIPES"]

BREAST_CANCER = "logistic regression, breast_cancer standardised (569 x 30), delta = 1"
BINARY = "logistic regression with weights in {-1, +1}^30, breast_cancer"
S0 = 142.0  # about N/4, the curvature of standardised inputs
SIZES = (4, 6, 3)
KEEP = 0.8


def _batches(seed: int, n_data: int = 569, size: int = 32) -> list[Tensor]:
    return problems.batches(seed, n_data, size, N_ITERATES)


# ----------------------------------------------------------------------------- OGN, VOGN


def gauss_newton_ours(recipe: Recipe, seed: int) -> Iterates:
    """Squares of single items' gradients, at the mean (OGN) or at a draw (VOGN)."""
    gradient = LossGradient(problems.logistic(), noise=NoiseStream(seed))
    rule = recipe.rule(gradient)
    m = problems.start(seed, 30)
    start = rule.start(DiagonalGaussian({"theta": m}, {"theta": torch.full_like(m, S0)}))
    out = []
    for state in rule.run(start, N_ITERATES, _batches(seed)):
        assert isinstance(state, GaussianState)
        out += [state.mean, state.scale]
    return out


def gauss_newton_theirs(recipe: Recipe, seed: int) -> Iterates:
    """The loop in NumPy with the same noise."""
    x, y = problems.breast_cancer()
    m, noise = problems.start(seed, 30), NoiseStream(seed)
    draws = None
    if not recipe.approximations.delta:
        draws = [noise(m).numpy() for _ in range(N_ITERATES)]
    assert recipe.steps.scale is not None
    return oracles.natural_gauss_newton(
        x.numpy(), y.numpy(), m.numpy(), torch.full_like(m, S0).numpy(),
        [batch.numpy() for batch in _batches(seed)],
        lr=recipe.steps.rho, beta=recipe.steps.scale, prec=1.0, noise=draws,
    )  # fmt: skip


# ------------------------------------------------------------------------------- dropout


def _network_loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of a network with one hidden layer, weights in PyTorch's order."""
    n_in, hidden, n_out = SIZES
    ends = [hidden * n_in, hidden, n_out * hidden, n_out]
    W1, b1, W2, b2 = torch.split(theta, ends)
    h = torch.relu(W1.reshape(hidden, n_in) @ x + b1)
    logits = W2.reshape(n_out, hidden) @ h + b2
    return torch.nn.functional.cross_entropy(logits, y)


def unit_of_weight() -> Tensor:
    """Return the hidden unit that each weight comes in or goes out of; -1 for the last biases."""
    n_in, hidden, n_out = SIZES
    units = torch.arange(hidden)
    last = torch.full((n_out,), -1)
    return torch.cat([units.repeat_interleave(n_in), units, units.repeat(n_out), last])


def _masks(seed: int, size: int = 10) -> list[Tensor]:
    rng = problems.rng_of(seed, "masks")
    return [
        torch.from_numpy((rng.random((size, SIZES[1])) < KEEP).astype(float))
        for _ in range(N_ITERATES)
    ]


def dropout_ours(recipe: Recipe, seed: int) -> Iterates:
    """The slab's mean, with one indicator for each unit and item."""
    x, y = problems.iris()
    masks = iter(_masks(seed))
    loss = DataLoss(_network_loss, x, y.long(), gaussian_prior(1.0))
    rule = recipe.rule(SpikeSlabGradient(loss, unit_of_weight(), lambda n: next(masks)))
    m = problems.start(seed, len(unit_of_weight()), sd=0.5)
    out = []
    start = rule.start(DropoutPosterior({"theta": m}, 1 - KEEP))
    for state in rule.run(start, N_ITERATES, _batches(seed, 150, 10)):
        assert isinstance(state, GaussianState)
        out.append(state.mean)
    return out


def dropout_theirs(recipe: Recipe, seed: int) -> Iterates:
    """A network with dropout and SGD, the same masks."""
    x, y = problems.iris()
    return oracles.dropout_network(
        x, y, SIZES, problems.start(seed, len(unit_of_weight()), sd=0.5),
        _batches(seed, 150, 10), _masks(seed), lr=recipe.steps.rho, prec=1.0,
    )  # fmt: skip


# ------------------------------------------------------------------------ binary weights


def _binary_loss() -> DataLoss:
    x, y = problems.breast_cancer()
    return DataLoss(
        lambda theta, x, y: torch.nn.functional.softplus(x @ theta) - y * (x @ theta), x, y
    )


def binary_ours(recipe: Recipe, seed: int) -> Iterates:
    """lambda, by the limit of the relaxation (STE) or with its draws (BayesBiNN)."""
    rule = recipe.rule(BernoulliGradient(_binary_loss(), noise=NoiseStream(seed, "uniform")))
    start = rule.start(Bernoulli({"theta": problems.start(seed, 30, sd=0.1)}))
    out = []
    for state in rule.run(start, N_ITERATES, _batches(seed)):
        assert isinstance(state, NaturalState)
        out.append(state.lam.nat1["theta"])
    return out


def ste_theirs(recipe: Recipe, seed: int) -> Iterates:
    """BinaryConnect with a straight-through gradient."""
    x, y = problems.breast_cancer()

    def loss(w: Tensor, batch: Tensor) -> Tensor:
        data = torch.nn.functional.binary_cross_entropy_with_logits(x[batch] @ w, y[batch])
        return len(x) * data

    return oracles.straight_through(
        loss, problems.start(seed, 30, sd=0.1).numpy(), _batches(seed), recipe.steps.rho
    )


def bayesbinn_theirs(recipe: Recipe, seed: int) -> Iterates:
    """The loop in NumPy with the same uniform draws."""
    x, y = problems.breast_cancer()
    lam, noise = problems.start(seed, 30, sd=0.1), NoiseStream(seed, "uniform")
    tau = recipe.approximations.temp
    assert tau is not None
    return oracles.bayesbinn(
        x.numpy(), y.numpy(), lam.numpy(), [batch.numpy() for batch in _batches(seed)],
        [noise(lam).numpy() for _ in range(N_ITERATES)], lr=recipe.steps.rho, tau=tau,
    )  # fmt: skip


RECIPES = (
    Recipe(
        "ogn", "deep learning", "Online Gauss-Newton", (DiagonalGaussian,),
        StepSizes(0.1, scale=0.01),
        Approximations(delta=True, minibatch=True, hess="gn", slow_scale=True),
        "s <- (1-b) s + b [(N/M) sum_i g_i^2 + delta], m <- m - a ghat / s", BREAST_CANCER,
        "NumPy", EXACT, gauss_newton_ours, gauss_newton_theirs,
    ),
    Recipe(
        "vogn", "deep learning", "Variational online Gauss-Newton", (DiagonalGaussian,),
        StepSizes(0.1, scale=0.01), Approximations(minibatch=True, hess="gn", slow_scale=True),
        "OGN with the gradients at theta ~ N(m, 1/s)", BREAST_CANCER,
        "NumPy, the same noise", EXACT, gauss_newton_ours, gauss_newton_theirs,
    ),
    Recipe(
        "dropout", "deep learning", "Dropout", (DropoutPosterior,),
        StepSizes(1e-3), Approximations(delta=True, minibatch=True, resp=True),
        "SGD on m with the gradient at z m, z_j ~ Bernoulli(pi) for each unit and item",
        "network 4-6-3 on iris, weight decay 1",
        "torch module with masks, torch.optim.SGD", EXACT, dropout_ours, dropout_theirs,
    ),
    Recipe(
        "ste", "deep learning", "Straight-through estimator", (Bernoulli,),
        StepSizes(1e-4),
        Approximations(delta=True, minibatch=True, temp=1e-10, no_decay=True),
        "lambda <- lambda - rho grad lbar(sign(lambda))", BINARY,
        "BinaryConnect by torch.autograd, torch.optim.SGD", LIMIT, binary_ours, ste_theirs,
    ),
    Recipe(
        "bayesbinn", "deep learning", "BayesBiNN", (Bernoulli,),
        StepSizes(1e-3), Approximations(minibatch=True, temp=1.0),
        "lambda <- (1-rho) lambda - rho s ghat(w), w = tanh((lambda + d) / tau)", BINARY,
        "NumPy, the same uniform draws", EXACT, binary_ours, bayesbinn_theirs,
    ),
)  # fmt: skip
