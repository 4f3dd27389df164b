"""Deep ensembles: q is an equal mixture of independently learnt posteriors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bayesrule.posteriors import Mixture
from bayesrule.tasks.inference.base import Inference, Measure
from bayesrule.tasks.problem import Learnt, Problem

__all__ = ["DeepEnsemble"]


class DeepEnsemble(Inference):
    """q = (1/M) sum_k q_k, each q_k from its own initialisation, data order and noise.

    With SGD members it is the deep ensemble of Lakshminarayanan et al. (2017), with IVON members
    multi-IVON (Shen et al., 2024).

    Args:
        member: How one member is learnt.
        members: Number M of members.
    """

    def __init__(self, member: Inference, members: int) -> None:
        self.member, self.members = member, members
        self.trainings = members * member.trainings
        self.min_steps = member.min_steps
        self.vectors = member.vectors + 2 * (members - 1)  # mean and precision of the others

    def optimizers(self) -> list[Mapping[str, Any]]:
        """Return the member's."""
        return self.member.optimizers()

    def network(self, model: nn.Module) -> nn.Module:
        """Return the member's network."""
        return self.member.network(model)

    def learn(self, problem: Problem, *, member: int = 0, measure: Measure | None = None) -> Learnt:
        """Train the members one after another."""
        learnt = [
            self.member.learn(problem, member=member * self.members + k, measure=measure)
            for k in range(self.members)
        ]
        return Learnt(learnt[0].model, Mixture([each.posterior for each in learnt]))
