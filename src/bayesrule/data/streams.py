"""Streams of experiences: what a continual learner meets, one after another.

A stream is a list of experiences with a fingerprint. What a task is differs by scenario (van de
Ven and Tolias, 2019):

    task        every task has a head of its own (`Experience.columns`), and its id is known at test
    domain      the same labels, other inputs, one head
    class       new labels each time, one head over all of them, no id

Scenarios (`bayesrule.data.scenarios`) make streams of any classification set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bayesrule.data.bundle import Split
from bayesrule.data.views import Union, View

__all__ = ["Experience", "Incremental", "Stream"]

Incremental = Literal["task", "domain", "class"]


@dataclass(frozen=True)
class Experience:
    """One experience of a stream: a task, or (online) a piece of one.

    Attributes:
        index: Position in the stream, from 0.
        train: Training items; targets count within `columns`.
        val: Validation items of its task, or None.
        test: Test items of its task.
        columns: The network's outputs that are this task's head, in the order of its targets.
        classes: Labels of the whole data set that it shows, for people.
        own: The outputs of its own classes: all of `columns`, but of one head over all classes
            (class-incremental) the task's part. A task-aware evaluation looks at these alone.
        task: Number of its task, from 0; the index, unless tasks arrive in pieces.
        last: Whether its task ends with it.
    """

    index: int
    train: Split
    val: Split | None
    test: Split
    columns: tuple[int, ...]
    classes: tuple[int, ...]
    own: tuple[int, ...] = ()
    task: int = -1
    last: bool = True

    def __post_init__(self) -> None:
        if not self.own:
            object.__setattr__(self, "own", self.columns)
        if self.task < 0:
            object.__setattr__(self, "task", self.index)

    def in_columns(self, split: Split) -> Split:
        """Return a split of this experience with the network's outputs as targets."""
        return View(split, torch.tensor(self.columns)[split.targets.long()])


@dataclass(frozen=True)
class Stream(Sequence[Experience]):
    """All experiences, in order.

    Attributes:
        name: Of the scenario.
        incremental: What changes from one experience to the next.
        experiences: The experiences.
        n_outputs: Outputs of a network that serves all of them.
        input_shape: Shape of one input.
        fingerprint: SHA-256 over the data set, the scenario's options and the chosen items.
        notes: Facts worth recording (orders of classes, angles).
    """

    name: str
    incremental: Incremental
    experiences: tuple[Experience, ...]
    n_outputs: int
    input_shape: tuple[int, ...]
    fingerprint: str
    notes: dict[str, Any]

    def __len__(self) -> int:
        return len(self.experiences)

    def __getitem__(self, index: Any) -> Any:
        return self.experiences[index]

    def __iter__(self) -> Iterator[Experience]:
        return iter(self.experiences)

    @property
    def tasks(self) -> tuple[Experience, ...]:
        """The experience with which each task ends, in order; all of them, unless online."""
        return tuple(each for each in self.experiences if each.last)

    @property
    def heads(self) -> list[tuple[int, ...]]:
        """The heads' columns, each once, in order."""
        return list(dict.fromkeys(each.columns for each in self.experiences))

    def union(self, n: int) -> Split:
        """Return the training items of the first `n` experiences as one split.

        Targets are outputs of the network (`bayesrule.likelihoods.Heads` takes them).
        """
        return Union([each.in_columns(each.train) for each in self.experiences[:n]])

    def describe(self) -> dict[str, Any]:
        """Return a JSON-able summary for the run's record."""
        return {
            "name": self.name,
            "incremental": self.incremental,
            "n_experiences": len(self),
            "n_tasks": len(self.tasks),
            "n_outputs": self.n_outputs,
            "n_train": [len(each.train) for each in self.experiences],
            "n_test": [len(each.test) for each in self.tasks],
            "classes": [list(each.classes) for each in self.tasks],
            "fingerprint": self.fingerprint,
            "notes": self.notes,
        }
