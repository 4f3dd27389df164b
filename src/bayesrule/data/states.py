"""Texts as the hidden states that frozen layers give: what a network with a cached prefix reads.

An item's input is the mapping

    hidden (B, T, D) float32,    attention_mask (B, T) int64

with states computed once and memory-mapped.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.data.bundle import Split

__all__ = ["StateSplit"]


class StateSplit(Split):
    """Rows of a table of hidden states with their targets.

    Args:
        states: Hidden states, float32 (M, T, D); may be memory-mapped.
        mask: 1 for tokens, 0 for filling, (M, T).
        targets: Targets of this split's items, (n,).
        rows: Row of `states` for each item; None: all in order.
    """

    def __init__(
        self, states: np.ndarray, mask: np.ndarray, targets: Tensor, rows: np.ndarray | None = None
    ) -> None:
        self._states, self._mask, self._targets = states, mask, targets
        self.rows = np.arange(len(targets)) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(self.rows) != len(targets):
            raise ValueError(f"{len(self.rows)} rows but {len(targets)} targets.")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> Tensor:
        """Targets of all items."""
        return self._targets

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the items at `indices`; `input` is a mapping of tensors (see the module)."""
        rows = self.rows[indices.numpy()]
        return {
            "input": {
                "hidden": torch.from_numpy(np.asarray(self._states[rows])),
                "attention_mask": torch.from_numpy(np.asarray(self._mask[rows])),
            },
            "target": self._targets[indices],
            "index": indices,
        }

    def subset(self, indices: Tensor) -> StateSplit:
        """Return the split of the items at `indices`."""
        rows = self.rows[indices.numpy()]
        return StateSplit(self._states, self._mask, self._targets[indices], rows)

    def digest(self) -> str:
        """Return a SHA-256 over rows and targets."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rows).tobytes())
        digest.update(self._targets.contiguous().numpy().tobytes())
        return digest.hexdigest()
