"""What a recipe is: one choice of family, step sizes and approximations, and what it must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.errors import BayesruleError
from bayesrule.posteriors import Posterior
from bayesrule.rule.approximations import Approximations, StepSizes
from bayesrule.rule.gradients import Gradient
from bayesrule.rule.rule import BayesianLearningRule

__all__ = ["EXACT", "LIMIT", "Recipe", "deviation"]

Iterates = Sequence[Any]

EXACT = 1e-10
"""Tolerance of rows that reproduce an algorithm iterate by iterate, in float64."""

LIMIT = 1e-5
"""Tolerance of rows that reproduce it in a limit: at convergence, or as a temperature goes to 0."""

GROUPS = ("optimisation", "deep learning", "inference")


@dataclass(frozen=True)
class Recipe:
    """One row of the table of algorithms that the rule contains.

    Attributes:
        id: Name on the command line.
        group: One of `GROUPS`.
        algorithm: The classical algorithm.
        families: The posterior's families; several for the nodes of a mean field.
        steps: Step sizes.
        approximations: What is approximated.
        update: The update that is recovered.
        problem: What it is run on.
        oracle: What it is compared with.
        tolerance: Largest deviation that passes.
        ours: Iterates by the rule, given the recipe and a seed.
        theirs: The same by the oracle.
    """

    id: str
    group: str
    algorithm: str
    families: tuple[type[Posterior], ...]
    steps: StepSizes
    approximations: Approximations
    update: str
    problem: str
    oracle: str
    tolerance: float
    ours: Callable[[Recipe, int], Iterates]
    theirs: Callable[[Recipe, int], Iterates]

    @property
    def family(self) -> str:
        """The families' names."""
        return " x ".join(family.__name__ for family in self.families)

    def rule(
        self, gradient: Gradient, family: type[Posterior] | None = None, **steps: float
    ) -> BayesianLearningRule:
        """Return the rule of this recipe for a gradient.

        Args:
            gradient: The estimate of the gradient.
            family: One of several families; the only one by default.
            **steps: Step sizes in place of the recipe's (schedules).
        """
        chosen = self.families[0] if family is None else family
        return BayesianLearningRule(
            chosen, gradient, replace(self.steps, **steps), self.approximations
        )

    def residual(self, seed: int) -> float:
        """Return the largest deviation of the rule's iterates from the oracle's, at a seed."""
        return deviation(self.ours(self, seed), self.theirs(self, seed))

    def describe(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {
            "id": self.id,
            "group": self.group,
            "algorithm": self.algorithm,
            "family": self.family,
            "approximations": self.approximations.active(),
            "steps": self.steps.given(),
            "update": self.update,
            "problem": self.problem,
            "oracle": self.oracle,
            "tolerance": self.tolerance,
        }


def deviation(ours: Iterates, theirs: Iterates) -> float:
    """Return the largest |ours - theirs|, over the size of theirs where that is above 1.

    Raises:
        BayesruleError: If the two have not the same number of arrays, or not their shapes.
    """
    if len(ours) != len(theirs):
        raise BayesruleError(f"{len(ours)} iterates of ours against {len(theirs)} of the oracle")
    largest = 0.0
    for ours_t, theirs_t in zip(ours, theirs, strict=True):
        a, b = (np.asarray(_plain(value), dtype=np.float64) for value in (ours_t, theirs_t))
        if a.shape != b.shape:
            raise BayesruleError(f"an iterate of shape {a.shape} against one of {b.shape}")
        gap = float(np.max(np.abs(a - b))) / max(1.0, float(np.max(np.abs(b))))
        largest = max(largest, gap) if np.isfinite(gap) else float("inf")
    return largest


def _plain(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, Tensor) else value


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Return all entries of several tensors as one vector."""
    return torch.cat([part.reshape(-1) for part in parts])
