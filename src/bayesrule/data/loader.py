"""Batches whose order is a function of (seed, epoch), from any position on.

A run that is killed goes on with the very batch it would have had: the loader's state is the epoch
and the number of batches that training *consumed* (not fetched: worker processes run ahead).
No global random state is read or moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bayesrule.data.bundle import Split
from bayesrule.errors import ConfigError
from bayesrule.seeding import child_seed, generator

__all__ = ["EpochOrder", "ResumableLoader"]

Batch = dict[str, Any]


class EpochOrder:
    """The order of items in an epoch: a permutation drawn below (seed, epoch), or 0, 1, 2, ...

    Lightning finds it as the loader's `sampler` and calls `set_epoch`.

    Args:
        n_items: Number of items.
        seed: Seed of the order.
        shuffle: Whether items are permuted.
    """

    def __init__(self, n_items: int, *, seed: int, shuffle: bool) -> None:
        self.n_items = n_items
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.n_items

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = int(epoch)

    def indices(self) -> Tensor:
        """Return the item positions of this epoch, int64, shape (n_items,)."""
        if not self.shuffle:
            return torch.arange(self.n_items)
        return torch.randperm(self.n_items, generator=generator(self.seed, "order", self.epoch))


class ResumableLoader:
    """An iterable of batches that can start anywhere in an epoch.

    `batch_size` is global: with `world_size` processes, each rank gets its contiguous part of every
    global batch, so all ranks together see the batch that one process would. Nothing is padded:
    at evaluation ranks may hold different numbers of items, even none, in the last batch; in
    training an uneven last batch is refused, since averaging ranks would weight items unequally.

    Args:
        split: Where batches come from.
        batch_size: Items of a global batch.
        seed: Seed of the order (a child of the run's seed).
        shuffle: Whether each epoch has its own permutation.
        drop_last: Whether an incomplete last batch is left out.
        num_workers: Worker processes; 0 takes batches from the split directly.
        rank: This process.
        world_size: Number of processes.
        train: Whether items are asked for as in training (augmented, with the epoch's offsets).

    Raises:
        ConfigError: The batch size does not divide over the ranks, or no batch is left.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        train: bool = True,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"batch_size={batch_size}: the global batch must be a positive multiple of the "
                f"{world_size} process(es)."
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank}: must lie between 0 and {world_size - 1}.")
        if train and not drop_last and len(split) % batch_size % world_size:
            raise ConfigError(
                f"The last training batch has {len(split) % batch_size} items, which do not divide "
                f"over {world_size} processes; use drop_last or another batch_size."
            )
        self.split = split
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.train = train
        self.sampler = EpochOrder(len(split), seed=seed, shuffle=shuffle)
        self._start_batch = 0
        self._start_epoch: int | None = None  # the epoch a loaded start belongs to
        self._consumed: tuple[int, int] | None = None  # epoch and batches of the latest pass
        if train and len(self) == 0:
            raise ConfigError(
                f"batch_size={batch_size}: drop_last leaves no batch of {len(split)} items."
            )

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, the same on every rank."""
        n, size = len(self.split), self.batch_size
        return n // size if self.drop_last else -(-n // size)

    @property
    def epoch(self) -> int:
        """The epoch of the next (or running) pass."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.sampler.set_epoch(epoch)

    @property
    def start_batch(self) -> int:
        """The batch at which the next pass starts; used once. A trainer may set it."""
        return self._start_batch

    @start_batch.setter
    def start_batch(self, start: int) -> None:
        if not 0 <= start < max(1, len(self)):
            raise ConfigError(f"start_batch={start}: an epoch has {len(self)} batches.")
        self._start_batch = int(start)
        self._start_epoch = None
        self._consumed = None

    def state_dict(self) -> dict[str, int]:
        """Return where training would go on: epoch and batch, with what they are counted in."""
        position = self._start_batch
        if self._consumed is not None and self._consumed[0] == self.epoch:
            position = self._consumed[1]
        over = int(position > 0 and position >= len(self))
        return {
            "epoch": self.epoch + over,
            "start_batch": 0 if over else position,
            "n_items": len(self.split),
            "batch_size": self.batch_size,
            "seed": self.sampler.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken.

        The position belongs to its epoch: when `set_epoch` chooses another one before the next
        pass (as after a checkpoint at an epoch's end), that pass starts at its first batch.

        Raises:
            ConfigError: The state is of a loader with other items, batch size or seed.
        """
        here = self.state_dict()
        for key in ("n_items", "batch_size", "seed"):
            if state[key] != here[key]:
                raise ConfigError(
                    f"The checkpoint's data loader has {key}={state[key]}, this run {here[key]}: "
                    "its position has no meaning here."
                )
        self.set_epoch(state["epoch"])
        self.start_batch = state["start_batch"]
        self._start_epoch = state["epoch"]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch; epoch and start are read at the first one."""
        epoch = self.epoch
        start = self._start_batch if self._start_epoch in (None, epoch) else 0
        self.start_batch = 0
        self._consumed = (epoch, start)
        parts = self._parts(self.sampler.indices(), start)
        asked = epoch if self.train else None
        batches: Iterator[Batch]
        if self.num_workers == 0:
            batches = (self.split.batch(part, asked) for part in parts)
        else:
            batches = self._from_workers(parts, asked)
        for position, batch in enumerate(batches, start=start + 1):
            self._consumed = (epoch, position)
            yield batch

    def _parts(self, order: Tensor, start: int) -> list[Tensor]:
        """Return this rank's positions of each remaining global batch."""
        parts = []
        for number in range(start, len(self)):
            whole = order[number * self.batch_size : (number + 1) * self.batch_size]
            low = self.rank * len(whole) // self.world_size
            high = (self.rank + 1) * len(whole) // self.world_size
            parts.append(whole[low:high])
        return parts

    def _from_workers(self, parts: list[Tensor], epoch: int | None) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            _Batches(self.split, parts, epoch),
            batch_size=None,
            shuffle=False,
            num_workers=min(self.num_workers, max(1, len(parts))),
            generator=torch.Generator().manual_seed(
                child_seed(self.sampler.seed, "workers", self.epoch)
            ),
        )
        yield from loader


class _Batches(Dataset[Batch]):
    """One item a batch: what worker processes compute."""

    def __init__(self, split: Split, parts: list[Tensor], epoch: int | None) -> None:
        self.split, self.parts, self.epoch = split, parts, epoch

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Batch:
        return self.split.batch(self.parts[number], self.epoch)
