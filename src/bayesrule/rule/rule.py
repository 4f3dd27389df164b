"""The Bayesian learning rule (Khan and Rue 2023, arXiv 2107.04562): its equations, in order.

The rule is natural-gradient descent on the objective of variational Bayes::

    L(q) = E_q[lbar(theta)] - H(q),      lbar(theta) = sum_i loss_i(theta) + R(theta)

over an exponential family q = exp(<lambda, T> - A(lambda)) with expectation parameters mu = E_q[T].
Since F(lambda)^-1 grad_lambda = grad_mu, and grad_mu H = -lambda for a constant base measure::

    lambda <- (1 - rho) lambda - rho grad_mu E_q[lbar]                       `natural_step`

which is also mirror descent, mu <- argmin <grad_mu L, mu> + KL(q_mu || q_now) / rho. A fixed point
has lambda* = -grad_mu E_{q*}[lbar]. With rho = 1 and a conjugate model one step is exact Bayes.

For a Gaussian N(m, S^-1), by Bonnet's and Price's theorems, with g = E_q[grad lbar] and
H = E_q[hess lbar], both under the q before the step::

    S <- (1 - rho) S + rho H                                                 `scale_step`
    m <- m - rho S^-1 g         (the new S)                                  `mean_step`

With S held fixed the base measure is not constant and nothing shrinks: m <- m - rho S^-1 g. For a
mixture of Gaussians each component takes the Gaussian step with lbar + log q in place of lbar
(`mixture_step`). What is approximated on the way is said by `Approximations`; what is estimated
how, by `gradients`. Everything is a sum over data, in the dtype of the start (float64 in recipes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesrule.errors import ConfigError, ImproperDistribution
from bayesrule.posteriors import (
    DiagonalGaussian,
    DropoutPosterior,
    ExponentialFamily,
    FullGaussian,
    IsotropicGaussian,
    Mixture,
    Natural,
    Posterior,
)
from bayesrule.posteriors.params import flatten, unflatten
from bayesrule.rule.approximations import Approximations, StepSizes
from bayesrule.rule.gradients import Gradient

__all__ = [
    "BayesianLearningRule",
    "GaussianState",
    "MixtureState",
    "NaturalState",
    "mean_step",
    "mixture_step",
    "natural_step",
    "positive_definite_step",
    "scale_step",
]


# ------------------------------------------------------------------ the equations


def natural_step(lam: Natural[Any], grad_mu: Natural[Any], rho: float) -> Natural[Any]:
    """Return (1 - rho) lambda - rho grad_mu E_q[lbar]."""
    return (1.0 - rho) * lam - rho * grad_mu


def scale_step(S: Tensor, H: Tensor, rho: float) -> Tensor:
    """Return (1 - rho) S + rho H, for vectors (diagonal) or matrices."""
    return (1.0 - rho) * S + rho * H


def positive_definite_step(S: Tensor, G: Tensor, rho: float) -> Tensor:
    """Return S + rho G + rho^2/2 G S^-1 G, positive definite for any G (Lin et al. 2020).

    Args:
        S: Precision, (..., P) diagonal with G (..., P), or (..., P, P).
        G: Direction, H - S for a Gaussian; of the shape of S.
        rho: Step size.
    """
    if S.ndim == 1:
        return S + rho * G + 0.5 * rho**2 * G.square() / S
    new = S + rho * G + 0.5 * rho**2 * G @ torch.linalg.solve(S, G)
    return 0.5 * (new + new.mT)


def mean_step(
    m: Tensor, S: Tensor, g: Tensor, rho: float, *, sqrt: bool = False, damping: float = 0.0
) -> Tensor:
    """Return m - rho S^-1 g, or with `sqrt` m - rho (S^1/2 + c I)^-1 g."""
    if S.ndim == 1:
        return m - rho * g / ((S.sqrt() if sqrt else S) + damping)
    if sqrt:
        values, vectors = torch.linalg.eigh(S)
        return m - rho * vectors @ ((vectors.mT @ g) / (values.clamp_min(0.0).sqrt() + damping))
    eye = torch.eye(len(m), dtype=m.dtype, device=m.device)
    return m - rho * torch.linalg.solve(S + damping * eye, g)


@dataclass(frozen=True)
class MixtureState:
    """sum_k pi_k N(m_k, S_k^-1): `logits` log pi (K,), `means` (K, P), `precisions` (K, P, P).

    `origin` is a component of the start, for names and shapes.
    """

    logits: Tensor
    means: Tensor
    precisions: Tensor
    origin: Posterior


def mixture_step(
    state: MixtureState,
    expected: tuple[Tensor, Tensor, Tensor],
    steps: StepSizes,
    positive_definite: bool = False,
) -> MixtureState:
    """Move every component and the weights, with d = lbar + log q.

    q is the whole mixture::

        S_k <- S_k + rho E_k[hess d]
        m_k <- m_k - rho S_k^-1 E_k[grad d]                 (the new S_k)
        log(pi_k / pi_K) <- the same - rho_pi (E_k[d] - E_K[d])

    No factors pi_k appear: they cancel in the natural gradient. With `positive_definite` S_k takes
    the second-order step, and m_k steps with the old S_k. A floor of 1e-12 keeps each pi_k.

    Args:
        state: The mixture.
        expected: E_k[d] (K,), E_k[grad d] (K, P), E_k[hess d] (K, P, P).
        steps: Step sizes; `steps.weights` is rho_pi.
        positive_definite: Which step S_k takes.
    """
    d, grad_d, hess_d = expected
    S = state.precisions
    new = (
        positive_definite_step(S, hess_d, steps.rho)
        if positive_definite
        else S + steps.rho * hess_d
    )
    divisor = S if positive_definite else new
    means = state.means - steps.rho * torch.linalg.solve(divisor, grad_d.unsqueeze(-1)).squeeze(-1)
    rho_pi = steps.rho if steps.weights is None else steps.weights
    logits = state.logits - rho_pi * (d - d[-1])
    log_pi = torch.log_softmax(logits, 0).clamp_min(-27.6)  # log 1e-12
    return MixtureState(torch.log_softmax(log_pi, 0), means, new, state.origin)


# ------------------------------------------------------------------ the rule as an object


@dataclass(frozen=True)
class NaturalState:
    """lambda, and the one before it (for momentum)."""

    lam: Natural[Any]
    previous: Natural[Any] | None = None


@dataclass(frozen=True)
class GaussianState:
    """What the rule moves for a Gaussian: the mean m (P,) and the scale S, (P,) or (P, P).

    The scale may be 0 before the first step (RMSprop, Adam), where there is no posterior yet.

    Attributes:
        origin: The posterior of the start: names, shapes, buffers.
        mean: m.
        scale: S, or the fixed precision.
        step: Number of steps taken.
        average: u, the average gradient.
        previous: The mean before the last step.
    """

    origin: Posterior
    mean: Tensor
    scale: Tensor
    step: int = 0
    average: Tensor | None = None
    previous: Tensor | None = None


State = NaturalState | GaussianState | MixtureState

_FLAGS = {
    "mu": {"momentum", "no_decay"},
    "moments": {"momentum"},
    "learnt scale": {"sqrt", "slow_scale", "momentum", "bias_correction", "positive_definite"},
    "components": {"positive_definite"},
}


class BayesianLearningRule:
    """One algorithm: a posterior family, a gradient, step sizes, and what is approximated.

    >>> rule = BayesianLearningRule(FullGaussian, LossGradient(loss), StepSizes(rho=1.0),
    ...                             Approximations(delta=True))          # Newton's method
    >>> state = rule.step(rule.start(q))
    >>> rule.posterior(state)

    The gradient says in which coordinates it estimates: `mu` (grad_mu E_q[lbar], any exponential
    family), `moments` (E[grad lbar] and E[hess lbar]: `FullGaussian`, `DiagonalGaussian`;
    `IsotropicGaussian`, whose covariance stays fixed; `DropoutPosterior`, whose components' stay
    fixed) or `components` (`Mixture` of full Gaussians).

    Args:
        family: A class of `bayesrule.posteriors`.
        gradient: See `bayesrule.rule.gradients`.
        steps: The step sizes.
        approximations: What is approximated; nothing by default.

    Raises:
        ConfigError: The gradient or an approximation has no meaning for the family, or a step size
            that an approximation reads is missing.
    """

    def __init__(
        self,
        family: type[Posterior],
        gradient: Gradient,
        steps: StepSizes,
        approximations: Approximations = Approximations(),  # noqa: B008 (frozen)
    ) -> None:
        self.family, self.gradient = family, gradient
        self.steps, self.approximations = steps, approximations
        kinds: dict[str, Sequence[type[Posterior]]] = {
            "mu": (ExponentialFamily,),
            "moments": (FullGaussian, DiagonalGaussian, IsotropicGaussian, DropoutPosterior),
            "components": (Mixture,),
        }
        if not issubclass(family, tuple(kinds[gradient.coordinates])):
            raise ConfigError(
                f"{type(gradient).__name__} estimates in the coordinates {gradient.coordinates!r}, "
                f"which {family.__name__} does not have"
            )
        flags = set(_FLAGS[gradient.coordinates])
        if gradient.coordinates == "moments" and self.learns_scale:
            flags |= _FLAGS["learnt scale"]
        approximations.require(flags | gradient.flags, family.__name__)
        steps.check(approximations)
        if gradient.coordinates == "mu" and approximations.momentum == "average":
            raise ConfigError("momentum=average is a form of Gaussians; use momentum=heavy_ball")

    @property
    def learns_scale(self) -> bool:
        """Whether the covariance is learnt."""
        return self.family in (FullGaussian, DiagonalGaussian)

    # ------------------------------------------------------------ start and end

    def start(self, q: Posterior, *, scale: Tensor | None = None) -> State:
        """Return the state of a posterior.

        Args:
            q: Where to start.
            scale: Instead of q's precision; may be 0, (P,) or (P, P).
        """
        if isinstance(q, Mixture):
            parts = [FullGaussian.from_gaussian(part) for part in q.components]  # type: ignore[arg-type]
            return MixtureState(
                torch.tensor(q.weights, dtype=parts[0].precision.dtype).log(),
                torch.stack([flatten(part.mean) for part in parts]),
                torch.stack([part.precision for part in parts]),
                parts[0],
            )
        if self.gradient.coordinates == "mu":
            assert isinstance(q, ExponentialFamily)
            return NaturalState(q.natural())
        mean = flatten(q.mean)
        if scale is None:
            if isinstance(q, FullGaussian):
                scale = q.precision
            elif isinstance(q, DiagonalGaussian | IsotropicGaussian):
                scale = flatten(q.precision_diag())
            else:
                scale = torch.ones_like(mean)
        return GaussianState(q, mean, scale)

    def posterior(self, state: State) -> Posterior:
        """Return the posterior of a state.

        Raises:
            ImproperDistribution: There is none: a scale that is not positive (definite).
        """
        if isinstance(state, NaturalState):
            assert issubclass(self.family, ExponentialFamily)
            return self.family.from_natural(state.lam)
        like, buffers = state.origin.mean, state.origin.buffers
        if isinstance(state, MixtureState):
            pairs = zip(state.means, state.precisions, strict=True)
            parts = [FullGaussian(unflatten(m, like), S, buffers=buffers) for m, S in pairs]
            return Mixture(parts, state.logits.exp())
        mean = unflatten(state.mean, like)
        if self.family is FullGaussian:
            return FullGaussian(mean, state.scale, buffers=buffers)
        if self.family is DiagonalGaussian:
            return DiagonalGaussian(mean, unflatten(state.scale, like), buffers=buffers)
        if self.family is IsotropicGaussian:
            return IsotropicGaussian(mean, state.scale[0], buffers=buffers)
        assert isinstance(state.origin, DropoutPosterior)
        return DropoutPosterior(mean, state.origin.p, buffers=buffers)

    # ------------------------------------------------------------------- steps

    def run(
        self, state: State, n_steps: int, batches: Sequence[Tensor] | None = None
    ) -> list[State]:
        """Return the states after each of `n_steps` steps."""
        states = []
        for t in range(n_steps):
            state = self.step(state, None if batches is None else batches[t])
            states.append(state)
        return states

    def step(self, state: State, batch: Tensor | None = None) -> State:
        """Return the state after one step.

        Args:
            state: The state before.
            batch: Indices of the items of the batch; read with `minibatch` only.

        Raises:
            ConfigError: `minibatch` without a batch.
            ImproperDistribution: An expectation is needed under a q that is none.
        """
        if self.approximations.minibatch and batch is None:
            raise ConfigError("approximation minibatch needs a batch: rule.step(state, batch)")
        used = batch if self.approximations.minibatch else None
        if isinstance(state, NaturalState):
            return self._natural(state, used)
        if isinstance(state, MixtureState):
            expected = self.gradient.components(
                state.logits, state.means, state.precisions, self.approximations
            )
            return mixture_step(state, expected, self.steps, self.approximations.positive_definite)
        return self._gaussian(state, used)

    def _natural(self, state: NaturalState, batch: Tensor | None) -> NaturalState:
        assert issubclass(self.family, ExponentialFamily)
        rho, lam = self.steps.rho, state.lam
        grad_mu = self.gradient.grad_mu(self.family.from_natural(lam), self.approximations, batch)
        # lambda <- (1 - rho) lambda - rho grad_mu E[lbar]
        new = natural_step(lam, grad_mu, rho)
        if self.approximations.no_decay:
            new = lam - rho * grad_mu
        if self.approximations.momentum == "heavy_ball" and state.previous is not None:
            new = new + self.steps.momentum * (lam - state.previous)
        return NaturalState(new, lam)

    def _gaussian(self, state: GaussianState, batch: Tensor | None) -> GaussianState:
        how, steps, t = self.approximations, self.steps, state.step + 1
        m, S = state.mean, state.scale
        # g = E[grad lbar], H = E[hess lbar] under the q before the step
        g, H = self.gradient.moments(m, S, how, batch, curvature=self.learns_scale)

        # S <- (1 - b) S + b H
        new_S = S
        b = steps.scale if steps.scale is not None else steps.rho
        if self.learns_scale:
            assert H is not None
            if how.positive_definite:
                _require_scale(S)
                new_S = positive_definite_step(S, H - S, b)
            else:
                new_S = scale_step(S, H, b)

        # u <- gamma u + (1 - gamma) g, both averages corrected for their start at 0
        u, direction, divisor = state.average, g, S if how.positive_definite else new_S
        if how.momentum == "average":
            before = torch.zeros_like(g) if u is None else u
            direction = u = steps.momentum * before + (1 - steps.momentum) * g
        if how.bias_correction:
            if how.momentum == "average":
                direction = direction / (1 - steps.momentum**t)
            divisor = divisor / (1 - (1 - b) ** t)

        # m <- m - a S^-1 u + gamma (m - m_before)
        new_m = mean_step(m, divisor, direction, steps.rho, sqrt=how.sqrt, damping=steps.damping)
        if how.momentum == "heavy_ball" and state.previous is not None:
            new_m = new_m + steps.momentum * (m - state.previous)
        return replace(state, mean=new_m, scale=new_S, step=t, average=u, previous=m)


def _require_scale(S: Tensor) -> None:
    if not bool((S > 0).all() if S.ndim == 1 else (S.diagonal() > 0).all()):
        raise ImproperDistribution(
            "approximation positive_definite steps from a positive scale; start from a proper q"
        )
