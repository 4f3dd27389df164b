"""What the data room hands out: splits that give batches, bundled with their provenance."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["DataBundle", "Kind", "Source", "Split", "fingerprint"]

Kind = Literal["classification", "regression", "lm"]
ServedBy = Literal["mirror", "package", "hub", "generated"]


@dataclass(frozen=True)
class Source:
    """Where a data set came from.

    Attributes:
        served_by: Which of the sources served it.
        where: Mirror folder relative to ``$BAYESRULE_DATA``, package and version, or hub id.
        revision: Commit of the hub repository, where there is one.
        sha256: Hash of the content: parquet bytes (mirror), array bytes (package, generated),
            or the hub's own list of file checksums.
    """

    served_by: ServedBy
    where: str
    revision: str | None
    sha256: str


class Split(ABC):
    """A fixed, ordered set of items that gives batches by position.

    A batch is a dictionary with `input` (a tensor, or a dictionary of tensors), `target` and
    `index` (the positions asked for), each with the items along the first axis. What an item
    looks like depends on its position and the epoch only, never on the other items of the batch,
    on worker processes or on a global random state.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @property
    def n_items(self) -> int:
        """The number of items, N."""
        return len(self)

    @abstractmethod
    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the items at `indices`.

        Args:
            indices: Positions in this split, int64, shape (B,).
            epoch: Training epoch, for augmentation and window offsets; None asks for the plain
                items, as at evaluation.

        Returns:
            A dictionary with `input`, `target` and `index`, each with B rows.
        """

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """The targets of all items, in order."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Split:
        """Return the split of the items at `indices`, in that order.

        Args:
            indices: Positions in this split, int64, shape (M,).
        """

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 over the choice of items and their targets (not over the inputs)."""

    def whole(self) -> dict[str, Any]:
        """Return all items as one batch, without augmentation."""
        return self.batch(torch.arange(len(self)))


@dataclass(frozen=True)
class DataBundle:
    """One data set, split, scaled and ready to train on.

    Attributes:
        name: The set's name in ``conf/data``.
        kind: What the targets are: classes, real vectors or next tokens.
        train: Training items.
        val: Validation items, held out of the training rows; None when there are none.
        test: Test items.
        ood: Out-of-distribution companions in this set's input shape and scaling, by name.
        n_outputs: Number of classes, target dimensions or vocabulary entries.
        input_shape: Shape of one input.
        class_names: Names of the classes, or the vocabulary of a character model.
        target_mean: Regression: mean of the raw training targets; a prediction is put back on the
            raw scale by ``prediction * target_std + target_mean``. Otherwise 0.
        target_std: Regression: standard deviation of the raw training targets. Otherwise 1.
        source: Where the content came from.
        fingerprint: SHA-256 over content, options and chosen items.
        scaling: What was subtracted and divided by, in words and numbers.
        options: The options that made this bundle.
        notes: Facts worth recording, e.g. the share of labels that noise changed.
    """

    name: str
    kind: Kind
    train: Split
    val: Split | None
    test: Split
    ood: dict[str, Split]
    n_outputs: int
    input_shape: tuple[int, ...]
    class_names: list[str] | None
    target_mean: float
    target_std: float
    source: Source
    fingerprint: str
    scaling: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return a JSON-able summary for the run's record."""
        return {
            "name": self.name,
            "kind": self.kind,
            "source": asdict(self.source),
            "fingerprint": self.fingerprint,
            "n_train": len(self.train),
            "n_val": len(self.val) if self.val is not None else 0,
            "n_test": len(self.test),
            "n_ood": {name: len(split) for name, split in self.ood.items()},
            "n_outputs": self.n_outputs,
            "input_shape": list(self.input_shape),
            "target_mean": self.target_mean,
            "target_std": self.target_std,
            "scaling": self.scaling,
            "notes": self.notes,
        }


def fingerprint(
    sources: Mapping[str, str], options: Mapping[str, Any], splits: Mapping[str, Split]
) -> str:
    """Return the SHA-256 that identifies a prepared data set.

    Args:
        sources: Content hash of every source used, by name.
        options: Every option of the data config.
        splits: The splits whose chosen items and targets count.

    Returns:
        64 hexadecimal digits; equal exactly when content, options and chosen items are equal.
    """
    content = {
        "sources": dict(sources),
        "options": dict(options),
        "splits": {name: split.digest() for name, split in splits.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
