"""Streams of experiences: what a continual learner meets, one after another.

A stream is a list of experiences with a fingerprint. What a task is differs by scenario (van de
Ven and Tolias, 2019):

    task        every task has a head of its own (`Experience.columns`), and its id is known at test
    domain      the same labels, other inputs, one head
    class       new labels each time, one head over all of them, no id
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bayesrule.data.bundle import Split

__all__ = ["Experience", "Incremental", "Stream"]

Incremental = Literal["task", "domain", "class"]


@dataclass(frozen=True)
class Experience:
    """One task of a stream.

    Attributes:
        index: Position in the stream, from 0.
        train: Training items; targets count within `columns`.
        val: Validation items, or None.
        test: Test items.
        columns: The network's outputs that are this task's head, in the order of its targets.
        classes: Labels of the whole data set that it shows, for people.
    """

    index: int
    train: Split
    val: Split | None
    test: Split
    columns: tuple[int, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Stream(Sequence[Experience]):
    """All experiences, in order.

    Attributes:
        name: Of the scenario.
        incremental: What changes from one experience to the next.
        experiences: The tasks.
        n_outputs: Outputs of a network that serves all of them.
        input_shape: Shape of one input.
        fingerprint: SHA-256 over the data set, the scenario's options and the chosen items.
        notes: Facts worth recording (permutations' seed, angles).
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
