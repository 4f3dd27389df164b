"""Flat minima: gradient descent on a loss, and the rule on its expectation under N(m, var).

    l(t)            = 1 - 0.9 exp(-(t+2)^2 / (2 0.05^2)) - 0.6 exp(-(t-2)^2 / (2 1.0^2))
    E_{N(m, v)}[l]  = the same with each bump a exp(-(t-c)^2 / (2 w^2)) replaced by
                      a w / sqrt(w^2 + v) exp(-(m-c)^2 / (2 (w^2 + v)))

The fixed-covariance rule is m <- m - rho var grad_m E[l] (the precision is 1/var; at var = 1 plain
gradient descent on the smoothed loss).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.config import Config
from bayesrule.posteriors import IsotropicGaussian
from bayesrule.rule import (
    Approximations,
    BayesianLearningRule,
    LossGradient,
    StepSizes,
    function_loss,
)
from bayesrule.rule.gradients import Gradient
from bayesrule.rule.rule import GaussianState
from bayesrule.seeding import numpy_generator
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["BUMPS", "FlatMinima", "smoothed_loss"]

BUMPS = ((0.9, -2.0, 0.05), (0.6, 2.0, 1.0))
"""Depth, place and width of the two minima."""

START = -2.1
SPREAD = 0.02
"""Starts are START + SPREAD (u - 1/2) by the seed, all inside the sharp minimum's basin."""


def smoothed_loss(m: Tensor, var: float) -> Tensor:
    """Return E_{N(m, var)}[l], elementwise; l itself for var = 0."""
    value = torch.ones_like(m)
    for depth, place, width in BUMPS:
        wide = width**2 + var
        height = depth * width / math.sqrt(wide)
        value = value - height * torch.exp(-(m - place).square() / (2 * wide))
    return value


class _Exact(Gradient):
    """E_q[grad l] = grad_m E_q[l] in closed form (Bonnet)."""

    coordinates = "moments"

    def moments(
        self, m: Tensor, S: Tensor, how: Approximations, batch: Tensor | None, *, curvature: bool
    ) -> tuple[Tensor, None]:
        var = float(1.0 / S[0])
        return torch.func.grad(lambda at: smoothed_loss(at, var).sum())(m), None


class FlatMinima(Task):
    """Where descent ends: ``end/theta``, ``end/loss`` (of l) and ``end/curvature`` (l'').

    Args:
        var: Variance of the posterior; 0 is gradient descent on l (the delta method).
        rho: Step size.
        steps: Number of steps.
    """

    def __init__(self, var: float, rho: float, steps: int) -> None:
        self.var, self.rho, self.steps = var, rho, steps

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the steps."""
        return Requirements(0, self.steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take ten steps."""
        path = FlatMinima(self.var, self.rho, 10).path(plan.config["seed"])
        assert len(path) == 11
        return ["10 steps"]

    def run(self, context: Context) -> Outcome:
        """Descend; a second, so nothing is checkpointed."""
        path = self.path(context.config["seed"])
        end = torch.tensor(path[-1:], dtype=torch.float64)
        loss = function_loss(lambda t: smoothed_loss(t, 0.0).sum())
        metrics = {
            "end/theta": path[-1],
            "end/loss": float(smoothed_loss(end, 0.0)),
            "end/curvature": float(loss.hess(end)),
        }
        every = max(1, self.steps // 100)
        grid = torch.linspace(-4.0, 5.0, 901, dtype=torch.float64)
        curves = {
            "path": {"theta": path[::every], "var": [self.var]},
            "objective": {
                "theta": grid.tolist(),
                "loss": smoothed_loss(grid, 0.0).tolist(),
                "expected": smoothed_loss(grid, self.var).tolist(),
            },
        }
        return Outcome(metrics, {"parameters": 0, "curves": curves})

    def path(self, seed: int) -> list[float]:
        """Return the means of all steps, the start first."""
        shift = SPREAD * (float(numpy_generator(seed, "flat").random()) - 0.5)
        m = torch.tensor([START + shift], dtype=torch.float64)
        if self.var:
            rule = BayesianLearningRule(IsotropicGaussian, _Exact(), StepSizes(self.rho))
            start = rule.start(IsotropicGaussian({"theta": m}, 1.0 / self.var))
        else:
            gradient = LossGradient(function_loss(lambda t: smoothed_loss(t, 0.0).sum()))
            how = Approximations(delta=True)
            rule = BayesianLearningRule(IsotropicGaussian, gradient, StepSizes(self.rho), how)
            start = rule.start(IsotropicGaussian({"theta": m}, 1.0))
        path = [float(m)]
        for state in rule.run(start, self.steps):
            assert isinstance(state, GaussianState)
            path.append(float(state.mean))
        return path
