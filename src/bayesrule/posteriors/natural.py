"""Natural and expectation parameters: the two dual coordinate systems, as plain vector spaces.

Sums, differences and multiples are taken entry by entry and need not belong to a distribution; a
federated site or a dual variable lives here. `from_natural` and `from_expectation` of a family come
back to a distribution and refuse what is not one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from bayesrule.errors import Unsupported
from bayesrule.posteriors.params import Params, check_same_schema, total, tree_map

__all__ = ["Expectation", "Natural"]

S = TypeVar("S", dict[str, Tensor], Tensor)


class _VectorSpace(ABC, Generic[S]):
    """Componentwise +, -, scalar * on a pair (Params, second-order part)."""

    @abstractmethod
    def _parts(self) -> tuple[Params, S]: ...

    @classmethod
    @abstractmethod
    def _of(cls, first: Params, second: S) -> Self: ...

    def __add__(self, other: Self) -> Self:
        (a1, a2), (b1, b2) = self._parts(), other._parts()
        _check_parts(self, a1, a2, other, b1, b2)
        return self._of(tree_map(torch.add, a1, b1), tree_map(torch.add, a2, b2))

    def __sub__(self, other: Self) -> Self:
        return self + (-1.0) * other

    def __mul__(self, scalar: float) -> Self:
        first, second = self._parts()
        return self._of(
            tree_map(lambda t: t * scalar, first), tree_map(lambda t: t * scalar, second)
        )

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> Self:
        return self * (1.0 / scalar)

    def __neg__(self) -> Self:
        return self * -1.0


def _check_parts(
    left: object, a1: Params, a2: Params | Tensor, right: object, b1: Params, b2: Params | Tensor
) -> None:
    if type(left) is not type(right):
        raise Unsupported(
            f"cannot add {type(left).__name__} and {type(right).__name__} parameters: they are "
            "coordinates of different kinds"
        )
    check_same_schema(a1, b1, "the two sets of parameters")
    if isinstance(a2, Tensor) != isinstance(b2, Tensor):
        raise Unsupported(
            "cannot add parameters of different families: promote the posterior first"
        )
    if isinstance(a2, Tensor) and isinstance(b2, Tensor):
        check_same_schema({"second": a2}, {"second": b2}, "the two sets of parameters")
    elif isinstance(a2, dict) and isinstance(b2, dict):
        check_same_schema(a2, b2, "the two sets of parameters")


def _leaves(tree: Params | Tensor) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else list(tree.values())


@dataclass(frozen=True)
class Natural(_VectorSpace[S]):
    """Natural parameters lambda = (nat1, nat2); for Gaussians nat1 = S m, nat2 = -S/2.

    A vector space: sums, differences and multiples need not be proper distributions.

    Attributes:
        nat1: Coefficient of theta, by parameter name.
        nat2: Coefficient of the second-order statistic; its form depends on the family.
    """

    nat1: Params
    nat2: S

    def dot(self, expectation: Expectation[S]) -> Tensor:
        """Return <lambda, mu>, the sum over all entries of both parts, as a 0-d tensor."""
        products = [nat * expectation.mean1[name] for name, nat in self.nat1.items()]
        products += _leaves(tree_map(torch.mul, self.nat2, expectation.mean2))
        return total(products)

    def _parts(self) -> tuple[Params, S]:
        return self.nat1, self.nat2

    @classmethod
    def _of(cls, first: Params, second: S) -> Self:
        return cls(first, second)


@dataclass(frozen=True)
class Expectation(_VectorSpace[S]):
    """Expectation parameters mu = (mean1, mean2); for Gaussians E[theta], E[theta theta^T].

    Attributes:
        mean1: E_q[theta], by parameter name.
        mean2: E_q of the second-order statistic; its form depends on the family.
    """

    mean1: Params
    mean2: S

    def _parts(self) -> tuple[Params, S]:
        return self.mean1, self.mean2

    @classmethod
    def _of(cls, first: Params, second: S) -> Self:
        return cls(first, second)
