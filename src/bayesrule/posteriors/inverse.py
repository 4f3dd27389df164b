"""From expected logarithms back to parameters: the inverse maps that have no closed form.

    log x - psi(x) = s                      Gamma      (Minka 2002, "Estimating a Gamma")
    d log x - psi_d(x) = s                  Wishart    psi_d(x) = sum_{j<d} psi(x - j/2)
    psi(a_k) - psi(sum_j a_j) = t_k         Dirichlet  (Minka 2000, "Estimating a Dirichlet")

Each is solved by Newton's method in coordinates in which it cannot leave the domain; the second
halves its steps while the convex function it minimises would not fall.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dirichlet_from_mean_log", "multidigamma", "solve_log_minus_multidigamma"]

_STEPS = 200
_LAST = 1e-7
"""A relative step this small is the last: Newton's next error is its square."""


def _offsets(x: Tensor, d: int) -> Tensor:
    """Return x - j/2 for j = 0 .. d - 1, on a new last axis."""
    return x.unsqueeze(-1) - 0.5 * torch.arange(d, dtype=x.dtype, device=x.device)


def multidigamma(x: Tensor, d: int) -> Tensor:
    """Return psi_d(x) = sum_{j<d} psi(x - j/2), the derivative of log Gamma_d, for x > (d-1)/2."""
    return torch.digamma(_offsets(x, d)).sum(-1)


def solve_log_minus_multidigamma(s: Tensor, d: int = 1) -> Tensor:
    """Return x > (d - 1)/2 with d log x - psi_d(x) = s, for s > 0, entry by entry.

    The left side falls from infinity to 0. Its logarithm is nearly linear in u = log(x - (d-1)/2)
    at both ends, so that Newton's method on log(left) = log(s) in u is safe from a start of the
    right size.
    """
    shift = 0.5 * (d - 1)
    u = torch.log(d * (d + 1) / 4.0 / s + 1e-300)  # exact as s -> 0
    for _ in range(_STEPS):
        y = u.exp()
        x = y + shift
        left = d * x.log() - multidigamma(x, d)
        slope = (d / x - torch.polygamma(1, _offsets(x, d)).sum(-1)) * y / left
        step = ((left / s).log() / slope).clamp(-2.0, 2.0)
        u = u - step
        if bool((step.abs() <= _LAST).all()):
            break
    return u.exp() + shift


def dirichlet_from_mean_log(t: Tensor) -> Tensor:
    """Return alpha > 0 with psi(alpha_k) - psi(sum alpha) = t_k; t is (..., K), sum exp t_k < 1.

    Minimises the convex Phi(alpha) = sum lgamma(alpha_k) - lgamma(sum alpha) - <alpha, t>, whose
    Hessian diag(psi'(alpha_k)) - psi'(sum alpha) is inverted in O(K) (Sherman-Morrison).
    """
    K = t.shape[-1]
    # of the right size: for large alpha, 1 - sum exp(t) is about (K - 1) / (2 sum alpha)
    gap = (1.0 - t.exp().sum(-1, keepdim=True)).clamp_min(1e-12)
    alpha = t.exp().clamp_min(1e-3) * ((K - 1) / (2.0 * gap)).clamp_min(1e-2)
    value, before = _dirichlet_phi(alpha, t), float("inf")
    for _ in range(_STEPS):
        total = alpha.sum(-1, keepdim=True)
        grad = torch.digamma(alpha) - torch.digamma(total) - t
        inv = 1.0 / torch.polygamma(1, alpha)
        z = torch.polygamma(1, total)
        shared = (inv * grad).sum(-1, keepdim=True) / (1.0 / z - inv.sum(-1, keepdim=True))
        step = inv * (grad + shared)
        size = float((step.abs() / alpha).max())
        last = size <= _LAST or (size < 1e-3 and size >= before)  # rounding: it falls no further
        before = size
        alpha, value, moved = _descend(alpha, value, step, t)
        if last or not moved:
            break
    return alpha


def _dirichlet_phi(alpha: Tensor, t: Tensor) -> Tensor:
    return torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.sum(-1)) - (alpha * t).sum(-1)


def _descend(alpha: Tensor, value: Tensor, step: Tensor, t: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return alpha - size * step, halving each row's size until alpha > 0 and Phi does not rise."""
    size = torch.ones_like(value)
    slack = 1e-14 * (1.0 + value.abs())
    for _ in range(60):
        trial = alpha - size.unsqueeze(-1) * step
        inside = (trial > 0.0).all(-1)
        new = _dirichlet_phi(torch.where(inside.unsqueeze(-1), trial, alpha), t)
        bad = ~inside | (new > value + slack)
        if not bool(bad.any()):
            return trial, new, True
        size = torch.where(bad, 0.5 * size, size)
    keep = bad.unsqueeze(-1)
    return torch.where(keep, alpha, trial), torch.where(bad, value, new), not bool(bad.all())
