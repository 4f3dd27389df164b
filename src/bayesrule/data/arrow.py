"""Image splits too large for one array: rows of an Arrow table, decoded batch by batch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.data.augment import center_crop, random_resized_crop
from bayesrule.data.bundle import Split
from bayesrule.data.decode import to_pixels
from bayesrule.data.scaling import Scaling
from bayesrule.errors import CorruptFile

if TYPE_CHECKING:
    import datasets

__all__ = ["ArrowImageSplit"]

_SCALING_ITEMS = 4096  # training images that scaling statistics are computed from
_SCALING_CHUNK = 64


class ArrowImageSplit(Split):
    """Rows of a Hugging Face table with an image column, memory-mapped by Arrow.

    Training batches (with an epoch) are randomly resized crops and flips when `augment_seed` is
    given; all others are centre crops.

    Args:
        table: A `datasets.Dataset` whose `column` holds images.
        column: Name of the image column.
        targets: Labels of this split's items, int64, shape (n,).
        rows: Row of `table` for each item, int64, shape (n,).
        shape: (C, S, S) of one input.
        scaling: Scaling to apply; None: raw values as float32.
        augment_seed: Seed of the augmentation stream; None: no augmentation.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        column: str,
        targets: Tensor,
        rows: np.ndarray,
        shape: tuple[int, ...],
        scaling: Scaling | None = None,
        augment_seed: int | None = None,
    ) -> None:
        import datasets as hf

        self._table = table.select_columns([column]).cast_column(column, hf.Image(decode=False))
        self._column = column
        self._targets = targets
        self.rows = np.asarray(rows, dtype=np.int64)
        self._shape = shape
        self._scaling = scaling or Scaling("none", np.zeros(()), np.ones(()), 0)
        self._augment_seed = augment_seed

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> Tensor:
        """Labels of all items, int64 (n,)."""
        return self._targets

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the items at `indices`: float32 `input` (B, C, S, S), `target`, `index`."""
        pixels = self._pixels(self.rows[indices.numpy()], epoch)
        return {
            "input": self._scaling(pixels),
            "target": self._targets[indices],
            "index": indices,
        }

    def subset(self, indices: Tensor) -> ArrowImageSplit:
        """Return the split of the items at `indices`."""
        return ArrowImageSplit(
            self._table,
            self._column,
            self._targets[indices],
            self.rows[indices.numpy()],
            self._shape,
            self._scaling,
            self._augment_seed,
        )

    def digest(self) -> str:
        """Return a SHA-256 over rows and targets."""
        digest = hashlib.sha256(np.ascontiguousarray(self.rows).tobytes())
        digest.update(self._targets.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def scaling_chunks(self) -> Callable[[], Iterator[np.ndarray]]:
        """Return passes over at most 4,096 evenly spaced items, for `fit_scaling`."""
        step = max(1, len(self) // _SCALING_ITEMS)
        rows = self.rows[::step][:_SCALING_ITEMS]

        def chunks() -> Iterator[np.ndarray]:
            for start in range(0, len(rows), _SCALING_CHUNK):
                yield self._pixels(rows[start : start + _SCALING_CHUNK], None)

        return chunks

    def _pixels(self, rows: np.ndarray, epoch: int | None) -> np.ndarray:
        out = np.empty((len(rows), *self._shape), dtype=np.uint8)
        if len(rows) == 0:
            return out
        stored = self._table[rows.tolist()][self._column]
        for place, (row, image) in enumerate(zip(rows.tolist(), stored)):
            out[place] = self._decode(image, row, epoch)
        return out

    def _decode(self, stored: dict[str, Any], row: int, epoch: int | None) -> np.ndarray:
        from PIL import Image as Pillow

        size = self._shape[1]
        file = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]
        try:
            image = Pillow.open(file).convert("L" if self._shape[0] == 1 else "RGB")
        except OSError as error:
            raise CorruptFile(f"image {row} cannot be decoded: {error}") from error
        if epoch is not None and self._augment_seed is not None:
            image = random_resized_crop(image, size, seed=self._augment_seed, epoch=epoch, item=row)
        else:
            image = center_crop(image, size)
        return to_pixels(image, self._shape)


def labels_of(table: datasets.Dataset, column: str) -> np.ndarray:
    """Return a table's label column as int64, shape (N,)."""
    return np.asarray(table.data.column(column).to_numpy(), dtype=np.int64)


def as_targets(labels: np.ndarray) -> Tensor:
    """Return labels as an int64 tensor that owns its memory."""
    return torch.from_numpy(np.array(labels, dtype=np.int64))
