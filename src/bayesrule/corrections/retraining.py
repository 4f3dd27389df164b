"""What one would do with all data at hand: bounds that corrections are measured against.

::

    joint        w_t = argmin_w  mean loss of D_1 u ... u D_t,  from a fresh network
    cumulative   the same, started at w_{t-1}
    separate     w_t = argmin_w  mean loss of D_t,  from a fresh network; task t is predicted by w_t

The mean is over all items of the union, so each task counts by its size. The memory of joint and
cumulative training is the whole past, and grows with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bayesrule.corrections.base import Correction, Past
from bayesrule.data.bundle import Split
from bayesrule.data.streams import Experience, Stream

__all__ = ["Cumulative", "Joint", "Separate"]


class Cumulative(Correction):
    """All data so far, from the weights before."""

    def __init__(self) -> None:
        self._items, self._bytes = 0, 0

    def train_split(self, stream: Stream, t: int) -> Split | None:
        """Return the training items of the first t + 1 experiences."""
        return stream.union(t + 1)

    def n_train(self, sizes: Sequence[int], t: int) -> int:
        """Return the items of the first t + 1 experiences."""
        return sum(sizes[: t + 1])

    def absorb(self, experience: Experience, past: Past) -> None:
        """Count the items, all of which are kept."""
        one = experience.train.batch(torch.arange(1))
        size = sum(one[key].numel() * one[key].element_size() for key in ("input", "target"))
        self._items += len(experience.train)
        self._bytes += len(experience.train) * size

    def n_items(self) -> int:
        """Return the number of all items so far."""
        return self._items

    def nbytes(self) -> int:
        """Return the bytes of all items so far."""
        return self._bytes

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"items": self._items, "bytes": self._bytes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counts."""
        self._items, self._bytes = int(state["items"]), int(state["bytes"])


class Joint(Cumulative):
    """All data so far, from a fresh network: what a learner without memory limits would do."""

    start = "fresh"


class Separate(Correction):
    """A network of its own for each task: no forgetting, no transfer, and T networks."""

    start = "fresh"
    alone = True
