"""Logistic likelihood: one logit for a binary target."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.likelihoods.base import Likelihood

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    """p(y = 1 | f) = sigmoid(f), with one output per item: shape (B,) or (B, 1).

    Targets are 0 or 1 (or probabilities), of the outputs' shape or (B,).
    """

    kind: ClassVar[str] = "classification"

    def _flat(self, outputs: Tensor) -> Tensor:
        if outputs.ndim > 1 and outputs.shape[-1] != 1:
            raise Unsupported(
                f"Bernoulli takes one logit per item, (B,) or (B, 1), not {tuple(outputs.shape)}; "
                "use Categorical for several classes"
            )
        return outputs.squeeze(-1) if outputs.ndim > 1 else outputs

    def _labels(self, outputs: Tensor, targets: Tensor) -> Tensor:
        f = self._flat(outputs)
        if targets.numel() != f.numel():
            raise Unsupported(
                f"logits of shape {tuple(outputs.shape)} need one target each, not "
                f"{tuple(targets.shape)}"
            )
        return targets.reshape(f.shape).to(f.dtype)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return softplus(f) - y f per item, of shape (B,)."""
        return F.binary_cross_entropy_with_logits(
            self._flat(outputs), self._labels(outputs, targets), reduction="none"
        )

    def predict(self, outputs: Tensor) -> Tensor:
        """Return sigmoid(f), of the outputs' shape."""
        return outputs.sigmoid()

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Return (log p(y = 0), log p(y = 1)) on a new last axis, in float32 or wider."""
        f = self._flat(outputs)
        f = f if f.dtype == torch.float64 else f.float()
        return torch.stack([F.logsigmoid(-f), F.logsigmoid(f)], dim=-1)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return sigmoid(f) - y, of the outputs' shape."""
        return outputs.sigmoid() - self._labels(outputs, targets).reshape(outputs.shape)

    def hessian(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return p (1 - p), of shape (B, 1, 1)."""
        del targets
        p = self._flat(outputs).sigmoid()
        return (p * (1.0 - p)).unsqueeze(-1).unsqueeze(-1)

    def hessian_sqrt(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return sqrt(p (1 - p)), of shape (B, 1, 1)."""
        return self.hessian(outputs, targets).sqrt()

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw 0/1 targets of shape (B,)."""
        return torch.bernoulli(self._flat(outputs).sigmoid(), generator=generator).long()

    def integrate(self, mean_BC: Tensor, cov_BCC: Tensor) -> Tensor:
        """Return log-probabilities at f / sqrt(1 + pi/8 v) (MacKay 1992), of shape (B, 2)."""
        var = cov_BCC.reshape(mean_BC.shape).clamp_min(0)
        return self.log_probs(mean_BC / (1.0 + math.pi / 8.0 * var).sqrt())
