"""SAM: sharpness-aware minimisation, the isotropic case of the optimal relaxation of Bayes.

With a Gaussian posterior of fixed isotropic variance, replacing the expected negative loss by its
Fenchel biconjugate (an upper bound of the loss) gives max over perturbations (Möllenhoff and Khan,
2023, arXiv 2210.01620); SAM takes one normalised ascent step towards it (Foret et al., 2021)::

    g   = grad loss(mean)                                                 stage 0
    ge  = grad loss(mean + eps),   eps = rho g / ||g||                    stage 1
    buf <- momentum buf + ge + weight_decay mean
    mean <- mean - lr buf

ASAM (Kwon et al., 2021, arXiv 2102.11600) measures the perturbation relative to the weights, with
T = |mean| + eta element-wise::

    eps = rho T^2 g / ||T g||

`SAMAdamW` gives ge to AdamW instead of SGD with momentum. The norms run over all trainable
parameters. Over several ranks with ``sync="statistics"`` each rank perturbs by its own gradient
(m-sharpness, as `batch_split` does with parts of the batch in one process); with
``sync="gradients"`` the perturbation is global.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.base import Noise, Sync
from bayesrule.optim.checks import check, check_groups
from bayesrule.optim.point import SGD, AdamW, PointOptimizer

__all__ = ["ASAM", "SAM", "SAMAdamW", "asam_offset", "sam_offset"]


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))


def sam_offset(grads: list[Tensor], rho: float, eps: float = 1e-12) -> list[Tensor]:
    """Return rho g / (||g|| + eps), the norm taken over all tensors together."""
    norm = _norm(grads)
    return [g * (rho / (norm + eps)).to(g.dtype) for g in grads]


def asam_offset(
    means: list[Tensor], grads: list[Tensor], rho: float, eta: float, eps: float = 1e-12
) -> list[Tensor]:
    """Return rho T^2 g / (||T g|| + eps) with T = |mean| + eta, over all tensors together."""
    scales = [mean.abs() + eta for mean in means]
    scaled = [t * g for t, g in zip(scales, grads, strict=True)]
    norm = _norm(scaled)
    return [t * s * (rho / (norm + eps)).to(s.dtype) for t, s in zip(scales, scaled, strict=True)]


class _SharpnessAware(PointOptimizer):
    """Takes the gradient at mean + eps, eps along the gradient at the mean; a base steps by it."""

    stages = 2
    shards = False

    def _set_radius(self, rho: float) -> None:
        for group in self.param_groups:
            group.setdefault("rho", rho)
        self.defaults["rho"] = rho
        check_groups(self.param_groups, rho=check(">= 0"))
        if any(group["rho"] != self.param_groups[0]["rho"] for group in self.param_groups):
            raise ValueError("rho is the radius over all parameters: groups cannot differ in it")
        self._offsets: list[Tensor] = []

    def offset(self, grads: list[Tensor]) -> list[Tensor]:
        """Return eps for the gradient at the mean, one tensor per trainable parameter."""
        return sam_offset(grads, self.param_groups[0]["rho"])

    def _perturbed(self, stage: int) -> list[Tensor]:
        return self.trainable() if stage == 1 else []

    def perturb(self, stage: int, noise: list[Tensor] | None) -> None:
        """Move to mean + eps at stage 1."""
        if stage == 1:
            torch._foreach_add_(self.trainable(), self._offsets)
            self._offsets = []

    def collect(self, stage: int) -> None:
        """Turn the first gradient into the perturbation, keep the second."""
        if stage == 0:
            self._offsets = self.offset(self.gradients())
        else:
            super().collect(stage)


class SAM(_SharpnessAware, SGD):
    """Sharpness-aware minimisation over SGD with momentum, see the module docstring.

    Args:
        params: Parameters, named parameters or parameter groups (one `rho` for all groups).
        lr: Learning rate.
        momentum: Momentum factor in [0, 1).
        weight_decay: L2 factor, added at the unperturbed mean.
        rho: Radius of the perturbation, >= 0; zero gives SGD.
        mc_samples: Repetitions averaged per step.
        batch_split: Parts of the batch that are perturbed on their own (m-sharpness).
        seed: As for `SGD`; no noise is drawn.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        rho: float = 0.05,
        mc_samples: int = 1,
        batch_split: int = 1,
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
            batch_split=batch_split,
            seed=seed,
            generator=generator,
            noise=noise,
            sync=sync,
        )
        self._set_radius(rho)


class ASAM(SAM):
    """Adaptive sharpness-aware minimisation, see the module docstring.

    Args:
        params: Parameters, named parameters or parameter groups (one `rho` and `eta` for all).
        lr: Learning rate.
        momentum: Momentum factor in [0, 1).
        weight_decay: L2 factor, added at the unperturbed mean.
        rho: Radius of the perturbation relative to the weights, >= 0.
        eta: Added to |mean|, >= 0, so that weights at zero are perturbed too.
        mc_samples: Repetitions averaged per step.
        batch_split: Parts of the batch that are perturbed on their own (m-sharpness).
        seed: As for `SGD`; no noise is drawn.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        rho: float = 0.5,
        eta: float = 0.01,
        mc_samples: int = 1,
        batch_split: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        if not eta >= 0:
            raise ValueError(f"eta must be >= 0, got {eta}")
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            rho=rho,
            mc_samples=mc_samples,
            batch_split=batch_split,
            seed=seed,
            generator=generator,
            noise=noise,
            sync=sync,
        )
        self.eta = float(eta)

    def offset(self, grads: list[Tensor]) -> list[Tensor]:
        """Return rho T^2 g / ||T g||."""
        return asam_offset(self.trainable(), grads, self.param_groups[0]["rho"], self.eta)


class SAMAdamW(_SharpnessAware, AdamW):
    """Sharpness-aware minimisation over AdamW, see the module docstring.

    Args:
        params: Parameters, named parameters or parameter groups (one `rho` for all groups).
        lr: Learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        rho: Radius of the perturbation, >= 0; zero gives AdamW.
        mc_samples: Repetitions averaged per step.
        batch_split: Parts of the batch that are perturbed on their own (m-sharpness).
        seed: As for `AdamW`; no noise is drawn.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        rho: float = 0.05,
        mc_samples: int = 1,
        batch_split: int = 1,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        sync: Sync = "auto",
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            mc_samples=mc_samples,
            batch_split=batch_split,
            seed=seed,
            generator=generator,
            noise=noise,
            sync=sync,
        )
        self._set_radius(rho)
