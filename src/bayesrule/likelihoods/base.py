"""What a likelihood is: p(y | f) for network outputs f, with its loss and curvature.

Everything is per item and in nats; `loss` alone is a mean over items. Sums over a data set, the
effective sample size and temperatures belong to the callers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from bayesrule.errors import Unsupported

__all__ = ["Likelihood"]


class Likelihood(ABC):
    """p(y | f), log-concave in f, in canonical form: residual = E[y | f] - y, Lambda = Var[y | f].

    Attributes:
        kind: ``classification`` or ``regression``.
        ignore_index: Target value of items that do not count, or None.
    """

    kind: ClassVar[str]
    ignore_index: int | None = None

    @abstractmethod
    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -log p(y | f) per item, zero for ignored items."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of `nll` over the items that count, as a 0-d tensor."""
        return self.nll(outputs, targets).sum() / self.count(outputs, targets)

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the number of items that count, as a 0-d tensor of the outputs' dtype."""
        counted = self.mask(targets)
        if counted is None:
            return outputs.new_tensor(self.nll(outputs, targets).numel())
        return counted.sum().to(outputs.dtype)

    def mask(self, targets: Tensor) -> Tensor | None:
        """Return which items count, or None for all."""
        if self.ignore_index is None or targets.is_floating_point():
            return None
        return targets != self.ignore_index

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Return E[y | f], the inverse link."""

    @abstractmethod
    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return d nll / d f, of the outputs' shape."""

    @abstractmethod
    def hessian(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return Lambda_BCC = d^2 nll / d f^2 per item; targets only say which items count."""

    @abstractmethod
    def hessian_sqrt(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return R_BCM with R R^T = Lambda per item: the columns that KFAC sends backwards."""

    @abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw targets y ~ p(y | f)."""

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Return log p(y = k | f), classes on the last axis."""
        raise Unsupported(f"{type(self).__name__} has no class probabilities; use `moments`")

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of y given f, each of the outputs' shape."""
        raise Unsupported(f"{type(self).__name__} has no predictive moments; use `log_probs`")

    def integrate(self, mean_BC: Tensor, cov_BCC: Tensor) -> Tensor:
        """Return log E[p(y = k | f)] for f ~ N(mean, cov), by the probit approximation."""
        raise Unsupported(f"{type(self).__name__} has no class probabilities to integrate")
