"""All mass on one parameter vector: the answer of SGD, Adam and every other point estimator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.posteriors.base import Posterior
from bayesrule.posteriors.params import Params, check_same_schema

__all__ = ["PointMass"]


class PointMass(Posterior):
    """q(theta) = delta(theta - mean).

    It has draws and predictions, and a finite support of one state. It has no density with
    respect to Lebesgue measure and is not an exponential family, so no `log_prob` and no algebra.

    Args:
        mean: The parameter vector, by name.
        buffers: Non-random companions.
    """

    family: ClassVar[str] = "point_mass"

    @property
    def mode(self) -> Params:
        """The one value that has mass."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Return the mean, `n` times when n is given. No randomness is used."""
        del generator
        if n is None:
            return {name: tensor.clone() for name, tensor in self._mean.items()}
        return {
            name: tensor.expand(n, *tensor.shape).clone() for name, tensor in self._mean.items()
        }

    def support(self) -> list[tuple[float, Params]]:
        """Return the one state, with weight 1."""
        return [(1.0, self.mean_state())]

    def log_prob(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Refuse: a point mass has no density."""
        raise Unsupported(
            "PointMass has no density: log_prob is +inf at its mean and -inf elsewhere"
        )

    def entropy(self) -> Tensor:
        """Refuse: the differential entropy is minus infinity."""
        raise Unsupported("PointMass has no entropy: the differential entropy is minus infinity")

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return zeros of shape (B, C, C): the outputs are certain."""
        check_same_schema(self._mean, jac, "the posterior and the Jacobian", leading=2)
        first = next(iter(jac.values()))
        B, C = first.shape[:2]
        return first.new_zeros(B, C, C)

    def _groups(self) -> dict[str, Params]:
        return {"mean": self._mean, "buffers": self._buffers}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["mean"], buffers=groups["buffers"])
