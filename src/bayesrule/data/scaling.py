"""Scaling of inputs with training statistics: part of the config, and of the record.

    x  <-  (x - mean) / std,     std = sqrt(mean (x - mean)^2),     constants get std 1

`scalar` has one mean and standard deviation for all entries of an input, `per_channel` one a
channel, `per_feature` one an entry; `unit` divides by the format's largest value; `none` keeps raw
values. The choice matters: another scaling can reverse a claim about calibration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.errors import ConfigError

__all__ = ["Scaling", "fit_scaling"]

_CHUNK = 4096
_LIST_LIMIT = 64  # longer statistics enter the record as a hash


@dataclass(frozen=True)
class Scaling:
    """What is subtracted from inputs and what they are divided by.

    Attributes:
        kind: `scalar`, `per_channel`, `per_feature`, `unit` or `none`.
        mean: float64, broadcasts against one input.
        std: float64, broadcasts against one input.
        n_items: Number of training items that the statistics are from.
    """

    kind: str
    mean: np.ndarray
    std: np.ndarray
    n_items: int

    def __call__(self, inputs: np.ndarray) -> Tensor:
        """Return scaled inputs as float32, same shape; float64 tables are scaled in float64."""
        exact = np.float64 if inputs.dtype == np.float64 else np.float32
        scaled = inputs.astype(exact)
        if self.kind != "none":
            scaled = (scaled - self.mean.astype(exact)) / self.std.astype(exact)
        return torch.from_numpy(scaled.astype(np.float32, copy=False))

    def describe(self) -> dict[str, Any]:
        """Return a JSON-able summary for the record."""
        return {
            "kind": self.kind,
            "mean": _summary(self.mean),
            "std": _summary(self.std),
            "n_items": self.n_items,
        }


def fit_scaling(
    kind: str,
    chunks: Callable[[], Iterator[np.ndarray]],
    *,
    max_value: float | None = None,
) -> Scaling:
    """Compute a scaling from training inputs.

    Args:
        kind: `scalar`, `per_channel` (axis 1 of a chunk), `per_feature`, `unit` or `none`.
        chunks: Gives a fresh pass over the training inputs in pieces of shape (B, ...).
        max_value: Largest value of the format, for `unit`.

    Raises:
        ConfigError: The kind is unknown, or `unit` without a largest value.
    """
    if kind == "none":
        return Scaling(kind, np.zeros(()), np.ones(()), 0)
    if kind == "unit":
        if max_value is None:
            raise ConfigError("data.scaling=unit: needs data.max_value, the largest value.")
        return Scaling(kind, np.zeros(()), np.asarray(float(max_value)), 0)
    if kind not in ("scalar", "per_channel", "per_feature"):
        raise ConfigError(
            f"data.scaling={kind}: choose scalar, per_feature, per_channel, unit or none."
        )
    total, n_items, n_entries = None, 0, 0
    for chunk in chunks():
        part = _reduce(chunk.astype(np.float64), kind)
        total = part if total is None else total + part
        n_items += len(chunk)
        n_entries += chunk.size
    if total is None:
        raise ConfigError("data: no training rows are left to compute the scaling from.")
    count = n_entries / total.size
    mean = total / count
    squares = sum(_reduce((chunk - mean) ** 2, kind) for chunk in chunks())
    std = np.sqrt(np.asarray(squares) / count)
    return Scaling(kind, mean, np.where(std > 0.0, std, 1.0), n_items)


def array_chunks(inputs: np.ndarray, rows: np.ndarray) -> Callable[[], Iterator[np.ndarray]]:
    """Return passes over the given rows of an array, for `fit_scaling`."""

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), _CHUNK):
            yield inputs[rows[start : start + _CHUNK]]

    return chunks


def _reduce(values: np.ndarray, kind: str) -> np.ndarray:
    """Sum over items, and over the entries that share one statistic."""
    if kind == "per_feature":
        return np.asarray(values.sum(axis=0))
    if kind == "scalar":
        return np.asarray(values.sum())
    if values.ndim < 3:
        raise ConfigError("data.scaling=per_channel: a table has no channels; use per_feature.")
    axes = (0, *range(2, values.ndim))
    return np.asarray(values.sum(axis=axes)).reshape(-1, *([1] * (values.ndim - 2)))


def _summary(values: np.ndarray) -> float | list[float] | str:
    if values.size == 1:
        return float(values.reshape(()))
    if values.size <= _LIST_LIMIT:
        return [float(value) for value in values.ravel()]
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
