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

from collections.abc import Callable, Collection
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
        self._checked_gradients = False
        self._checked_noise = False

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

    def check_noise(self, draws: list[Tensor]) -> None:
        """Refuse streams that differ over ranks: compare the first training draw, once."""
        if self._checked_noise or self.world_size == 1:
            return
        self._checked_noise = True
        if not _all_equal(self._gather_sum(draws)):
            raise Unsupported(
                "generator= or noise= gives other numbers on each rank. Every rank must draw the "
                "same stream (with sync='statistics' it then uses its own part): make the "
                "generator with one seed on all ranks, or pass seed=."
            )

    @staticmethod
    def is_sharded(param: Tensor) -> bool:
        """Return whether the parameter is spread over ranks (FSDP)."""
        return hasattr(param, "device_mesh")

    @classmethod
    def full_like(cls, param: Tensor) -> Tensor:
        """Return a tensor with the parameter's full shape, also when it is sharded (FSDP)."""
        if cls.is_sharded(param):
            return torch.empty(param.shape, dtype=param.dtype, device=param.device)
        return param

    def local_part(self, draw: Tensor, param: Tensor) -> Tensor:
        """Shard a full draw like its parameter; every rank holds the same full draw."""
        if not self.is_sharded(param):
            return draw
        if self.mode == "statistics" and self.world_size > 1:
            raise Unsupported(
                "sharded parameters (FSDP) hold one theta over all ranks, so ranks cannot draw "
                "their own noise: use sync='gradients'."
            )
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(
            draw,
            param.device_mesh,  # type: ignore[attr-defined]
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
        local: Collection[str] = (),
    ) -> tuple[dict[str, list[Tensor]], Tensor | None]:
        """Average statistics and loss over samples and, in ``statistics`` mode, over ranks.

        Args:
            sums: Per statistic, the sum over this rank's samples.
            samples: Number of samples summed on this rank.
            loss: Mean loss of this rank's samples.
            params: The trainable parameters, whose ``.grad`` the soundness check reads.
            local: Statistics that are of this rank's examples in either mode.

        Returns:
            The means, and the mean loss.
        """
        if self.world_size > 1:
            self._check_gradients(params)
        count = samples
        if self.world_size > 1 and self.mode == "gradients" and loss is not None:
            loss = loss.clone()
            dist.all_reduce(loss)
            loss = loss / self.world_size
            if local:  # averaged gradients are no rank's own, but these are
                own, _ = self._reduce_sums({name: sums[name] for name in sorted(local)}, None)
                for tensors in own.values():
                    torch._foreach_div_(tensors, self.world_size)
                sums = {**sums, **own}
        if self.world_size > 1 and self.mode == "statistics":
            count = samples * self.world_size
            sums, loss = self._reduce_sums(sums, loss)
        if count > 1:
            for tensors in sums.values():
                torch._foreach_div_(tensors, count)
        return sums, loss

    def _reduce_sums(
        self, sums: dict[str, list[Tensor]], loss: Tensor | None
    ) -> tuple[dict[str, list[Tensor]], Tensor | None]:
        """Sum statistics and average the loss over ranks, as one flat vector."""
        flat = [t.reshape(-1) for ts in sums.values() for t in ts]
        vector = torch.cat([*flat, (flat[0].new_zeros(1) if loss is None else loss.reshape(1))])
        dist.all_reduce(vector)
        parts = iter(vector[:-1].split([t.numel() for t in flat]))
        total = {n: [next(parts).view_as(t).to(t.dtype) for t in ts] for n, ts in sums.items()}
        return total, None if loss is None else vector[-1].to(loss.dtype) / self.world_size

    def _check_gradients(self, params: list[Tensor]) -> None:
        """Refuse the unsound mix: compare one number of the last gradient over ranks, once."""
        if self._checked_gradients:
            return
        self._checked_gradients = True
        every = self._gather_sum([p.grad for p in params if p.grad is not None])
        equal = _all_equal(every)
        if self.mode == "statistics" and self.stochastic and equal and every[0] != 0.0:
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

    def _gather_sum(self, tensors: list[Tensor]) -> list[float]:
        """Return the sum of absolute values of the tensors on every rank, in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for tensor in tensors:
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            total = total + full.double().abs().sum().cpu()
        every: list[float] = [0.0] * self.world_size
        dist.all_gather_object(every, float(total))
        return every


def _all_equal(values: list[float]) -> bool:
    return all(value == values[0] for value in values)
