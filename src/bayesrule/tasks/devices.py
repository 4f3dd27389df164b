"""Where a task that owns its network puts it, before a trainer does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesrule.errors import ConfigError

__all__ = ["on_device", "training_device"]


def training_device(accelerator: str) -> torch.device:
    """Return the device of ``trainer.accelerator`` in one process.

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu: torch sees no GPU here; use trainer=cpu")
    return torch.device("cuda")


def on_device(state: Any, device: torch.device) -> Any:
    """Return nested state with its tensors on a device; states of generators (bytes) stay."""
    if isinstance(state, Mapping):
        return {key: on_device(value, device) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(on_device(value, device) for value in state)
    moves = isinstance(state, Tensor) and state.dtype != torch.uint8
    return state.to(device) if moves else state
