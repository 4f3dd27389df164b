"""MC dropout (Gal and Ghahramani, 2016): dropout in training, and again for every test sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bayesrule.models import insert_dropout
from bayesrule.posteriors import DropoutPosterior
from bayesrule.tasks.inference.base import Inference, Measure, Single, with_buffers
from bayesrule.tasks.problem import Learnt, Problem

__all__ = ["MCDropout"]


class MCDropout(Inference):
    """q is the distribution of the network under random masks; its mean is the full network.

    Args:
        base: How the weights are learnt.
        p: Probability that a unit is dropped; None: the model's own dropout layers as they are
            (such as ``model.lora_dropout``).
    """

    def __init__(self, base: Single, p: float | None) -> None:
        self.base, self.p = base, p

    def optimizers(self) -> list[Mapping[str, Any]]:
        """Return the base's configuration."""
        return self.base.optimizers()

    def network(self, model: nn.Module) -> nn.Module:
        """Return the model with dropout layers put in."""
        return model if self.p is None else insert_dropout(model, self.p)

    def learn(self, problem: Problem, *, member: int = 0, measure: Measure | None = None) -> Learnt:
        """Train one network with dropout layers put in."""
        model = self.network(problem.model(member))
        model, _ = self.base.train(problem, model, member)
        state = {n: param.detach() for n, param in model.named_parameters() if param.requires_grad}
        return Learnt(model, with_buffers(DropoutPosterior(state), model))
