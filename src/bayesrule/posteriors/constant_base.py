"""Exponential families with a constant base measure: all closed forms follow from A(lambda).

    log q(theta) = <lambda, T(theta)> - A(lambda)                       (log h = 0)
    mu           = E_q[T] = grad A(lambda)
    H(q)         = A(lambda) - <lambda, mu>,        hence  grad_mu H = -lambda
    KL(q || p)   = <lambda_q - lambda_p, mu_q> - A(lambda_q) + A(lambda_p)

The last property is what the Bayesian learning rule rests on (Khan and Rue 2023, sec. 1.3): with
it the entropy's part of a natural-gradient step is the shrinkage (1 - rho) lambda. It needs the
parameters for which h is constant. Those of textbooks often are not: Gamma with lambda = (a, -b)
has h = 1/x; with lambda = (a - 1, -b), used here, h = 1. So the natural parameters of products
are those of products of densities: Beta(a, b) * Beta(c, d) is Beta(a + c - 1, b + d - 1).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.base import ExponentialFamily, Posterior
from bayesrule.posteriors.natural import Expectation
from bayesrule.posteriors.params import check_same_schema

__all__ = ["ConstantBaseMeasure"]


class ConstantBaseMeasure(ExponentialFamily):
    """Common maths of the families with log h = 0; each says its T, A and support."""

    @abstractmethod
    def statistics(self, theta: Mapping[str, Tensor]) -> Expectation[Any]:
        """Return T(theta), in the form of the expectation parameters."""

    @abstractmethod
    def log_partition(self) -> Tensor:
        """Return A(lambda) as a 0-d tensor."""

    @abstractmethod
    def _in_space(self, theta: Tensor) -> bool:
        """Return whether one parameter has a value that a draw can take."""

    def log_prob(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return <lambda, T(theta)> - A(lambda).

        Raises:
            Unsupported: theta is not in the family's space, or names or shapes do not fit.
        """
        self._check_theta(theta)
        outside = [name for name, t in theta.items() if not self._in_space(t)]
        if outside:
            raise Unsupported(
                f"theta[{outside[0]!r}] is not in {self.space}: {type(self).__name__} has no "
                "density elsewhere"
            )
        return self.natural().dot(self.statistics(theta)) - self.log_partition()

    def entropy(self) -> Tensor:
        """Return A(lambda) - <lambda, mu>, in nats."""
        return self.log_partition() - self.natural().dot(self.expectation())

    def kl(self, other: Posterior) -> Tensor:
        """Return KL(self || other) for `other` of the same family over the same parameters.

        Raises:
            Unsupported: `other` is of another family, or the names or shapes do not fit.
        """
        check_same_schema(self._mean, other._mean)
        if not isinstance(other, ConstantBaseMeasure) or type(other) is not type(self):
            raise Unsupported(
                f"KL({type(self).__name__} || {type(other).__name__}) is not defined in closed "
                f"form: both must be {type(self).__name__}, over {self.space}"
            )
        gap = self.natural() - other.natural()
        return gap.dot(self.expectation()) - self.log_partition() + other.log_partition()


def require_inside(
    family: str, values: Mapping[str, Tensor], what: str, bound: float = 0.0
) -> None:
    """Require every entry to be finite and above `bound`.

    Raises:
        ImproperDistribution: Naming the first parameter that is not, and its smallest entry.
    """
    for name, tensor in values.items():
        fine = torch.isfinite(tensor) & (tensor > bound)
        if not bool(fine.all()):
            finite = tensor[torch.isfinite(tensor)]
            smallest = f"{finite.min().item():.6g}" if finite.numel() else "not finite"
            raise ImproperDistribution(
                f"not a proper {family}: the {what} of {name!r} must be finite and above "
                f"{bound:g}, but {int((~fine).sum())} of {tensor.numel()} entries are not "
                f"(smallest: {smallest}). If this is a site or a ratio, keep it as `q.natural()` "
                "until the product is proper"
            )


def require_shape(fits: bool, family: str, name: str, tensor: Tensor, wanted: str) -> None:
    """Require that the shape of a parameter is one that the family can be over.

    Raises:
        Unsupported: Naming the parameter and the shape that is needed.
    """
    if not fits:
        raise Unsupported(
            f"{family}: parameter {name!r} has shape {tuple(tensor.shape)}, expected {wanted}"
        )
