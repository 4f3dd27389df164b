"""Runs of an index that agree in some configuration keys: counts, and values by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Group", "GroupBuilder"]


@dataclass(frozen=True)
class Group:
    """Runs that agree in the keys grouped by.

    Attributes:
        labels: Their values, in the order of the keys.
        runs: Number of runs.
        seeds: Number of different seeds.
        done: Number of finished runs.
        values: For each metric, the finite values of finished runs by seed.
    """

    labels: tuple[str | None, ...]
    runs: int
    seeds: int
    done: int
    values: Mapping[str, Mapping[str, Sequence[float]]]


class GroupBuilder:
    """Collects the runs of one group.

    Args:
        labels: Of the group.
        metrics: Whose values are kept.
    """

    def __init__(self, labels: tuple[str | None, ...], metrics: Sequence[str]) -> None:
        self._labels, self._metrics = labels, list(metrics)
        self._runs = self._done = 0
        self._seeds: set[str] = set()
        self._values: dict[str, dict[str, list[float]]] = {name: {} for name in metrics}

    def add(self, recorded: str, seed: str, values: Sequence[float | None]) -> None:
        """Add a run: its recorded status, its seed, and a value (or None) for every metric."""
        self._runs += 1
        self._seeds.add(seed)
        if recorded != "done":
            return
        self._done += 1
        for name, value in zip(self._metrics, values, strict=True):
            if value is not None and abs(value) != float("inf"):
                self._values[name].setdefault(seed, []).append(value)

    def group(self) -> Group:
        """Return what was collected."""
        return Group(self._labels, self._runs, len(self._seeds), self._done, self._values)
