"""How Lightning places a model on processes so that the statistics stay exact.

``statistics_ddp`` never averages gradients: every rank keeps its own gradient at its own sample,
and the optimiser averages the sufficient statistics (see `bayesrule.optim.parallel`).
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.utils import _sync_module_states

__all__ = ["StatisticsDDP", "make_strategy", "sync_of"]


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


def make_strategy(cfg: dict[str, Any]) -> str | Strategy:
    """Return Lightning's strategy for ``trainer.strategy`` (see `config.check_processes`)."""
    backend = "gloo" if cfg["accelerator"] == "cpu" else "nccl"
    if cfg["strategy"] == "statistics_ddp":
        return StatisticsDDP(process_group_backend=backend)
    if cfg["strategy"] == "ddp":
        return DDPStrategy(process_group_backend=backend)
    return "auto"


def sync_of(cfg: dict[str, Any]) -> str:
    """Return the optimiser's ``sync`` option that is sound for ``trainer.strategy``."""
    return "gradients" if cfg["strategy"] == "ddp" else "statistics"
