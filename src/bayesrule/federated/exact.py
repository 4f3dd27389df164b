"""Clients that are solved exactly: quadratics and generalised linear models of few parameters.

With a dense Hessian the delta-method objective is minimised by Newton's method (one step on a
quadratic), and full-covariance variational online Newton (VON) gives the Gaussian q_k itself.

Newton, on theta with the penalty of `LocalObjective`, halving the step until J falls::

    theta <- theta - (weight H(theta) + hess penalty)^-1 (weight grad l(theta) + grad penalty)

VON, with lam = weight/rho, L steps of sizes a_t, b_t = a, b / (1 + 0.1 t)::

    S <- (1 - b/lam) S + (b/lam) (S_g + (weight E_q[hess l] - V)/rho)
    m <- m - a S^-1 ( E_q[grad l] + (v - V m)/weight + S_g (m - m_g)/lam )
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bayesrule.errors import NonFiniteLoss, Unsupported
from bayesrule.federated.local import LocalObjective, Solve, delta_posterior
from bayesrule.likelihoods import Likelihood
from bayesrule.posteriors import DiagonalGaussian, FullGaussian, NaturalGaussian
from bayesrule.posteriors.params import Params, flatten, unflatten

__all__ = ["LinearModel", "Quadratic", "SummedLoss", "newton", "newton_solver", "von", "von_solver"]


class SummedLoss(Protocol):
    """A client's summed loss of a flat parameter vector, with its derivatives."""

    def value(self, theta: Tensor) -> Tensor:
        """Return l(theta), 0-d."""

    def grad(self, theta: Tensor) -> Tensor:
        """Return grad l, (P,)."""

    def hess(self, theta: Tensor) -> Tensor:
        """Return hess l, (P, P)."""


@dataclass(frozen=True)
class Quadratic:
    """l(theta) = 1/2 theta^T H theta - b^T theta.

    Attributes:
        H: (P, P), symmetric.
        b: (P,).
    """

    H: Tensor
    b: Tensor

    def value(self, theta: Tensor) -> Tensor:
        """Return l(theta)."""
        return 0.5 * theta @ (self.H @ theta) - self.b @ theta

    def grad(self, theta: Tensor) -> Tensor:
        """Return H theta - b."""
        return self.H @ theta - self.b

    def hess(self, theta: Tensor) -> Tensor:
        """Return H."""
        return self.H


@dataclass(frozen=True)
class LinearModel:
    """sum_i nll(y_i | W x_i), theta = vec of W (C, D), row by row.

    Attributes:
        likelihood: With outputs (N, C); one column for a Bernoulli likelihood.
        X: (N, D).
        y: Targets.
        outputs: C.
    """

    likelihood: Likelihood
    X: Tensor
    y: Tensor
    outputs: int

    def logits(self, theta: Tensor) -> Tensor:
        """Return X W^T, (N, C)."""
        return self.X @ theta.reshape(self.outputs, -1).mT

    def value(self, theta: Tensor) -> Tensor:
        """Return the summed negative log-likelihood."""
        return self.likelihood.nll(self.logits(theta), self.y).sum()

    def grad(self, theta: Tensor) -> Tensor:
        """Return vec(residual^T X)."""
        return (self.likelihood.residual(self.logits(theta), self.y).mT @ self.X).flatten()

    def hess(self, theta: Tensor) -> Tensor:
        """Return sum_i Lambda_i (x) x_i x_i^T."""
        lam_NCC = self.likelihood.hessian(self.logits(theta))
        H = torch.einsum("ncd,ni,nj->cidj", lam_NCC, self.X, self.X)
        P = self.outputs * self.X.shape[1]
        return H.reshape(P, P)


def newton(
    objective: LocalObjective, loss: SummedLoss, *, steps: int = 50, tolerance: float = 1e-13
) -> Tensor:
    """Return the flat minimiser of weight l(theta) + penalty(theta).

    Args:
        objective: Weight, penalty and starting point.
        loss: l.
        steps: Most Newton steps.
        tolerance: On the step's length, relative to 1 + ||theta||.

    Raises:
        NonFiniteLoss: If the objective is not finite.
        Unsupported: Function-space terms, which the penalty leaves out.
    """
    if objective.soft:
        raise Unsupported("Newton's method here has no function-space terms: add them to the loss")
    like = objective.prior.mean
    theta = flatten({name: objective.begin[name] for name in like})
    P_hess = objective.hessian()

    def value(at: Tensor) -> Tensor:
        return objective.weight * loss.value(at) + objective.penalty(unflatten(at, like))

    now = value(theta)
    for _ in range(steps):
        pull = flatten(objective.pull(unflatten(theta, like)))
        grad = objective.weight * loss.grad(theta) + pull
        H = objective.weight * loss.hess(theta) + P_hess
        factor, info = torch.linalg.cholesky_ex(H)
        if int(info):  # a tilt may bend an objective away from convexity far from its minimum
            least = float(torch.linalg.eigvalsh(H)[0])
            eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
            factor = torch.linalg.cholesky(H + (abs(least) + 1e-6 * float(H.abs().max())) * eye)
        step = torch.cholesky_solve(grad.unsqueeze(-1), factor).squeeze(-1)
        if not torch.isfinite(step).all():
            raise NonFiniteLoss("a client's objective is not finite: its dual diverged")
        size, slack = 1.0, 1e-12 * (1.0 + abs(float(now)))
        while float(after := value(theta - size * step)) > float(now) + slack and size > 1e-6:
            size *= 0.5
        theta, now = theta - size * step, after
        if float(step.norm()) <= tolerance * (1.0 + float(theta.norm())):
            break
    return theta


def newton_solver(loss: SummedLoss) -> Solve:
    """Return a client's solver by `newton`, the precision by the delta method."""

    def solve(
        objective: LocalObjective, carried: Mapping[str, Any]
    ) -> tuple[NaturalGaussian, dict[str, Any]]:
        theta = newton(objective, loss)
        return _with_curvature(objective, theta, loss), {}

    return solve


def _with_curvature(objective: LocalObjective, theta: Tensor, loss: SummedLoss) -> NaturalGaussian:
    like = objective.prior.mean
    curvature: Params | Tensor | None = None
    if isinstance(objective.prior, FullGaussian):
        curvature = loss.hess(theta)
    elif isinstance(objective.prior, DiagonalGaussian):
        curvature = unflatten(loss.hess(theta).diagonal(), like)
    return delta_posterior(objective, unflatten(theta, like), curvature)


def von(
    objective: LocalObjective,
    loss: SummedLoss,
    *,
    steps: int,
    a: float,
    b: float,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> FullGaussian:
    """Return q_k by variational online Newton with a full covariance.

    Args:
        objective: Its prior is a `FullGaussian`.
        loss: l.
        steps: L.
        a: Step size of the mean.
        b: Step size of the precision, in units of the summed loss; at most lam.
        draws: Antithetic pairs of draws for the expectations; 0: at the mean.
        generator: Of the draws.

    Raises:
        Unsupported: The prior is not a `FullGaussian`, there is no pull, or there are a ridge or
            function-space terms.
    """
    prior = objective.prior
    if not isinstance(prior, FullGaussian) or objective.rho <= 0.0:
        raise Unsupported("VON needs a FullGaussian prior and rho > 0")
    if objective.ridge or objective.soft:
        raise Unsupported("VON has no ridge and no function-space terms beside its prior")
    like, S_g, m_g = prior.mean, prior.precision, flatten(prior.mean)
    lam = objective.weight / objective.rho
    tilt_v, V = torch.zeros_like(m_g), torch.zeros_like(S_g)
    if objective.tilt is not None:
        tilt_v, V = flatten(objective.tilt.nat1), -2.0 * objective.tilt.nat2
    m = flatten({name: objective.begin[name] for name in like})
    S = S_g.clone()
    for t in range(steps):
        a_t, b_t = a / (1.0 + 0.1 * t), min(b / (1.0 + 0.1 * t) / lam, 1.0)
        grad, hess = _expected(loss, m, S, draws, generator)
        target = S_g + (objective.weight * hess - V) / objective.rho
        S = (1.0 - b_t) * S + b_t * target
        S = 0.5 * (S + S.mT)
        factor, info = torch.linalg.cholesky_ex(S)
        if int(info):
            jitter = 1e-7 * torch.eye(len(S), dtype=S.dtype) + S
            factor = torch.linalg.cholesky(jitter)
        g = grad + (tilt_v - V @ m) / objective.weight + S_g @ (m - m_g) / lam
        m = m - a_t * torch.cholesky_solve(g.unsqueeze(-1), factor).squeeze(-1)
    return FullGaussian(unflatten(m, like), S)


def _expected(
    loss: SummedLoss, m: Tensor, S: Tensor, draws: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return E_q[grad l], E_q[hess l] by antithetic draws."""
    if draws == 0:
        return loss.grad(m), loss.hess(m)
    factor = torch.linalg.cholesky(S)
    grad, hess = torch.zeros_like(m), torch.zeros_like(S)
    for _ in range(draws):
        eps = torch.randn(len(m), 1, generator=generator, dtype=m.dtype)
        offset = torch.linalg.solve_triangular(factor.mT, eps, upper=True).squeeze(-1)
        for sign in (1.0, -1.0):
            grad = grad + loss.grad(m + sign * offset) / (2 * draws)
            hess = hess + loss.hess(m + sign * offset) / (2 * draws)
    return grad, hess


def von_solver(loss: SummedLoss, *, generator: torch.Generator, **options: Any) -> Solve:
    """Return a client's solver by `von`; `options` are its step sizes and numbers of steps."""

    def solve(
        objective: LocalObjective, carried: Mapping[str, Any]
    ) -> tuple[NaturalGaussian, dict[str, Any]]:
        return von(objective, loss, generator=generator, **options), {}

    return solve
