"""A reservoir: a uniform sample of everything that came by, in a fixed number of slots.

Item number n = 1, 2, ... of a stream of unknown length (Vitter, 1985, algorithm R)::

    n <= size    goes to slot n
    n >  size    goes to slot j with j uniform on 1..n, if j <= size; else it is not kept

so after n items each of them is in the reservoir with probability min(1, size / n).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesrule.seeding import generator

__all__ = ["Reservoir"]

Columns = dict[str, Tensor]


class Reservoir:
    """Rows of named tensors; which rows stay, and which are drawn, comes from a stream of its own.

    Args:
        size: Number of slots.
        seed: The run's seed; the stream's name is ``("reservoir", name)``.
        name: Distinguishes the streams of several reservoirs.
    """

    def __init__(self, size: int, seed: int, name: str = "") -> None:
        self.size, self.seen = size, 0
        self.columns: Columns = {}
        self._generator = generator(seed, "reservoir", name)

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def choose(self, n: int) -> tuple[Tensor, Tensor]:
        """Decide on the next `n` items of the stream.

        Returns:
            Positions among the `n` of those that are kept, and their slots; each slot once (an item
            that a later one of the `n` would replace is not kept at all).
        """
        numbers = torch.arange(self.seen + 1, self.seen + n + 1)
        drawn = torch.rand(n, generator=self._generator, dtype=torch.float64)
        slots = torch.where(numbers <= self.size, numbers - 1, (drawn * numbers).long())
        last = {int(slot): row for row, slot in enumerate(slots.tolist()) if slot < self.size}
        self.seen += n
        kept = sorted((row, slot) for slot, row in last.items())
        rows = torch.tensor([row for row, _ in kept], dtype=torch.int64)
        return rows, torch.tensor([slot for _, slot in kept], dtype=torch.int64)

    def put(self, slots: Tensor, columns: Columns) -> None:
        """Write rows into slots that `choose` gave.

        Args:
            slots: Slots, shape (k,).
            columns: Rows by name, each (k, ...); the same names every time.
        """
        for name, rows in columns.items():
            if name not in self.columns:
                self.columns[name] = rows.new_zeros((self.size, *rows.shape[1:]))
            here = self.columns[name]
            here[slots.to(here.device)] = rows.to(here)

    def draw(self, n: int | None) -> Columns:
        """Return `n` rows drawn without replacement; all of them if there are fewer, or for None.

        Without a number nothing is drawn: rows come in the order of slots.
        """
        if n is None or n >= len(self):
            return {name: rows[: len(self)] for name, rows in self.columns.items()}
        chosen = torch.randperm(len(self), generator=self._generator)[:n]
        return {name: rows[chosen.to(rows.device)] for name, rows in self.columns.items()}

    def nbytes(self) -> int:
        """Return the bytes of all slots, empty ones included."""
        return sum(t.numel() * t.element_size() for t in self.columns.values())

    def state_dict(self) -> dict[str, Any]:
        """Return rows, number of items seen and the state of the stream."""
        return {
            "seen": self.seen,
            "columns": {name: rows.clone() for name, rows in self.columns.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.seen = int(state["seen"])
        self.columns = {name: rows.clone() for name, rows in state["columns"].items()}
        self._generator.set_state(state["generator"].cpu())
