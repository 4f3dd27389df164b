"""Expectations under the components of a Gaussian mixture q = sum_k pi_k N(m_k, S_k^-1).

With responsibilities r_k(theta) = pi_k N_k(theta) / q(theta) and e_k = S_k (theta - m_k)::

    grad log q = -sum_k r_k e_k
    hess log q =  sum_k r_k (e_k e_k^T - S_k) - (grad log q)(grad log q)^T

For one component these are -S (theta - m) and -S. The outer products make Hessians indefinite, so
that the plain step can lose positive definiteness; see `positive_definite_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrule.rule.approximations import Approximations
from bayesrule.rule.gradients import Gradient, Noise

__all__ = ["ComponentGradient", "Derivatives", "GridGradient", "mixture_log_density"]


@dataclass(frozen=True)
class Derivatives:
    """A function at many points: value (n,), gradient (n, P), Hessian (n, P, P)."""

    value: Tensor
    grad: Tensor
    hess: Tensor

    def __add__(self, other: Derivatives) -> Derivatives:
        return Derivatives(self.value + other.value, self.grad + other.grad, self.hess + other.hess)


def mixture_log_density(
    theta: Tensor, logits: Tensor, means: Tensor, precisions: Tensor
) -> Derivatives:
    """Return log q, its gradient and its Hessian at theta (n, P)."""
    P = theta.shape[-1]
    d = theta.unsqueeze(1) - means  # (n, K, P)
    e = torch.einsum("kpq,nkq->nkp", precisions, d)
    log_norm = 0.5 * (torch.linalg.slogdet(precisions).logabsdet - P * math.log(2 * math.pi))
    joint = torch.log_softmax(logits, 0) + log_norm - 0.5 * (d * e).sum(-1)
    value = torch.logsumexp(joint, -1)
    r = (joint - value.unsqueeze(-1)).exp()
    grad = -torch.einsum("nk,nkp->np", r, e)
    hess = torch.einsum("nk,nkp,nkq->npq", r, e, e) - torch.einsum("nk,kpq->npq", r, precisions)
    return Derivatives(value, grad, hess - grad.unsqueeze(-1) * grad.unsqueeze(-2))


class ComponentGradient(Gradient):
    """E_k of lbar + log q: at m_k with `delta`, else over antithetic draws of component k.

    Args:
        loss: lbar with its derivatives at points (n, P).
        draws: Number of draws of each component; even.
        noise: Standard normal draws, `noise(like) -> Tensor`, called once a step.
    """

    coordinates = "components"
    flags = frozenset({"delta"})

    def __init__(
        self,
        loss: Callable[[Tensor], Derivatives],
        draws: int = 10,
        noise: Noise = torch.randn_like,
    ) -> None:
        self.loss, self.draws, self.noise = loss, draws, noise

    def components(
        self, logits: Tensor, means: Tensor, precisions: Tensor, how: Approximations
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Gradient`."""
        K, P = means.shape
        if how.delta:
            points = means.unsqueeze(1)  # (K, 1, P)
        else:
            half = self.noise(means.new_empty(K, self.draws // 2, P))
            upper = torch.linalg.cholesky(precisions).mT
            half = torch.linalg.solve_triangular(upper, half.mT, upper=True).mT
            points = means.unsqueeze(1) + torch.cat([half, -half], 1)
        n = points.shape[1]
        theta = points.reshape(K * n, P)
        d = self.loss(theta) + mixture_log_density(theta, logits, means, precisions)
        return (
            d.value.reshape(K, n).mean(1),
            d.grad.reshape(K, n, P).mean(1),
            d.hess.reshape(K, n, P, P).mean(1),
        )


class GridGradient(Gradient):
    """E_k of lbar + log q in one dimension, by the trapezoidal rule on a fine grid: exact.

    Args:
        loss: lbar with its derivatives at points (n, 1).
        grid: The nodes, (n,), equally spaced.
    """

    coordinates = "components"

    def __init__(self, loss: Callable[[Tensor], Derivatives], grid: Tensor) -> None:
        self.loss, self.grid = loss, grid

    def components(
        self, logits: Tensor, means: Tensor, precisions: Tensor, how: Approximations
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Gradient`."""
        theta = self.grid.unsqueeze(-1)
        d = self.loss(theta) + mixture_log_density(theta, logits, means, precisions)
        s = precisions[:, 0, 0].unsqueeze(-1)
        log_w = 0.5 * (s / (2 * math.pi)).log() - 0.5 * s * (self.grid - means).square()  # (K, n)
        w = log_w.exp() * (self.grid[1] - self.grid[0])
        return w @ d.value, w @ d.grad, torch.einsum("kn,npq->kpq", w, d.hess)
