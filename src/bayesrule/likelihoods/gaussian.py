"""Gaussian likelihood with known noise: squared error, in nats."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.likelihoods.base import Likelihood

__all__ = ["Gaussian"]


class Gaussian(Likelihood):
    """p(y | f) = N(y | f, noise_std^2 I), with outputs (B,) or (B, D).

    nll = sum_d [ (y_d - f_d)^2 / (2 s^2) + log s + 1/2 log 2 pi ], constants included. With
    noise_std = 1 its gradient is that of half the squared error.

    Args:
        noise_std: s > 0, in the units of the (standardised) targets.
    """

    kind: ClassVar[str] = "regression"

    def __init__(self, noise_std: float = 1.0) -> None:
        if not (noise_std > 0 and math.isfinite(noise_std)):
            raise Unsupported(f"noise_std must be positive and finite, not {noise_std}")
        self.noise_std = float(noise_std)

    def _targets(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.numel() != outputs.numel() or targets.shape[:1] != outputs.shape[:1]:
            raise Unsupported(
                f"outputs of shape {tuple(outputs.shape)} need targets of the same shape, not "
                f"{tuple(targets.shape)}"
            )
        return targets.reshape(outputs.shape).to(outputs.dtype)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -log N(y | f, s^2 I) per item, of shape (B,)."""
        z = (self._targets(outputs, targets) - outputs) / self.noise_std
        constant = math.log(self.noise_std) + 0.5 * math.log(2.0 * math.pi)
        per_entry = 0.5 * z.square() + constant
        return per_entry if outputs.ndim == 1 else per_entry.flatten(start_dim=1).sum(-1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return f."""
        return outputs

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return (f, s), each of the outputs' shape."""
        return outputs, torch.full_like(outputs, self.noise_std)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return (f - y) / s^2, of the outputs' shape."""
        return (outputs - self._targets(outputs, targets)) / self.noise_std**2

    def hessian(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return I / s^2 per item, of shape (B, D, D)."""
        return self.hessian_sqrt(outputs, targets) / self.noise_std

    def hessian_sqrt(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return I / s per item, of shape (B, D, D)."""
        del targets
        B, D = outputs.shape[0], outputs[0].numel()
        eye = torch.eye(D, dtype=outputs.dtype, device=outputs.device)
        return (eye / self.noise_std).expand(B, D, D)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw y = f + s eps, of the outputs' shape."""
        device = outputs.device if generator is None else generator.device
        eps = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype, device=device)
        return outputs + self.noise_std * eps.to(outputs.device)
