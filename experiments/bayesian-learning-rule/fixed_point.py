"""Fixed points of the rule: E_q[grad lbar] = 0 and S = E_q[hess lbar]."""

from __future__ import annotations

import torch

from bayesrule.config import Config
from bayesrule.posteriors import FullGaussian
from bayesrule.rule import (
    Approximations,
    BayesianLearningRule,
    QuadratureGradient,
    StepSizes,
    problems,
)
from bayesrule.rule.rule import GaussianState
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["FixedPoint"]

FEATURES = 10


class FixedPoint(Task):
    """Variational online Newton on logistic regression with exact expectations.

    ``residual/grad`` and ``residual/hess`` are the largest entries of E_q[grad lbar] and of
    S - E_q[hess lbar] after the last step; the curve has them after every tenth of the steps.

    Args:
        rho: Step size.
        steps: Number of steps.
        start_prec: Precision of the start.
    """

    def __init__(self, rho: float, steps: int, start_prec: float) -> None:
        self.rho, self.steps, self.start_prec = rho, steps, start_prec

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the steps; the model has no network."""
        return Requirements(569, self.steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take ten steps."""
        curve = FixedPoint(self.rho, 10, self.start_prec).residuals(plan.config["seed"])
        assert curve["grad"][-1] < curve["grad"][0]
        return ["10 steps"]

    def run(self, context: Context) -> Outcome:
        """Compute; a second or two, so nothing is checkpointed."""
        curve = self.residuals(context.config["seed"])
        metrics = {f"residual/{name}": curve[name][-1] for name in ("grad", "hess")}
        return Outcome(metrics, {"parameters": 0, "curves": {"residual": curve}})

    def residuals(self, seed: int) -> dict[str, list[float]]:
        """Return step numbers and both residuals."""
        gradient = QuadratureGradient(problems.logistic(FEATURES))
        rule = BayesianLearningRule(FullGaussian, gradient, StepSizes(self.rho))
        eye = torch.eye(FEATURES, dtype=torch.float64)
        start = problems.start(seed, FEATURES, sd=1.0)
        state = rule.start(FullGaussian({"theta": start}, self.start_prec * eye))
        every = max(1, self.steps // 50)
        curve: dict[str, list[float]] = {"step": [], "grad": [], "hess": []}
        for t in range(self.steps + 1):
            assert isinstance(state, GaussianState)
            if t % every == 0 or t == self.steps:
                g, H = gradient.moments(
                    state.mean, state.scale, Approximations(), None, curvature=True
                )
                curve["step"].append(float(t))
                curve["grad"].append(float(g.abs().max()))
                curve["hess"].append(float((state.scale - H).abs().max()))
            if t < self.steps:
                state = rule.step(state)
        return curve
