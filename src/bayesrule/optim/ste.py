"""STE: the straight-through estimator, BinaryConnect's rule with Adam.

Each binary weight has a real latent one; the gradient at the binary weights moves the latent ones
(Courbariaux et al., 2015, arXiv 1511.00363, algorithm 1; with Adam as its section 3.3)::

    w      = sign(latent)                                  what the model holds
    g      = grad loss(w)
    latent <- clip(latent - lr Adam(g), -clip, clip)

It is the Bayesian learning rule for Bernoulli weights with three approximations: the expected
loss replaced by the loss at one point, that point taken as sign(lambda), and the entropy dropped
(Khan and Rue, 2023, arXiv 2107.04562).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.binary import Binary, BinaryOptimizer, Row, adam_step
from bayesrule.optim.checks import check, check_groups
from bayesrule.posteriors.bernoulli import sign

__all__ = ["STE"]


class STE(BinaryOptimizer):
    """Straight-through estimator with Adam, see the module docstring.

    Args:
        params: Parameters, named parameters or parameter groups.
        lr: Learning rate of the latent weights.
        beta1: Decay of Adam's first moment.
        beta2: Decay of Adam's second moment.
        eps: Added to the root of the second moment.
        clip: Bound on the latent weights; ``inf`` for none.
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
        lr: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        clip: float = 1.0,
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
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "clip": clip,
            "binary": binary,
            "real_lr_factor": real_lr_factor,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            beta1=check(">= 0", "< 1"),
            beta2=check(">= 0", "< 1"),
            eps=check("> 0"),
            clip=check("> 0"),
        )
        self.setup_binary(
            mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync
        )

    def first_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Start from the model's initial weights, within the bound."""
        return {
            "latent": param.detach().clamp(-group["clip"], group["clip"]),
            "exp_avg": torch.zeros_like(param, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(param, requires_grad=False),
        }

    def point(self, state: dict[str, Any], param: Tensor) -> Tensor:
        """Return sign(latent)."""
        return sign(state["latent"])

    def update_binary(self, rows: list[Row], statistics: list[Tensor]) -> None:
        """Run Adam on the latent weights, clip them, and take their signs."""
        for index, param, state, group in rows:
            latent, clip = state["latent"], group["clip"]
            options = {name: group[name] for name in ("beta1", "beta2", "eps")}
            adam_step(
                latent,
                statistics[index],
                state,
                steps=group["steps"],
                lr=float(group["lr"]),
                **options,
            )
            latent.clamp_(-clip, clip)
            param.copy_(sign(latent))
