"""Where an update's tensors live: buffers that are kept, and blocks that fit the cache.

Element-wise updates are bound by memory and by the cost of calling an operation, not by arithmetic.
On a CPU, fresh memory for a large tensor costs several times the pass that fills it; a chain of
in-place operations is fast only while its operands stay in the cache; and sixty tensors of sixteen
elements cost as much as sixty of four thousand. So the tensors that exist during every backward
pass anyway (the kept mean, the noise) are reused from step to step, and updates run over
blocks: large tensors in pieces, small ones gathered. Neither changes a number, since every
operation is element-wise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

__all__ = ["BLOCK", "Scratch", "copy_tensors"]

BLOCK = 131_072
"""Elements of a block on the CPU: six float32 operands of this size stay in a shared cache."""

SMALL = 16_384
"""Elements up to which a tensor is gathered with others rather than worked on by itself."""

Row = tuple[Tensor, ...]
Group = dict[str, Any]


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor (FSDP), any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def copy_tensors(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target; both are sharded alike or not at all."""
    if targets:
        torch._foreach_copy_([_local(t) for t in targets], [_local(s) for s in sources])


class Scratch:
    """Tensors kept from step to step; their contents never are."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}
        self._views: dict[Any, tuple[list[Tensor], list[list[Tensor]]]] = {}

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """Return the buffer of this name for this tensor, of its shape, dtype and device."""
        found = self._kept.get((name, tensor))
        if found is None or (found.dtype, found.device) != (tensor.dtype, tensor.device):
            found = self._kept[name, tensor] = torch.empty_like(tensor, requires_grad=False)
        return found

    def copy(self, name: str, tensors: list[Tensor]) -> list[Tensor]:
        """Copy tensors into their buffers of this name, and return those."""
        kept = [self.like(name, tensor) for tensor in tensors]
        copy_tensors(kept, tensors)
        return kept

    def blocks(
        self, rows: Iterable[tuple[Group, Row]], *, written: int
    ) -> Iterator[tuple[Group, Row, Tensor]]:
        """Cut and gather the operands of an element-wise computation into blocks.

        Args:
            rows: Per parameter its group and the operands (parameter, state, statistics), all of
                one shape. Sharded tensors (FSDP) contribute their local shard.
            written: How many operands, from the first, are changed in place; changes of the others
                may or may not reach them.

        Yields:
            A group, its operands as tensors of one shape, and one more such tensor to work in, of
            undefined content. The loop over blocks must be run to its end.
        """
        held: list[Row] = []
        size = 0
        current: Group = {}
        for group, row in rows:
            row = tuple(_local(t) for t in row)
            n = row[0].numel()
            if n > SMALL and all(t.is_contiguous() for t in row):
                for piece in _pieces(row, n):
                    work = self._flat(len(row), piece[0], piece[0].numel())
                    yield group, piece, work.view(piece[0].shape)
                continue
            alike = held and group is current and held[0][0].dtype == row[0].dtype
            if held and not (alike and size + n <= BLOCK):
                yield from self._gathered(current, held, written)
                held, size = [], 0
            held.append(row)
            size, current = size + n, group
        if held:
            yield from self._gathered(current, held, written)

    def _gathered(
        self, group: Group, rows: list[Row], written: int
    ) -> Iterator[tuple[Group, Row, Tensor]]:
        """Yield several tensors as one block, then write the changes back."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        first = columns[0][0]
        key = (len(columns), first.dtype, first.device, *(t.shape for t in columns[0]))
        if key not in self._views:  # buffers and their cuts, the same at every step
            size = sum(t.numel() for t in columns[0])
            flat = [self._flat(slot, first, size) for slot in range(len(columns) + 1)]
            cuts = [list(_unflatten_dense_tensors(block, columns[0])) for block in flat[:-1]]
            self._views[key] = flat, cuts
        flat, views = self._views[key]
        for view, column in zip(views, columns, strict=True):
            torch._foreach_copy_(view, column)
        yield group, tuple(flat[:-1]), flat[-1]
        for view, column in zip(views[:written], columns, strict=False):
            torch._foreach_copy_(column, view)

    def _flat(self, slot: int, like: Tensor, size: int) -> Tensor:
        """Return `size` elements of the flat buffer number `slot` of this dtype and device."""
        key = (slot, like.dtype, like.device)
        if key not in self._kept or self._kept[key].numel() < size:
            room = max(size, BLOCK)
            self._kept[key] = torch.empty(room, dtype=like.dtype, device=like.device)
        return self._kept[key][:size]


def _pieces(row: Row, n: int) -> Iterable[Row]:
    """Cut contiguous operands of `n` elements into pieces that fit the cache of a CPU."""
    if n <= BLOCK or not row[0].is_cpu:
        return (row,)
    parts = -(-n // BLOCK)
    return zip(*(t.detach().view(-1).chunk(parts) for t in row), strict=True)
