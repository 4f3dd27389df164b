"""Training a network whose parameters are spread over processes (``trainer.strategy=fsdp``).

A twin of the network is sharded by torch's ``fully_shard`` and trained by an optimiser that is made
on the shards; checkpoints and the network itself hold whole tensors, gathered one at a time, so
they are the files, and the posterior the value, of a training in any other number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from bayesrule.errors import Unsupported
from bayesrule.optim import PosteriorOptimizer

__all__ = ["Gathering", "shard_model", "sharded_state", "whole"]


def shard_model(model: nn.Module, device: torch.device, world_size: int) -> None:
    """Spread the model's parameters over all processes, in place; all hold the same values before.

    Raises:
        Unsupported: If a parameter cannot be spread.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for name, param in model.named_parameters():
        if param.ndim == 0:
            raise Unsupported(
                f"trainer.strategy=fsdp: parameter {name} is a single number without a dimension "
                "to cut; use trainer.strategy=ddp or statistics_ddp"
            )
    fully_shard(model, mesh=init_device_mesh(device.type, (world_size,)))


def whole(value: Any) -> Any:
    """Return nested containers with every sharded tensor gathered on the CPU; a collective call."""
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value.full_tensor().detach().cpu() if hasattr(value, "full_tensor") else value


def sharded_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's saved state with the tensors of a parameter cut as the parameter is.

    Args:
        saved: A ``state_dict()`` of whole tensors, the same on every rank.
        optimizer: Whose parameters are sharded.
    """
    from torch.distributed.tensor import distribute_tensor

    params = [param for group in optimizer.param_groups for param in group["params"]]

    def cut(value: Any, param: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape != param.shape:
            return value
        value = value.to(param.device)
        return distribute_tensor(value, param.device_mesh, param.placements, src_data_rank=None)

    state = {
        index: {name: cut(value, params[index]) for name, value in entry.items()}
        for index, entry in saved["state"].items()
    }
    return {**saved, "state": state}


class Gathering(pl.Callback):
    """Puts what the sharded twin has learnt into the network and optimiser that are not sharded.

    Args:
        twin: Returns the sharded network and its optimiser.
        model: Receives whole parameters and buffers.
        optimizer: Receives the whole state.
        every: Epochs between evaluations, each of which needs them; None: only `gather` by hand.
    """

    def __init__(
        self,
        twin: Callable[[], tuple[nn.Module, PosteriorOptimizer]],
        model: nn.Module,
        optimizer: PosteriorOptimizer,
        every: int | None,
    ) -> None:
        self.twin, self.model, self.optimizer, self.every = twin, model, optimizer, every

    def gather(self) -> None:
        """Gather; every rank must call it."""
        model, optimizer = self.twin()
        state = whole(model.state_dict())
        self.model.to(next(model.parameters()).dtype)
        self.model.load_state_dict(state)
        self.optimizer.load_state_dict(whole(optimizer.state_dict()))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather where an evaluation follows."""
        if self.every and (trainer.current_epoch + 1) % self.every == 0:
            self.gather()
