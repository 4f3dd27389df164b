"""How Lightning places a model on processes so that the statistics stay exact.

``statistics_ddp`` never averages gradients: every rank keeps its own gradient at its own sample,
and the optimiser averages the sufficient statistics (see `bayesrule.optim.parallel`). ``fsdp``
cuts the parameters themselves, see `bayesrule.tasks.sharding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.utils import _sync_module_states

from bayesrule.tasks.sharding import shard_model, sharded_state, whole

__all__ = ["ShardedParameters", "StatisticsDDP", "make_strategy", "sync_of"]


class StatisticsDDP(DDPStrategy):
    """Data-parallel processes without a gradient reducer; ranks start from rank 0's weights."""

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        import torch.distributed as dist

        group = dist.group.WORLD
        assert group is not None
        _sync_module_states(
            module=model,
            process_group=group,
            broadcast_bucket_size=2**28,
            src=0,
            params_and_buffers_to_ignore=(),
            broadcast_buffers=True,
        )
        return model

    def _register_ddp_hooks(self) -> None:
        """Nothing to do: these would change the reducer."""


class ShardedParameters(StatisticsDDP):
    """Processes that hold one shard of every parameter each; gradients are averaged in backward.

    The module's network is sharded before `LearnModule.configure_optimizers` makes the optimiser. A
    checkpoint holds whole tensors: the file is that of any other strategy.
    """

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        super()._setup_model(model)
        shard_model(model.model, self.root_device, self.world_size)  # type: ignore[arg-type]
        return model

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's whole state, on every rank."""
        state: dict[str, Any] = whole(super().lightning_module_state_dict())
        return state

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the optimiser's whole state, on every rank."""
        state: dict[str, Any] = whole(super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut the saved state as the parameters are cut, and load this rank's shards."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(sharded_state(saved, optimizer))

    def teardown(self) -> None:
        """End without moving the shards, whose place is that of the process group."""
        assert self.accelerator is not None
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


def make_strategy(cfg: dict[str, Any]) -> str | Strategy:
    """Return Lightning's strategy for ``trainer.strategy`` (see `config.check_processes`)."""
    backend = "gloo" if cfg["accelerator"] == "cpu" else "nccl"
    if cfg["strategy"] == "statistics_ddp":
        return StatisticsDDP(process_group_backend=backend)
    if cfg["strategy"] == "fsdp":
        return ShardedParameters(process_group_backend=backend)
    if cfg["strategy"] == "ddp":
        return DDPStrategy(process_group_backend=backend)
    return "auto"


def sync_of(cfg: dict[str, Any]) -> str:
    """Return the optimiser's ``sync`` option that is sound for ``trainer.strategy``."""
    return "gradients" if cfg["strategy"] in ("ddp", "fsdp") else "statistics"
