"""SAM: sharpness-aware minimisation, the isotropic case of the optimal relaxation of Bayes.

With a Gaussian posterior of fixed isotropic variance, replacing the expected loss by its Fenchel
biconjugate gives max over perturbations (Möllenhoff and Khan, 2023, arXiv 2210.01620); SAM takes
one normalised ascent step towards it::

    g   = grad loss(mean)                                                 stage 0
    ge  = grad loss(mean + rho g / ||g||)                                 stage 1
    buf <- momentum buf + ge + weight_decay mean
    mean <- mean - lr buf

The norm runs over all trainable parameters. Over several ranks with ``sync="statistics"`` each rank
perturbs by its own gradient (m-sharpness); with ``sync="gradients"`` the perturbation is global.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.optim.point import SGD

__all__ = ["SAM", "sam_offset"]


def sam_offset(grads: list[Tensor], rho: float, eps: float = 1e-12) -> list[Tensor]:
    """Return rho g / (||g|| + eps), the norm taken over all tensors together."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    return [g * (rho / (norm + eps)).to(g.dtype) for g in grads]


class SAM(SGD):
    """Sharpness-aware minimisation over SGD with momentum, see the module docstring.

    Args:
        params: Parameters, named parameters or parameter groups (one `rho` for all groups).
        lr: Learning rate.
        momentum: Momentum factor in [0, 1).
        weight_decay: L2 factor, added at the unperturbed mean.
        rho: Radius of the perturbation, >= 0; zero gives SGD.
        mc_samples: Repetitions averaged per step.
        seed: As for `SGD`; no noise is drawn.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.
    """

    stages = 2

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        rho: float = 0.05,
        mc_samples: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            mc_samples=mc_samples,
            seed=seed,
            generator=generator,
            noise=noise,
            sync=sync,
        )
        for group in self.param_groups:
            group.setdefault("rho", rho)
        self.defaults["rho"] = rho
        check_groups(self.param_groups, rho=check(">= 0"))
        if any(group["rho"] != self.param_groups[0]["rho"] for group in self.param_groups):
            raise ValueError("rho is the radius over all parameters: groups cannot differ in it")
        self._offsets: list[Tensor] = []

    def _perturbed(self, stage: int) -> list[Tensor]:
        return self.trainable() if stage == 1 else []

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to mean + rho g / ||g|| at stage 1."""
        if stage == 1:
            torch._foreach_add_(self.trainable(), self._offsets)
            self._offsets = []

    def collect(self, stage: int) -> None:
        """Turn the first gradient into the perturbation, keep the second."""
        if stage == 0:
            self._offsets = sam_offset(self.gradients(), self.param_groups[0]["rho"])
        else:
            super().collect(stage)
