"""Views of splits: the same items with other targets or changed inputs, and unions of splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesrule.data.bundle import Split

__all__ = ["Union", "View"]

Change = Callable[[Tensor], Tensor]


class View(Split):
    """A split's items with other targets, changed inputs, or both.

    Args:
        base: The split.
        targets: New targets, one per item; None: those of the base.
        change: Applied to the inputs of every batch, of shape (B, ...), row by row; None: nothing.
        name: Says what `change` does; part of the digest.
    """

    def __init__(
        self,
        base: Split,
        targets: Tensor | None = None,
        change: Change | None = None,
        name: str = "",
    ) -> None:
        self.base, self.change, self.name = base, change, name
        self._targets = base.targets if targets is None else targets
        if len(self._targets) != len(base):
            raise ValueError(f"{len(base)} items but {len(self._targets)} targets")

    def __len__(self) -> int:
        return len(self.base)

    @property
    def targets(self) -> Tensor:
        """The targets of all items."""
        return self._targets

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the items at `indices`."""
        batch = {**self.base.batch(indices, epoch), "target": self._targets[indices]}
        return batch if self.change is None else {**batch, "input": self.change(batch["input"])}

    def subset(self, indices: Tensor) -> View:
        """Return the view of the items at `indices`."""
        return View(self.base.subset(indices), self._targets[indices], self.change, self.name)

    def digest(self) -> str:
        """Return a SHA-256 over items, targets and what is done to the inputs."""
        digest = hashlib.sha256(f"{self.base.digest()}/{self.name}/".encode())
        digest.update(self._targets.contiguous().numpy().tobytes())
        return digest.hexdigest()


class Union(Split):
    """The items of several splits, one after another.

    Args:
        parts: The splits; inputs are of one shape, or mappings of tensors of one shape each.
    """

    def __init__(self, parts: Sequence[Split]) -> None:
        self.parts = list(parts)
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        self._ends, self._starts = ends, torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def targets(self) -> Tensor:
        """The targets of all items."""
        return torch.cat([part.targets for part in self.parts])

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the items at `indices`, in that order."""
        owner = torch.searchsorted(self._ends, indices, right=True)
        pieces: dict[int, dict[str, Any]] = {}
        for k in owner.unique().tolist():
            pieces[k] = self.parts[k].batch(indices[owner == k] - self._starts[k], epoch)
        order = torch.cat([(owner == k).nonzero()[:, 0] for k in pieces]).argsort()
        return {**_stacked(list(pieces.values()), order), "index": indices}

    def subset(self, indices: Tensor) -> Split:
        """Return the items at `indices`, in that order."""
        return _Chosen(self, indices)

    def digest(self) -> str:
        """Return a SHA-256 over those of the parts."""
        text = "/".join(part.digest() for part in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()


class _Chosen(Split):
    """Some items of a split, in a given order."""

    def __init__(self, base: Split, indices: Tensor) -> None:
        self.base, self.indices = base, indices

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def targets(self) -> Tensor:
        return self.base.targets[self.indices]

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        return {**self.base.batch(self.indices[indices], epoch), "index": indices}

    def subset(self, indices: Tensor) -> Split:
        return _Chosen(self.base, self.indices[indices])

    def digest(self) -> str:
        digest = hashlib.sha256(self.base.digest().encode())
        digest.update(self.indices.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _stacked(pieces: Sequence[Mapping[str, Any]], order: Tensor) -> dict[str, Any]:
    """Concatenate batches, mappings of tensors inside too, and put their items into an order."""
    return {
        name: _stacked([piece[name] for piece in pieces], order)
        if isinstance(value, Mapping)
        else torch.cat([piece[name] for piece in pieces])[order]
        for name, value in pieces[0].items()
    }
