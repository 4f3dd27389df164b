"""Memory of past inputs: a plain value that any correction may keep, bounded and saved whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Memory"]


@dataclass(frozen=True)
class Memory:
    """M items of the past, all of one head.

    Attributes:
        input: Inputs, shape (M, ...).
        target: True labels within the head, shape (M,); what uses them is up to the method.
        columns: The network's outputs that are these items' head.
        outputs: What the past said about them (logits or probabilities), shape (M, C), or None.
    """

    input: Tensor
    target: Tensor
    columns: tuple[int, ...]
    outputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def at(self, indices: Tensor) -> Memory:
        """Return the items at `indices`."""
        outputs = None if self.outputs is None else self.outputs[indices]
        return Memory(self.input[indices], self.target[indices], self.columns, outputs)

    def to(self, device: torch.device) -> Memory:
        """Return the same memory on another device."""
        outputs = None if self.outputs is None else self.outputs.to(device)
        return Memory(self.input.to(device), self.target.to(device), self.columns, outputs)

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors."""
        return {
            "input": self.input,
            "target": self.target,
            "columns": list(self.columns),
            "outputs": self.outputs,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Memory:
        """Return the memory that `state_dict` described."""
        return cls(state["input"], state["target"], tuple(state["columns"]), state["outputs"])

    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        tensors = [self.input, self.target, *([] if self.outputs is None else [self.outputs])]
        return sum(t.numel() * t.element_size() for t in tensors)
