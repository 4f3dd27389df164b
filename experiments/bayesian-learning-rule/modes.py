"""Multimodal optimisation: a mixture posterior on a density with three modes.

lbar = -log of an equal mixture of N((-3, 0), I), N((3, 0), I) and N((0, 4), I); three components
from m_k ~ N(0, 4 I), S_k = I, equal weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesrule.config import Config
from bayesrule.posteriors import FullGaussian, Mixture
from bayesrule.rule import Approximations, BayesianLearningRule, ComponentGradient, StepSizes
from bayesrule.rule.recipes.optimisation import minus_log_mixture, three_modes
from bayesrule.rule.rule import MixtureState
from bayesrule.seeding import generator
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["Modes"]

NEAR = 0.1
LOOSE = 0.5


class Modes(Task):
    """How many of the three modes the components' means end at.

    ``modes/found`` counts those that a mean is within 0.1 of, ``modes/found_loosely`` within 0.5,
    ``modes/all`` is 1 if all three are found; ``modes/failed`` is 1 if a precision lost its
    positive definiteness, which ends the run; then no mode counts as found.

    Args:
        method: ``rule`` or ``gradient_descent``.
        delta: See `Approximations`.
        positive_definite: See `Approximations`.
        weights: Whether the mixture's weights are learnt.
        rho: Step size.
        steps: Number of steps.
        draws: Draws of each component and step.
    """

    def __init__(
        self,
        method: str,
        delta: bool,
        positive_definite: bool,
        weights: bool,
        rho: float,
        steps: int,
        draws: int,
    ) -> None:
        self.method, self.rho, self.steps, self.draws = method, rho, steps, draws
        self.how = Approximations(delta=delta, positive_definite=positive_definite)
        self.weights = weights

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the steps."""
        return Requirements(0, self.steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take two steps."""
        self.steps = 2
        metrics, _ = self._answer(plan.config["seed"])
        assert metrics["modes/failed"] in (0.0, 1.0)
        return ["2 steps"]

    def run(self, context: Context) -> Outcome:
        """Move the components; seconds, so nothing is checkpointed."""
        metrics, curves = self._answer(context.config["seed"])
        return Outcome(metrics, {"parameters": 0, "curves": curves})

    def _answer(self, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
        g = generator(seed, "modes")
        start = 2.0 * torch.randn(3, 2, generator=g, dtype=torch.float64)
        if self.method == "gradient_descent":
            means, failed, extra = self._descend(start), False, {}
        else:
            means, failed, extra = self._mixture(start, generator(seed, "modes", "noise"))
        _, modes, _ = three_modes()
        gaps = (modes.unsqueeze(1) - means).norm(dim=-1).min(1).values
        near, loose = ((gaps < limit) & (not failed) for limit in (NEAR, LOOSE))
        metrics = {
            "modes/found": float(near.sum()),
            "modes/found_loosely": float(loose.sum()),
            "modes/all": float(near.all()),
            "modes/failed": float(failed),
        }
        curves = {"components": {"start": start.tolist(), "means": means.tolist(), **extra}}
        return metrics, curves

    def _descend(self, start: Tensor) -> Tensor:
        m = start
        for _ in range(self.steps):
            m = m - self.rho * minus_log_mixture(m).grad
        return m

    def _mixture(
        self, start: Tensor, noise: torch.Generator
    ) -> tuple[Tensor, bool, dict[str, Any]]:
        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=noise, dtype=like.dtype)

        gradient = ComponentGradient(minus_log_mixture, self.draws, normal)
        steps = StepSizes(self.rho, weights=None if self.weights else 0.0)
        rule = BayesianLearningRule(Mixture, gradient, steps, self.how)
        eye = torch.eye(2, dtype=torch.float64)
        state = rule.start(Mixture([FullGaussian({"theta": m}, eye) for m in start]))
        assert isinstance(state, MixtureState)
        for _ in range(self.steps):
            moved = rule.step(state)
            assert isinstance(moved, MixtureState)
            if not _proper(moved):
                return state.means, True, {}
            state = moved
        extra = {
            "weights": state.logits.exp().tolist(),
            "precisions": state.precisions.tolist(),
        }
        return state.means, False, extra


def _proper(state: MixtureState) -> bool:
    """Return whether all numbers are finite and all precisions positive definite."""
    if not bool(torch.isfinite(state.means).all() and torch.isfinite(state.precisions).all()):
        return False
    return bool((torch.linalg.eigvalsh(state.precisions) > 0).all())
