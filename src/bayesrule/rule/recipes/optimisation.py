"""Rows of the table: least squares, gradient descent, Newton's methods, mixtures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesrule.posteriors import DiagonalGaussian, FullGaussian, IsotropicGaussian, Mixture
from bayesrule.rule import problems
from bayesrule.rule.approximations import Approximations, StepSizes
from bayesrule.rule.gradients import LossGradient, QuadratureGradient
from bayesrule.rule.losses import LinearModel
from bayesrule.rule.mixtures import ComponentGradient, Derivatives, mixture_log_density
from bayesrule.rule.oracles import optimisation as oracles
from bayesrule.rule.problems import N_ITERATES
from bayesrule.rule.recipe import EXACT, LIMIT, Iterates, Recipe
from bayesrule.rule.rule import GaussianState, MixtureState, State

__all__ = ["RECIPES", "fixed_gaussian", "three_modes"]

BREAST_CANCER = "logistic regression, breast_cancer standardised (569 x 30), delta = 1"
FEW = "logistic regression, first 10 features of breast_cancer, delta = 1"
VON_STEPS = 400


def fixed_gaussian(m: Tensor) -> IsotropicGaussian:
    """Return N(m, I)."""
    return IsotropicGaussian({"theta": m}, 1.0)


def _full(m: Tensor, S: Tensor) -> FullGaussian:
    return FullGaussian({"theta": m}, S)


def _means(states: Sequence[State]) -> list[Tensor]:
    return [state.mean for state in states if isinstance(state, GaussianState)]


def _means_and_scales(states: Sequence[State]) -> list[Tensor]:
    pairs = [(state.mean, state.scale) for state in states if isinstance(state, GaussianState)]
    return [part for pair in pairs for part in pair]


def _loss(n_features: int = 30) -> oracles.LogisticLoss:
    x, y = problems.breast_cancer(n_features)
    return oracles.LogisticLoss(x.numpy(), y.numpy())


# ------------------------------------------------------------------------ least squares


def ridge_ours(recipe: Recipe, seed: int) -> Iterates:
    """One step from a random Gaussian."""
    rule = recipe.rule(QuadratureGradient(LinearModel.squares(*problems.diabetes(), 1.0)))
    start = _full(problems.start(seed, 10, sd=1.0), problems.random_precision(seed, 10))
    return _means_and_scales(rule.run(rule.start(start), 1))


def ridge_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Ridge regression, independent of the start."""
    x, y = problems.diabetes()
    return oracles.ridge(x.numpy(), y.numpy(), 1.0)


# ------------------------------------------------------- gradient descent and Newton's methods


def gd_ours(recipe: Recipe, seed: int) -> Iterates:
    """All data, at the mean."""
    rule = recipe.rule(LossGradient(problems.logistic()))
    return _means(rule.run(rule.start(fixed_gaussian(problems.start(seed, 30))), N_ITERATES))


def gd_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Gradient descent in NumPy."""
    m = problems.start(seed, 30).numpy()
    return oracles.gradient_descent(_loss(), m, recipe.steps.rho, N_ITERATES)


def newton_ours(recipe: Recipe, seed: int) -> Iterates:
    """With rho = 1 the start's precision is forgotten."""
    rule = recipe.rule(LossGradient(problems.logistic()))
    start = _full(problems.start(seed, 30), problems.random_precision(seed, 30))
    return _means(rule.run(rule.start(start), N_ITERATES))


def newton_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Newton's method in NumPy."""
    return oracles.newton(_loss(), problems.start(seed, 30).numpy(), N_ITERATES)


def online_newton_ours(recipe: Recipe, seed: int) -> Iterates:
    """From S_0 = hess lbar(m_0)."""
    m, loss = problems.start(seed, 30), problems.logistic()
    rule = recipe.rule(LossGradient(loss))
    return _means_and_scales(rule.run(rule.start(_full(m, loss.hess(m))), N_ITERATES))


def online_newton_theirs(recipe: Recipe, seed: int) -> Iterates:
    """The two lines in NumPy."""
    m, loss = problems.start(seed, 30).numpy(), _loss()
    return oracles.online_newton(loss, m, loss.hess(m), recipe.steps.rho, N_ITERATES)


def laplace_ours(recipe: Recipe, seed: int) -> Iterates:
    """Online Newton run to convergence."""
    m, loss = problems.start(seed, 30), problems.logistic()
    rule = recipe.rule(QuadratureGradient(loss))
    state = rule.run(rule.start(_full(m, loss.hess(m))), 100)[-1]
    return _means_and_scales([state])


def laplace_theirs(recipe: Recipe, seed: int) -> Iterates:
    """MAP and Hessian."""
    return oracles.laplace(_loss())


def von_ours(recipe: Recipe, seed: int) -> Iterates:
    """Run to convergence, expectations by quadrature."""
    rule = recipe.rule(QuadratureGradient(problems.logistic(10)))
    start = _full(problems.start(seed, 10), torch.eye(10, dtype=torch.float64))
    return _means_and_scales(rule.run(rule.start(start), VON_STEPS)[-1:])


def von_theirs(recipe: Recipe, seed: int) -> Iterates:
    """The Gaussian of largest ELBO."""
    x, y = problems.breast_cancer(10)
    return oracles.variational_gaussian(x.numpy(), y.numpy(), 1.0)


# ------------------------------------------------------------------------------- mixtures


def three_modes() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, means and precisions of a mixture with modes near (-3,0), (3,0) and (0,4)."""
    means = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    return torch.zeros(3).double(), means, torch.eye(2).double().expand(3, 2, 2).clone()


def minus_log_mixture(theta: Tensor) -> Derivatives:
    """Return lbar = -log of the mixture of `three_modes`, with its derivatives."""
    d = mixture_log_density(theta, *three_modes())
    return Derivatives(-d.value, -d.grad, -d.hess)


def _logistic_derivatives(theta: Tensor) -> Derivatives:
    loss = problems.logistic(10)
    return Derivatives(
        torch.stack([loss.value(one) for one in theta]),
        torch.stack([loss.grad(one) for one in theta]),
        torch.stack([loss.hess(one) for one in theta]),
    )


def _mixture_start(seed: int) -> Mixture:
    """Return components near the modes, where the plain step keeps them positive definite."""
    shift = problems.rng_of(seed, "mixture").standard_normal((3, 2))
    means = three_modes()[1] + torch.from_numpy(0.5 * shift)
    eye = torch.eye(2, dtype=torch.float64)
    return Mixture([_full(m, eye) for m in means], [0.5, 0.3, 0.2])


def multimodal_ours(recipe: Recipe, seed: int) -> Iterates:
    """One component on logistic regression, then three on a density with three modes."""
    m = problems.start(seed, 10)
    S = problems.logistic(10).hess(m)
    rule = recipe.rule(ComponentGradient(_logistic_derivatives))
    out: list[Tensor] = []
    for state in rule.run(rule.start(Mixture([_full(m, S)])), N_ITERATES):
        assert isinstance(state, MixtureState)
        out += [state.means[0], state.precisions[0]]
    rule = recipe.rule(ComponentGradient(minus_log_mixture))
    for state in rule.run(rule.start(_mixture_start(seed)), N_ITERATES):
        assert isinstance(state, MixtureState)
        out += [state.logits.exp(), state.means, state.precisions]
    return out


def multimodal_theirs(recipe: Recipe, seed: int) -> Iterates:
    """Online Newton, then a mixture with automatic derivatives."""
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

    m, loss, rho = problems.start(seed, 10).numpy(), _loss(10), recipe.steps.rho
    one = oracles.online_newton(loss, m, loss.hess(m), rho, N_ITERATES)
    _, means, precisions = three_modes()
    target = MixtureSameFamily(
        Categorical(probs=torch.ones(3, dtype=torch.float64) / 3),
        MultivariateNormal(means, precision_matrix=precisions),
    )
    q = _mixture_start(seed)
    three = oracles.mixture_by_autograd(
        lambda theta: -target.log_prob(theta),
        torch.tensor(q.weights, dtype=torch.float64).numpy(),
        torch.stack([part.mean["theta"] for part in q.components]).numpy(),
        torch.eye(2).double().expand(3, 2, 2).numpy(),
        rho,
        N_ITERATES,
    )
    return [*one, *three]


# ------------------------------------------------------------------- stochastic gradients

BATCH = 32


def _batches(seed: int) -> list[Tensor]:
    return problems.batches(seed, 569, BATCH, N_ITERATES)


def stochastic_ours(recipe: Recipe, seed: int) -> Iterates:
    """Batches of 32; RMSprop and Adam start from a scale of 0."""
    rule = recipe.rule(LossGradient(problems.logistic()))
    m = problems.start(seed, 30)
    if recipe.families == (DiagonalGaussian,):
        q = DiagonalGaussian({"theta": m}, {"theta": torch.ones_like(m)})
        state = rule.start(q, scale=torch.zeros_like(m))
    else:
        state = rule.start(fixed_gaussian(m))
    return _means(rule.run(state, N_ITERATES, _batches(seed)))


def stochastic_theirs(recipe: Recipe, seed: int) -> Iterates:
    """The optimiser of PyTorch, on the same batches."""
    steps = recipe.steps
    x, y = problems.breast_cancer()

    def loss(w: Tensor, batch: Tensor) -> Tensor:
        logits = x[batch] @ w
        data = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, y[batch], reduction="sum"
        )
        return len(x) / len(batch) * data + 0.5 * w.square().sum()

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        if recipe.id == "rmsprop":
            assert steps.scale is not None
            return torch.optim.RMSprop(
                params, lr=steps.rho, alpha=1 - steps.scale, eps=steps.damping
            )
        if recipe.id == "adam":
            assert steps.scale is not None
            betas = (steps.momentum, 1 - steps.scale)
            return torch.optim.Adam(params, lr=steps.rho, betas=betas, eps=steps.damping)
        return torch.optim.SGD(params, lr=steps.rho, momentum=steps.momentum)

    return oracles.torch_optimiser(make, loss, problems.start(seed, 30).numpy(), _batches(seed))


RECIPES = (
    Recipe(
        "ridge", "optimisation", "Ridge regression", (FullGaussian,),
        StepSizes(1.0), Approximations(),
        "S = X^T X + delta I, m = S^-1 X^T y, after one step",
        "least squares, diabetes standardised (442 x 10), delta = 1",
        "sklearn Ridge", EXACT, ridge_ours, ridge_theirs,
    ),
    Recipe(
        "gd", "optimisation", "Gradient descent", (IsotropicGaussian,),
        StepSizes(1e-4), Approximations(delta=True),
        "m <- m - rho grad lbar(m)", BREAST_CANCER, "NumPy", EXACT, gd_ours, gd_theirs,
    ),
    Recipe(
        "newton", "optimisation", "Newton's method", (FullGaussian,),
        StepSizes(1.0), Approximations(delta=True),
        "m <- m - hess(m)^-1 grad(m)", BREAST_CANCER, "NumPy and a SciPy solve",
        EXACT, newton_ours, newton_theirs,
    ),
    Recipe(
        "online_newton", "optimisation", "Online Newton", (FullGaussian,),
        StepSizes(0.5), Approximations(delta=True),
        "S <- (1-rho) S + rho hess(m), m <- m - rho S^-1 grad(m)", BREAST_CANCER, "NumPy",
        EXACT, online_newton_ours, online_newton_theirs,
    ),
    Recipe(
        "von", "inference", "Variational online Newton", (FullGaussian,),
        StepSizes(0.1), Approximations(),
        "S <- (1-rho) S + rho E[hess], m <- m - rho S^-1 E[grad], at convergence", FEW,
        "ELBO maximised by SciPy's L-BFGS-B", LIMIT, von_ours, von_theirs,
    ),
    Recipe(
        "laplace", "inference", "Laplace's method", (FullGaussian,),
        StepSizes(0.5), Approximations(delta=True),
        "m = MAP, S = hess lbar(MAP), at convergence", BREAST_CANCER,
        "SciPy trust-exact and the Hessian", EXACT, laplace_ours, laplace_theirs,
    ),
    Recipe(
        "multimodal", "optimisation", "Multimodal optimisation", (Mixture,),
        StepSizes(0.02), Approximations(delta=True),
        "S_k <- S_k + rho hess d(m_k), m_k <- m_k - rho S_k^-1 grad d(m_k), d = lbar + log q",
        f"K = 1: {FEW}; K = 3: a density with three modes in two dimensions",
        "online Newton in NumPy; automatic derivatives", EXACT,
        multimodal_ours, multimodal_theirs,
    ),
    Recipe(
        "sgd", "deep learning", "Stochastic gradient descent", (IsotropicGaussian,),
        StepSizes(1e-4), Approximations(delta=True, minibatch=True),
        "m <- m - rho ghat", BREAST_CANCER, "torch.optim.SGD",
        EXACT, stochastic_ours, stochastic_theirs,
    ),
    Recipe(
        "sgd_momentum", "deep learning", "SGD with momentum", (IsotropicGaussian,),
        StepSizes(1e-4, momentum=0.9),
        Approximations(delta=True, minibatch=True, momentum="heavy_ball"),
        "m <- m - rho ghat + gamma (m - m_before)", BREAST_CANCER, "torch.optim.SGD",
        EXACT, stochastic_ours, stochastic_theirs,
    ),
    Recipe(
        "rmsprop", "deep learning", "RMSprop", (DiagonalGaussian,),
        StepSizes(1e-4, scale=0.1, damping=1e-8),
        Approximations(
            delta=True, minibatch=True, hess="sqgrad", sqrt=True, slow_scale=True
        ),
        "s <- (1-b) s + b ghat^2, m <- m - a ghat / (sqrt(s) + c)", BREAST_CANCER,
        "torch.optim.RMSprop", EXACT, stochastic_ours, stochastic_theirs,
    ),
    Recipe(
        "adam", "deep learning", "Adam", (DiagonalGaussian,),
        StepSizes(1e-4, scale=0.001, momentum=0.9, damping=1e-8),
        Approximations(
            delta=True, minibatch=True, hess="sqgrad", sqrt=True, slow_scale=True,
            momentum="average", bias_correction=True,
        ),
        "RMSprop along the average gradient, both averages corrected for their start",
        BREAST_CANCER, "torch.optim.Adam", EXACT, stochastic_ours, stochastic_theirs,
    ),
)  # fmt: skip
