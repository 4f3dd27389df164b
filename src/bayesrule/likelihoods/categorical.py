"""Softmax likelihood: cross-entropy on logits, for classes and next tokens."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.likelihoods.base import Likelihood

__all__ = ["Categorical"]


class Categorical(Likelihood):
    """p(y = k | f) = softmax(f)_k, with outputs (B, C) or sequences (B, T, C).

    Targets are class indices of shape (B,) or (B, T), or soft labels of the outputs' shape (rows
    summing to one), for which nll = -sum_k y_k log p_k.

    Args:
        ignore_index: Target value of items that do not count (padding, prompts).
    """

    kind: ClassVar[str] = "classification"

    def __init__(self, ignore_index: int | None = -100) -> None:
        self.ignore_index = ignore_index

    def _soft(self, outputs: Tensor, targets: Tensor) -> bool:
        if targets.is_floating_point() and targets.shape == outputs.shape:
            return True
        if targets.is_floating_point() or targets.shape != outputs.shape[:-1]:
            raise Unsupported(
                f"logits of shape {tuple(outputs.shape)} need class indices of shape "
                f"{tuple(outputs.shape[:-1])} or soft labels of their own shape, not "
                f"{tuple(targets.shape)} of {targets.dtype}"
            )
        return False

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return logsumexp(f) - f_y per item, of shape (B,) or (B, T)."""
        if self._soft(outputs, targets):
            return -(targets * outputs.log_softmax(-1)).sum(-1)
        ignore = -100 if self.ignore_index is None else self.ignore_index
        flat = F.cross_entropy(
            outputs.reshape(-1, outputs.shape[-1]),
            targets.reshape(-1).long(),
            ignore_index=ignore,
            reduction="none",
        )
        return flat.reshape(targets.shape)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return softmax(f)."""
        return outputs.softmax(-1)

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Return log softmax(f), computed in float32 or wider."""
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        return wide.log_softmax(-1)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return softmax(f) - y (one-hot), zero for ignored items."""
        p = outputs.softmax(-1)
        if self._soft(outputs, targets):
            return p * targets.sum(-1, keepdim=True) - targets
        counted = self.mask(targets)
        labels = targets if counted is None else targets.masked_fill(~counted, 0)
        residual = p - F.one_hot(labels.long(), outputs.shape[-1]).to(p.dtype)
        return residual if counted is None else residual * counted.unsqueeze(-1)

    def _counted(self, p: Tensor, targets: Tensor | None) -> Tensor:
        """Return p's mask of shape (..., 1): one for items that count."""
        counted = None if targets is None else self.mask(targets)
        if counted is None:
            return torch.ones_like(p[..., :1])
        return counted.unsqueeze(-1).to(p.dtype)

    def hessian(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return diag(p) - p p^T per item."""
        p = outputs.softmax(-1)
        counted = self._counted(p, targets).unsqueeze(-1)
        return (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)) * counted

    def hessian_sqrt(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return diag(sqrt p) - p sqrt(p)^T per item; R R^T = diag(p) - p p^T as sum p = 1."""
        p = outputs.softmax(-1)
        root = p.sqrt()
        counted = self._counted(p, targets).unsqueeze(-1)
        return (torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)) * counted

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw class indices of the items' shape."""
        p = outputs.softmax(-1)
        flat = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator)
        return flat.reshape(p.shape[:-1])

    def integrate(self, mean_BC: Tensor, cov_BCC: Tensor) -> Tensor:
        """Return log softmax( f_c / sqrt(1 + pi/8 cov_cc) ) (MacKay 1992; Gibbs 1997)."""
        var_BC = cov_BCC.diagonal(dim1=-2, dim2=-1).clamp_min(0)
        return self.log_probs(mean_BC / (1.0 + math.pi / 8.0 * var_BC).sqrt())
