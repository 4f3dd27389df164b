"""Split: each task shows some of the classes, such as digits {0, 1}, then {2, 3}, ...

As a domain-incremental stream a target is the position within the task: parity, for pairs of digits
in their natural order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bayesrule.data.bundle import DataBundle
from bayesrule.data.scenarios.base import Scenario, TaskRule
from bayesrule.data.streams import Incremental
from bayesrule.errors import ConfigError
from bayesrule.seeding import generator

__all__ = ["SplitClasses"]


class SplitClasses(Scenario):
    """Classes in groups of `classes_per_task`.

    Args:
        n_tasks: T; None: as many as there are whole groups.
        incremental: ``task``, ``domain`` or ``class``.
        classes_per_task: K.
        order: Classes in the order in which they come; empty: 0, 1, 2, ...
        shuffle: Whether the order is drawn by the seed.
        online: Items of a piece, or None.
    """

    name = "split"

    def __init__(
        self,
        *,
        n_tasks: int | None = None,
        incremental: Incremental = "task",
        classes_per_task: int = 2,
        order: Sequence[int] = (),
        shuffle: bool = False,
        online: int | None = None,
    ) -> None:
        super().__init__(n_tasks=n_tasks, incremental=incremental, online=online)
        self.classes_per_task = classes_per_task
        self.order, self.shuffle = list(order), shuffle

    def counts(self, n_classes: int) -> tuple[int, int]:
        """Return T and K.

        Raises:
            ConfigError: If the classes do not suffice, or `order` is not an order of them.
        """
        k, known = self.classes_per_task, len(self.order) or n_classes
        wrong = [c for c in self.order if c >= n_classes]
        if wrong or len(set(self.order)) < len(self.order):
            raise ConfigError(
                f"scenario.order={self.order}: every class once, from 0 to {n_classes - 1}"
            )
        n_tasks = known // k if self.n_tasks is None else self.n_tasks
        if n_tasks < 1 or n_tasks * k > known:
            raise ConfigError(
                f"scenario.n_tasks={n_tasks} of scenario.classes_per_task={k} need "
                f"{max(1, n_tasks) * k} classes, and there are {known}"
            )
        return n_tasks, k

    def rules(self, data: DataBundle, seed: int) -> list[TaskRule]:
        """Return the classes of each task."""
        n_tasks, k = self.counts(data.n_outputs)
        order = self.order or list(range(data.n_outputs))
        if self.shuffle:
            drawn = torch.randperm(len(order), generator=generator(seed, "class order"))
            order = [order[i] for i in drawn.tolist()]
        return [TaskRule(tuple(order[t * k : (t + 1) * k])) for t in range(n_tasks)]

    def notes(self, rules: Sequence[TaskRule]) -> dict[str, Any]:
        """Return nothing: the record has the classes of every task anyway."""
        return {}
