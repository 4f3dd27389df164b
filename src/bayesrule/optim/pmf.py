"""PMF: proximal mean-field for binary weights.

Ajanthan et al. (2019, arXiv 1812.04353, algorithm 1) learn one score per label and weight and
project by softmax with an inverse temperature beta that grows. For labels {-1, +1} only half the
difference u of the two scores matters, and the softmax's mean is tanh::

    w     = tanh(beta u)                                   where the gradient is taken
    g     = grad loss(w)
    u     <- u - lr Adam(g dw/du),      dw/du = beta (1 - w^2)
    beta  <- min(growth beta, beta_max)   after the first step and every `growth_every` more

Outside a step the model holds the rounded weights sign(u). The authors' code leaves out a factor of
the softmax's derivative; the derivative here is the exact one, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.binary import Binary, BinaryOptimizer, Row, adam_step
from bayesrule.optim.checks import check, check_groups
from bayesrule.posteriors.bernoulli import sign

__all__ = ["PMF", "inverse_temperature"]


def inverse_temperature(
    steps: int, growth: float, growth_every: int, beta_max: float = 1e4
) -> float:
    """Return beta after so many steps: 1, then times `growth` at steps 1, 1 + every, ..."""
    times = -(-steps // growth_every)
    # growth^times may overflow, its logarithm does not
    return math.exp(min(times * math.log(growth), math.log(beta_max)))


class PMF(BinaryOptimizer):
    """Proximal mean-field with Adam, see the module docstring.

    Args:
        params: Parameters, named parameters or parameter groups.
        lr: Learning rate of u.
        growth: Factor of beta, >= 1.
        growth_every: Steps between two growths of beta.
        beta_max: Bound on beta.
        beta1: Decay of Adam's first moment.
        beta2: Decay of Adam's second moment.
        eps: Added to the root of the second moment.
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

    relaxed = True
    shards = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        growth: float = 1.05,
        growth_every: int = 500,
        beta_max: float = 1e4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
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
            "growth": growth,
            "growth_every": growth_every,
            "beta_max": beta_max,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "binary": binary,
            "real_lr_factor": real_lr_factor,
        }
        super().__init__(params, defaults)
        check_groups(
            self.param_groups,
            lr=check(">= 0"),
            growth=check(">= 1"),
            growth_every=check(">= 1"),
            beta_max=check("> 0"),
            beta1=check(">= 0", "< 1"),
            beta2=check(">= 0", "< 1"),
            eps=check("> 0"),
        )
        self.setup_binary(
            mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync
        )

    def first_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Start u at the model's initial weights."""
        return {
            "latent": param.detach().clone(),
            "exp_avg": torch.zeros_like(param, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(param, requires_grad=False),
        }

    def point(self, state: dict[str, Any], param: Tensor) -> Tensor:
        """Return sign(u)."""
        return sign(state["latent"])

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to w = tanh(beta u)."""
        for _, param, state, group in self._rows():
            torch.mul(state["latent"], _beta(group, group.get("steps", 0)), out=param).tanh_()

    def place_draw(self, noise: list[Tensor] | None) -> None:
        """Leave the parameters at the binary point."""

    def update_binary(self, rows: list[Row], statistics: list[Tensor]) -> None:
        """Run Adam on u with the gradient through tanh, and round."""
        for index, param, state, group in rows:
            beta = _beta(group, group["steps"] - 1)
            slope = beta * (1.0 - torch.tanh(beta * state["latent"]).square())
            options = {name: group[name] for name in ("beta1", "beta2", "eps")}
            adam_step(
                state["latent"],
                statistics[index] * slope,
                state,
                steps=group["steps"],
                lr=float(group["lr"]),
                **options,
            )
            param.copy_(sign(state["latent"]))


def _beta(group: dict[str, Any], steps: int) -> float:
    """Return the group's inverse temperature after so many steps."""
    return inverse_temperature(
        steps, group["growth"], int(group["growth_every"]), group["beta_max"]
    )
