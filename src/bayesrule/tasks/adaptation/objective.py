"""What is minimised: data terms and a quadratic; and the exact minimiser for linear models.

::

    L(w) = sum_terms sum_i s_i T^2 l(y_i, f_i(w) / T)  +  1/2 (w - m)^T S (w - m)

Every method of an adaptation is such a sum, so all are solved by the same code. For a generalised
linear model f_i = W x_i, W of shape (C, P), with h = A' and Lambda = h'::

    grad L = sum_i s_i T ( h(f_i / T) - y_i ) x_i^T  +  S (W - m)
    hess L = sum_i s_i Lambda(f_i / T) (x) x_i x_i^T  +  S

which is convex if no input has a negative total weight: data that are taken away must be in the
memory with weight 1 or more (they then enter linearly). Newton's method with a backtracking line
search is exact to rounding; L-BFGS (scipy) is for many parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from bayesrule.corrections.k_prior import DataTerm, KPrior
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.errors import BayesruleError, NonFiniteLoss
from bayesrule.likelihoods import Likelihood

__all__ = ["WEIGHT", "Objective", "Solver", "gradient", "hessian", "solve"]

Solver = Literal["newton", "lbfgs"]
WEIGHT = "weight"
"""Name of a linear model's parameter, of shape (C, P)."""

_ARMIJO = 1e-4
_HALVINGS = 60


@dataclass(frozen=True)
class Objective:
    """L(w).

    Attributes:
        terms: Data terms.
        anchor: The quadratic.
        likelihood: Links outputs to labels.
    """

    terms: tuple[DataTerm, ...]
    anchor: QuadraticAnchor
    likelihood: Likelihood

    @property
    def size(self) -> int:
        """The number of items that a gradient passes over, or 1."""
        return max(1, sum(len(term) for term in self.terms))

    def value(self, model: nn.Module) -> Tensor:
        """Return L at a network's parameters, 0-d and differentiable."""
        found = KPrior(self.terms, None, self.likelihood).functional(model)
        return found + self.anchor.value(model)


def _value(objective: Objective, W: Tensor) -> Tensor:
    functional = KPrior(objective.terms, None, objective.likelihood).functional(lambda x: x @ W.mT)
    return functional + objective.anchor.value({WEIGHT: W})


def gradient(objective: Objective, W: Tensor) -> Tensor:
    """Return grad L of a linear model, shape (C, P)."""
    grad = objective.anchor.gradient({WEIGHT: W})[WEIGHT]
    for term in objective.terms:
        residual_MC = term.residual(term.input @ W.mT, objective.likelihood)
        grad = grad + residual_MC.mT @ term.input
    return grad


def hessian(objective: Objective, W: Tensor) -> Tensor:
    """Return hess L of a linear model, shape (C P, C P), rows in the order of W.flatten()."""
    C, P = W.shape
    hess = torch.zeros(C, P, C, P, dtype=W.dtype)
    for term in objective.terms:
        x = term.input
        curv_MCC = objective.likelihood.hessian(x @ W.mT / term.temperature)
        curv_MCC = curv_MCC * term.weight[:, None, None]
        for c in range(C):
            for d in range(c, C):
                block = (curv_MCC[:, c, d, None] * x).mT @ x
                hess[c, :, d] += block
                if d > c:
                    hess[d, :, c] += block
    return hess.reshape(C * P, C * P) + objective.anchor.matrix()


def solve(
    objective: Objective,
    start: Tensor,
    *,
    solver: Solver = "newton",
    tolerance: float = 1e-10,
    max_iterations: int = 200,
) -> Tensor:
    """Return the minimiser of L for a linear model.

    Args:
        objective: L, in float64.
        start: W_0, shape (C, P), float64.
        solver: ``newton`` (dense Hessian) or ``lbfgs``.
        tolerance: On max |grad L| over max(1, that at zero weights); infinity: two steps.
        max_iterations: Newton steps; a hundred times as many L-BFGS steps.

    Raises:
        NonFiniteLoss: If the objective is not finite on the way.
        BayesruleError: If the tolerance is not reached, or L is not convex.
    """
    W0 = start.detach().clone()
    scale = max(1.0, float(gradient(objective, torch.zeros_like(W0)).abs().max()))
    if tolerance == math.inf:
        return _lbfgs(objective, W0, 0.0, 2)
    if solver == "lbfgs":
        W = _lbfgs(objective, W0, tolerance * scale, 100 * max_iterations)
    else:
        W = _newton(objective, W0, tolerance * scale, max_iterations)
    left = float(gradient(objective, W).abs().max())
    if not left <= 10 * tolerance * scale:
        raise BayesruleError(
            f"the {solver} solver stopped at a gradient of {left:.3g}, wanted "
            f"{tolerance * scale:.3g}: the objective may be unbounded (task.memory, task.strength)"
        )
    return W


def _newton(objective: Objective, W: Tensor, tolerance: float, max_iterations: int) -> Tensor:
    value = _value(objective, W)
    for _ in range(max_iterations):
        grad = gradient(objective, W)
        if float(grad.abs().max()) <= tolerance:
            break
        chol, info = torch.linalg.cholesky_ex(hessian(objective, W))
        if int(info):
            raise BayesruleError(
                "the Hessian is not positive definite: data are taken away that are not in the "
                "memory, so that the objective is not convex"
            )
        step = torch.cholesky_solve(grad.reshape(-1, 1), chol).reshape(W.shape)
        slope = (grad * step).sum()
        size = 1.0
        for _ in range(_HALVINGS):
            moved = W - size * step
            new = _value(objective, moved)
            if new <= value - _ARMIJO * size * slope:
                break
            if slope <= 1e-12 * value.abs() and size == 1.0:  # the decrease drowns in rounding
                break
            size *= 0.5
        if not torch.isfinite(new):
            raise NonFiniteLoss(f"the objective is {float(new)} after a Newton step")
        W, value = moved, new
    return W


def _lbfgs(objective: Objective, W: Tensor, tolerance: float, max_iterations: int) -> Tensor:
    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).reshape(W.shape)
        return float(_value(objective, point)), gradient(objective, point).flatten().numpy()

    found = optimize.minimize(
        both,
        W.flatten().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": tolerance, "ftol": 0.0, "maxiter": max_iterations,
                 "maxfun": 2 * max_iterations, "maxcor": 30},
    )  # fmt: skip
    return torch.from_numpy(found.x).reshape(W.shape)
