"""What a scenario is: tasks made of a data set, heads by what is incremental, pieces if online.

With K classes per task and T tasks, task t has

===========  =====================  ======================  ==============
incremental  head of task t         targets of task t       outputs
===========  =====================  ======================  ==============
task         t K, ..., (t + 1) K-1  0, ..., K - 1           T K
domain       0, ..., K - 1          0, ..., K - 1           K
class        0, ..., T K - 1        t K, ..., (t + 1) K-1   T K
===========  =====================  ======================  ==============

Online, a task arrives in pieces of `online` items, in an order drawn by the seed, each an
experience of its own that is seen once; the test items of its task belong to all of them.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayesrule.data.bundle import DataBundle, Split
from bayesrule.data.streams import Experience, Incremental, Stream
from bayesrule.data.views import Change, View
from bayesrule.errors import ConfigError, Unsupported
from bayesrule.seeding import generator

__all__ = ["Scenario", "StreamSizes", "TaskRule", "make_scenario"]


@dataclass(frozen=True)
class StreamSizes:
    """What a stream needs, from declared numbers alone.

    Attributes:
        n_train: Training items of each experience (about, where classes differ in size).
        n_outputs: Outputs of the network.
    """

    n_train: tuple[int, ...]
    n_outputs: int


@dataclass(frozen=True)
class TaskRule:
    """How one task is made of the data set.

    Attributes:
        classes: Labels of the data set that it shows; their positions are its targets.
        change: Applied to inputs; None: nothing.
        name: Says what `change` does; part of the fingerprint.
    """

    classes: tuple[int, ...]
    change: Change | None = None
    name: str = ""


class Scenario(ABC):
    """Makes a stream of a classification set.

    Args:
        n_tasks: T; None: as many as the scenario has.
        incremental: ``task``, ``domain`` or ``class``.
        online: Items of a piece, or None: a task is one experience.
    """

    name: ClassVar[str]

    def __init__(
        self, *, n_tasks: int | None, incremental: Incremental, online: int | None = None
    ) -> None:
        self.n_tasks, self.incremental, self.online = n_tasks, incremental, online

    @abstractmethod
    def counts(self, n_classes: int) -> tuple[int, int]:
        """Return the number of tasks T and of classes per task K, of a set with `n_classes`.

        Raises:
            ConfigError: If the set has too few classes.
        """

    @abstractmethod
    def rules(self, data: DataBundle, seed: int) -> list[TaskRule]:
        """Return how each task is made of `data`."""

    def notes(self, rules: Sequence[TaskRule]) -> dict[str, Any]:
        """Return facts for the record."""
        return {"tasks": [rule.name for rule in rules]} if any(r.name for r in rules) else {}

    def sizes(self, n_classes: int, n_train: int) -> StreamSizes:
        """Return what the stream needs, from declared numbers alone."""
        n_tasks, per_task = self.counts(n_classes)
        own = max(1, round(n_train * per_task / n_classes))
        pieces = [own] if self.online is None else _pieces(own, self.online)
        outputs = per_task if self.incremental == "domain" else n_tasks * per_task
        return StreamSizes(tuple(pieces * n_tasks), outputs)

    def stream(self, data: DataBundle, *, seed: int) -> Stream:
        """Return the stream.

        Args:
            data: A classification set.
            seed: The run's seed; every draw has a named stream below it.

        Raises:
            Unsupported: If the set is not one of classes.
            ConfigError: If options and set do not fit.
        """
        if data.kind != "classification":
            raise Unsupported(
                f"scenario={self.name} makes tasks of classes, and data={data.name} is for "
                f"{data.kind}: choose a classification set"
            )
        n_tasks, k = self.counts(data.n_outputs)
        rules = self.rules(data, seed)
        experiences: list[Experience] = []
        for t, rule in enumerate(rules):
            experiences += self._task(data, rule, t, k, n_tasks, len(experiences), seed)
        n_outputs = k if self.incremental == "domain" else n_tasks * k
        return Stream(
            name=self.name,
            incremental=self.incremental,
            experiences=tuple(experiences),
            n_outputs=n_outputs,
            input_shape=tuple(data.input_shape),
            fingerprint=_fingerprint(self, data, experiences),
            notes=self.notes(rules),
        )

    def _task(
        self, data: DataBundle, rule: TaskRule, t: int, k: int, n_tasks: int, first: int, seed: int
    ) -> list[Experience]:
        """Return the experiences of one task."""
        columns, own, offset = _head(self.incremental, t, k, n_tasks)

        def of_task(split: Split, part: str) -> Split:
            labels = split.targets.long()
            position = torch.full((int(data.n_outputs),), -1)
            position[list(rule.classes)] = torch.arange(k) + offset
            chosen = (position[labels] >= 0).nonzero()[:, 0]
            if len(chosen) == 0:
                raise ConfigError(
                    f"task {t + 1} of scenario={self.name} (classes {list(rule.classes)}) has no "
                    f"{part} items in data={data.name}: use more of them"
                )
            kept = split.subset(chosen)
            return View(kept, position[labels[chosen]], rule.change, rule.name)

        train = of_task(data.train, "training")
        val = None if data.val is None else of_task(data.val, "validation")
        test = of_task(data.test, "test")
        parts = [train] if self.online is None else _in_pieces(train, self.online, seed, t)
        return [
            Experience(
                index=first + i,
                train=part,
                val=val,
                test=test,
                columns=columns,
                classes=rule.classes,
                own=own,
                task=t,
                last=i == len(parts) - 1,
            )
            for i, part in enumerate(parts)
        ]

    def options(self) -> dict[str, Any]:
        """Return the options that are part of the fingerprint."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


def _head(
    incremental: Incremental, t: int, k: int, n_tasks: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return the head of task t, the outputs of its own classes, and its first target."""
    mine = tuple(range(t * k, (t + 1) * k))
    if incremental == "task":
        return mine, mine, 0
    if incremental == "domain":
        return tuple(range(k)), tuple(range(k)), 0
    return tuple(range(n_tasks * k)), mine, t * k


def _pieces(n: int, size: int) -> list[int]:
    return [min(size, n - start) for start in range(0, n, size)]


def _in_pieces(train: Split, size: int, seed: int, t: int) -> list[Split]:
    """Cut a task's items into pieces, in an order drawn by the seed."""
    order: Tensor = torch.randperm(len(train), generator=generator(seed, "online", t))
    return [train.subset(part) for part in order.split(size)]


def _fingerprint(scenario: Scenario, data: DataBundle, experiences: Sequence[Experience]) -> str:
    content = {
        "data": data.fingerprint,
        "scenario": scenario.name,
        "options": scenario.options(),
        "experiences": [
            [each.train.digest(), each.test.digest(), list(each.columns)] for each in experiences
        ],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def make_scenario(options: Mapping[str, Any]) -> Scenario:
    """Return the scenario of a ``conf/scenario`` mapping."""
    from bayesrule.config import accepted, locate

    target: Any = locate(options["_target_"], "scenario._target_")
    made: Scenario = target(**accepted(target, dict(options)))
    return made
