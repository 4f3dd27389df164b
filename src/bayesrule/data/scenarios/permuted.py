"""Permuted: all classes in every task, the entries of the inputs in another order each time.

The first task is the data set as it is (as in FROMP, Pan et al., 2020), unless `permute_first`.
Task t has one fixed permutation of the flattened entries, drawn from its own stream of the seed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.data.bundle import DataBundle
from bayesrule.data.scenarios.base import Scenario, TaskRule
from bayesrule.data.streams import Incremental
from bayesrule.seeding import generator

__all__ = ["Permutation", "Permuted"]


class Permutation:
    """Puts the entries of an input in another order.

    Args:
        order: A permutation of the flattened entries.
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def __call__(self, x: Tensor) -> Tensor:
        """Return the permuted inputs, of the same shape (B, ...)."""
        return x.flatten(1)[:, self.order].view_as(x)


class Permuted(Scenario):
    """T permutations of one data set.

    Args:
        n_tasks: T.
        incremental: ``domain``; also ``task`` or ``class`` (labels count anew in every task).
        permute_first: Whether the first task is permuted too.
        online: Items of a piece, or None.
    """

    name = "permuted"

    def __init__(
        self,
        *,
        n_tasks: int = 5,
        incremental: Incremental = "domain",
        permute_first: bool = False,
        online: int | None = None,
    ) -> None:
        super().__init__(n_tasks=n_tasks, incremental=incremental, online=online)
        self.permute_first = permute_first

    def counts(self, n_classes: int) -> tuple[int, int]:
        """Return T and the set's number of classes."""
        assert self.n_tasks is not None
        return self.n_tasks, n_classes

    def rules(self, data: DataBundle, seed: int) -> list[TaskRule]:
        """Return the permutation of each task."""
        classes, size = tuple(range(data.n_outputs)), math.prod(data.input_shape)
        rules = []
        for t in range(self.n_tasks or 0):
            if t == 0 and not self.permute_first:
                rules.append(TaskRule(classes, None, "as it is"))
                continue
            order = torch.randperm(size, generator=generator(seed, "permutation", t))
            rules.append(TaskRule(classes, Permutation(order), f"permutation {t} of seed {seed}"))
        return rules
