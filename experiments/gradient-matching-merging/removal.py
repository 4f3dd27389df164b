"""Removal at matched accuracy on the other classes (claim C4)."""

from __future__ import annotations

from dataclasses import dataclass

from bayesrule.tasks.merging import Ingredients, Merging, Parts
from bayesrule.tasks.merging.task import distance
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.task import Outcome

__all__ = ["Removal"]


@dataclass
class Removal(Merging):
    """Adds ``matched/acc_bad``: accuracy on the class in question, at little loss elsewhere.

    Of all factors, the best accuracy on the class whose rows were mislabelled, among those with an
    accuracy on the other classes of at least that of the model trained without the rows less
    `margin` (0 if there is none). `matched/distance` is the least distance to that model over all
    factors.

    Attributes:
        margin: The loss of accuracy on other classes that is allowed.
    """

    margin: float = 0.01

    def evaluate(self, problem: Problem, parts: Parts, made: Ingredients) -> Outcome:
        """Return the usual metrics, and those at matched accuracy."""
        outcome = super().evaluate(problem, parts, made)
        found = outcome.metrics
        least = found["without/test_other/acc@mean"] - self.margin
        fair = [
            found[f"alpha{a:g}/test_bad/acc@mean"]
            for a in self.alphas
            if found[f"alpha{a:g}/test_other/acc@mean"] >= least
        ]
        found["matched/acc_bad"] = max([found["base/test_bad/acc@mean"], *fair])
        found["matched/distance"] = min(found[f"alpha{a:g}/distance"] for a in self.alphas)
        assert made.without is not None
        found["base/distance"] = distance(made.base, made.without)
        return outcome
