"""Splits over arrays: pixels or tables in memory (or memory-mapped), scaled batch by batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bayesrule.data.augment import CropFlip
from bayesrule.data.bundle import Split
from bayesrule.data.scaling import Scaling

__all__ = ["ArraySplit", "MatchShape"]

_READY_BYTES = 64 * 2**20  # below this size scaled inputs are kept, so a batch is one indexing


@dataclass(frozen=True)
class MatchShape:
    """Bring images of another set to this set's channels, size and value range.

    Grey becomes RGB by repetition, RGB becomes grey by luminance (ITU-R 601), sizes are matched by
    antialiased bilinear resizing, values by the ratio of the formats' largest values.

    Attributes:
        shape: (C, H, W) to give.
        gain: Largest value of the target format over that of the stored one.
    """

    shape: tuple[int, ...]
    gain: float = 1.0

    def __call__(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        """Return float32 pixels of shape (B, *shape)."""
        x_BCHW = torch.from_numpy(pixels_BCHW.astype(np.float32))
        channels, height, width = self.shape
        if x_BCHW.shape[1] == 3 and channels == 1:
            weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            x_BCHW = (x_BCHW * weights).sum(dim=1, keepdim=True)
        if x_BCHW.shape[2:] != (height, width):
            x_BCHW = F.interpolate(
                x_BCHW, (height, width), mode="bilinear", align_corners=False, antialias=True
            )
        return (x_BCHW.expand(-1, channels, -1, -1) * self.gain).numpy()


class ArraySplit(Split):
    """Rows of an array with their targets.

    Args:
        inputs: All inputs of the source, shape (M, ...): uint8 pixels or float tables; may be
            memory-mapped.
        targets: Targets of this split's items, shape (n,) or (n, D).
        rows: Row of `inputs` for each item, int64, shape (n,); None: the first n rows.
        scaling: Scaling to apply; None: raw values as float32.
        augment: Applied to raw inputs when a batch is asked for with an epoch.
        match: Applied to raw inputs first, e.g. `MatchShape` for out-of-distribution companions.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: Tensor,
        rows: np.ndarray | None = None,
        scaling: Scaling | None = None,
        augment: CropFlip | None = None,
        match: MatchShape | None = None,
    ) -> None:
        self._inputs = inputs
        self._targets = targets
        self.rows = np.arange(len(targets)) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(self.rows) != len(targets):
            raise ValueError(f"{len(self.rows)} rows but {len(targets)} targets.")
        self._scaling = scaling or Scaling("none", np.zeros(()), np.ones(()), 0)
        self._augment = augment
        self._match = match
        self._ready: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> Tensor:
        """Targets of all items: int64 (n,) labels or float32 (n, D) reals."""
        return self._targets

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the items at `indices`: float32 `input`, `target`, `index` (see `Split`)."""
        if self._augment is not None and epoch is not None:
            rows = self.rows[indices.numpy()]
            inputs = self._scaling(self._augment(self._raw(rows), rows, epoch))
        elif self._keep_ready():
            if self._ready is None:
                self._ready = self._scaling(self._raw(self.rows))
            inputs = self._ready[indices]
        else:
            inputs = self._scaling(self._raw(self.rows[indices.numpy()]))
        return {"input": inputs, "target": self._targets[indices], "index": indices}

    def subset(self, indices: Tensor) -> ArraySplit:
        """Return the split of the items at `indices`, with the same scaling and augmentation."""
        return ArraySplit(
            self._inputs,
            self._targets[indices],
            self.rows[indices.numpy()],
            self._scaling,
            self._augment,
            self._match,
        )

    def digest(self) -> str:
        """Return a SHA-256 over rows and targets."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rows).tobytes())
        digest.update(self._targets.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}

    def _raw(self, rows: np.ndarray) -> np.ndarray:
        raw = np.asarray(self._inputs[rows])
        return raw if self._match is None else self._match(raw)

    def _keep_ready(self) -> bool:
        if self._ready is not None:
            return True
        size = self._match.shape if self._match is not None else self._inputs.shape[1:]
        return len(self) * int(np.prod(size)) * 4 <= _READY_BYTES
