"""What an optimiser does when several processes train one posterior.

Two ways are sound, and they are exact for different things:

``statistics``
    Rank r draws its own noise and takes its gradient on its own shard; `reduce` averages the
    *statistics*. With W ranks and S samples each this equals one process with W*S samples of which
    sample r*S + s sees the shard of rank r. All ranks draw all W*S noises from one stream and use
    their own, so the stream is the same everywhere and one rank's checkpoint is enough.
``gradients``
    All ranks draw the same noise, and DDP or FSDP averages gradients. This equals one process with
    S samples on the global batch.

Own noise together with averaged gradients is neither: noise * averaged gradient underestimates the
curvature. `Parallel.reduce` notices it at the first step and refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from bayesrule.errors import Unsupported

__all__ = ["Parallel"]


class Parallel:
    """The process group as an optimiser sees it; free of cost in a single process."""

    def __init__(self, mode: Literal["statistics", "gradients"], stochastic: bool) -> None:
        """Remember how ranks share noise; the process group is looked up when it is used."""
        self.mode = mode
        self.stochastic = stochastic
        self._checked = False

    @property
    def world_size(self) -> int:
        """Number of ranks, 1 without a process group."""
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This process's rank, 0 without a process group."""
        return dist.get_rank() if self.world_size > 1 else 0

    # ---------------------------------------------------------- noise streams

    def shared_seed(self, seed: int) -> int:
        """Return rank 0's seed, so that every rank has the same stream."""
        if self.world_size == 1:
            return seed
        box = [seed]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def samples_before(self, samples: int) -> int:
        """Return how many draws of other ranks come before this rank's `samples`."""
        return self.rank * samples if self.mode == "statistics" else 0

    def samples_after(self, samples: int) -> int:
        """Return how many draws of other ranks come after this rank's `samples`."""
        if self.mode != "statistics":
            return 0
        return (self.world_size - 1 - self.rank) * samples

    def skip(self, count: int, draw: Callable[[], None]) -> None:
        """Advance the stream by `count` samples that belong to other ranks."""
        for _ in range(count):
            draw()

    @staticmethod
    def full_like(param: Tensor) -> Tensor:
        """Return a tensor with the parameter's full shape, also when it is sharded (FSDP)."""
        if hasattr(param, "device_mesh"):
            return torch.empty(param.shape, dtype=param.dtype, device=param.device)
        return param

    def local_part(self, draw: Tensor, param: Tensor) -> Tensor:
        """Shard a full draw like its parameter; every rank holds the same full draw."""
        if not hasattr(param, "device_mesh"):
            return draw
        if self.mode == "statistics" and self.world_size > 1:
            raise Unsupported(
                "sharded parameters (FSDP) hold one theta over all ranks, so ranks cannot draw "
                "their own noise: use sync='gradients'."
            )
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(
            draw,
            param.device_mesh,
            param.placements,  # type: ignore[attr-defined]
            src_data_rank=None,
        )

    # -------------------------------------------------------------- reduction

    def reduce(
        self,
        sums: dict[str, list[Tensor]],
        samples: int,
        loss: Tensor | None,
        params: list[Tensor],
    ) -> tuple[dict[str, list[Tensor]], Tensor | None]:
        """Average statistics and loss over samples and, in ``statistics`` mode, over ranks.

        Args:
            sums: Per statistic, the sum over this rank's samples.
            samples: Number of samples summed on this rank.
            loss: Mean loss of this rank's samples.
            params: The trainable parameters, whose ``.grad`` the soundness check reads.

        Returns:
            The means, and the mean loss.
        """
        if self.world_size == 1 or self.mode == "gradients":
            if self.world_size > 1:
                self._check(params)
                if loss is not None:
                    loss = loss.clone()
                    dist.all_reduce(loss)
                    loss = loss / self.world_size
            if samples == 1:
                return sums, loss
            return {n: [t / samples for t in ts] for n, ts in sums.items()}, loss
        self._check(params)
        flat = [t.reshape(-1) for ts in sums.values() for t in ts]
        vector = torch.cat([*flat, (flat[0].new_zeros(1) if loss is None else loss.reshape(1))])
        dist.all_reduce(vector)
        parts = iter(vector[:-1].split([t.numel() for t in flat]))
        count = samples * self.world_size
        means = {n: [next(parts).view_as(t) / count for t in ts] for n, ts in sums.items()}
        return means, None if loss is None else vector[-1] / self.world_size

    def _check(self, params: list[Tensor]) -> None:
        """Refuse the unsound mix: compare one number of the last gradient over ranks, once."""
        if self._checked or not self.stochastic:
            return
        self._checked = True
        total = torch.zeros((), dtype=torch.float64)
        for param in params:
            if param.grad is not None:
                grad = param.grad
                grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
                total = total + grad.double().abs().sum().cpu()
        every: list[float] = [0.0] * self.world_size
        dist.all_gather_object(every, float(total))
        equal = all(value == every[0] for value in every)
        if self.mode == "statistics" and equal and every[0] != 0.0:
            raise Unsupported(
                "every rank has the same gradient although each drew its own noise: gradients were "
                "averaged in backward (DDP). Noise times an averaged gradient is not the statistic "
                "of any sample. Wrap backward in no_sync(), use trainer.strategy=statistics_ddp, "
                "or pass sync='gradients'."
            )
        if self.mode == "gradients" and not equal:
            raise Unsupported(
                "sync='gradients' expects gradients averaged over ranks, but they differ: wrap the "
                "model in DDP or FSDP, or use sync='statistics'."
            )
