"""Exact accumulation across batches and processes for the room's `torchmetrics.Metric` classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["ExactMetric"]


class ExactMetric(Metric):
    """Metric whose states are float64 sums or float64 rows, so that every reduction is exact.

    *Sums* (and histograms) add up; *rows* are kept for each item and concatenated. A mean is
    divided only in `compute`: unequal batches, unequal ranks and ranks without any item give the
    value of one process that sees all items. Items that a sampler repeats to fill up its last
    batch must be left out, by a sampler that does not pad or by `mask`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._row_width: dict[str, int] = {}

    def add_sum(self, name: str, *shape: int) -> None:
        """Register a float64 state of zeros that adds up over batches and processes."""
        self.add_state(name, torch.zeros(*shape, dtype=torch.float64), dist_reduce_fx="sum")

    def add_rows(self, name: str, width: int) -> None:
        """Register a float64 state of rows (N, width), concatenated over batches and processes."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self._row_width[name] = width

    def rows(self, name: str) -> Tensor:
        """Return the rows seen so far on the CPU, shape (N, width).

        What is computed from rows sorts and accumulates; on the CPU it is deterministic.
        """
        value = getattr(self, name)
        rows = value if isinstance(value, Tensor) else torch.cat([self._no_rows(name), *value])
        return rows.cpu()

    def add_to_rows(self, name: str, columns: Sequence[Tensor]) -> None:
        """Append the items of a batch, given as columns of shape (N,)."""
        getattr(self, name).append(torch.stack(list(columns), dim=-1))

    def _no_rows(self, name: str) -> Tensor:
        return torch.zeros(0, self._row_width[name], dtype=torch.float64, device=self.device)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states; a process without items takes part with no rows of the right type."""
        for name in self._row_width:
            value = getattr(self, name)
            if isinstance(value, list) and not value:
                setattr(self, name, [self._no_rows(name)])
        super().sync(*args, **kwargs)

    @contextmanager
    def one_warning_if_empty(self, count: float) -> Iterator[None]:
        """Without items, warn once that every value is NaN, in place of one warning per value."""
        with warnings.catch_warnings():
            if count == 0:
                warnings.warn(
                    f"{type(self).__name__}: no items, every value is NaN",
                    RuntimeWarning,
                    stacklevel=3,
                )
                warnings.simplefilter("ignore", RuntimeWarning)
            yield
