"""Bop: the binary optimiser, which flips weights and has no latent ones.

Helwegen et al. (2019, arXiv 1906.02107, algorithm 1), with gamma written `lr`::

    g        = grad loss(w)                                 w in {-1, +1} is what the model holds
    momentum <- (1 - lr) momentum + lr g
    w        <- -w   where   momentum w > threshold         (a consistent wish to go the other way)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.binary import Binary, BinaryOptimizer, Row
from bayesrule.optim.checks import check, check_groups
from bayesrule.posteriors.bernoulli import sign

__all__ = ["Bop", "bop_update"]


def bop_update(
    weight: Tensor, momentum: Tensor, grad: Tensor, *, lr: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return (weight, momentum) after one step of Bop.

    Args:
        weight: Binary weights.
        momentum: Average of gradients.
        grad: Gradient at the binary weights.
        lr: Adaptivity rate gamma.
        threshold: Size of the average from which a weight flips.
    """
    momentum = (1.0 - lr) * momentum + lr * grad
    return torch.where(momentum * weight > threshold, -weight, weight), momentum


class Bop(BinaryOptimizer):
    """Binary optimiser, see the module docstring.

    Args:
        params: Parameters, named parameters or parameter groups.
        lr: Adaptivity rate gamma, in [0, 1]; a schedule decays it.
        threshold: tau >= 0; the higher, the fewer flips.
        binary: Which tensors are binary, see `bayesrule.optim.binary`.
        real_lr_factor: Learning rate of the others over `lr`; None: see `binary`.
        mc_samples: Closure calls averaged per step.
        seed: Accepted, as `generator` and `noise`, for one interface; no noise is drawn.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.

    Raises:
        ValueError: If an option is out of range.
    """

    shards = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        threshold: float = 1e-8,
        binary: Binary = "matrices",
        real_lr_factor: float | None = None,
        mc_samples: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "threshold": threshold,
            "binary": binary,
            "real_lr_factor": real_lr_factor,
        }
        super().__init__(params, defaults)
        check_groups(self.param_groups, lr=check(">= 0", "<= 1"), threshold=check(">= 0"))
        self.setup_binary(
            mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync
        )

    def first_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Start with no momentum."""
        return {"momentum": torch.zeros_like(param, requires_grad=False)}

    def point(self, state: dict[str, Any], param: Tensor) -> Tensor:
        """Return the signs of the model's initial weights."""
        return sign(param)

    def update_binary(self, rows: list[Row], statistics: list[Tensor]) -> None:
        """Apply `bop_update`."""
        for index, param, state, group in rows:
            lr = float(group["lr"])
            weight, momentum = bop_update(
                param, state["momentum"], statistics[index], lr=lr, threshold=group["threshold"]
            )
            param.copy_(weight)
            state["momentum"].copy_(momentum)
