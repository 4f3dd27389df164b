"""Corrections whose loss is one quadratic around the past: what EWC, SI and Laplace share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.corrections.base import Correction, Past
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.data.streams import Experience
from bayesrule.posteriors.params import Params

__all__ = ["Anchored", "labelled", "weights", "zeros"]


def weights(model: nn.Module) -> Params:
    """Return copies of the trainable parameters by name, those of a compiled model included."""
    return {
        name.removeprefix("_orig_mod."): p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def labelled(experience: Experience, past: Past) -> Iterator[dict[str, Tensor]]:
    """Yield an experience's training items in order, as batches for curvature."""
    for input, target in past.batches(experience.train):
        yield {"input": input, "target": target}


class Anchored(Correction):
    """loss = weight * Q(theta), with Q the quadratic around the past.

    Attributes:
        anchor: Q; None before there is a past.
        weight: Of Q beside the mean loss of the current experience.
    """

    vectors = 2

    def __init__(self, weight: float = 1.0) -> None:
        self.anchor: QuadraticAnchor | None = None
        self.weight = weight

    def loss(self, model: nn.Module) -> Tensor | None:
        """Return weight * Q(theta); None before there is a past."""
        if self.anchor is None or self.weight == 0:
            return None
        self.anchor = self.anchor.to(next(model.parameters()).device)
        return self.weight * self.anchor.value(model)

    def state_dict(self) -> dict[str, Any]:
        """Return Q."""
        return {"anchor": None if self.anchor is None else self.anchor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore Q."""
        kept = state["anchor"]
        self.anchor = None if kept is None else QuadraticAnchor.from_state(kept)

    def nbytes(self) -> int:
        """Return the bytes of Q."""
        return 0 if self.anchor is None else self.anchor.nbytes()


def zeros(like: Mapping[str, Tensor]) -> Params:
    """Return zeros of the same names and shapes."""
    return {name: torch.zeros_like(value) for name, value in like.items()}
