"""Distributions over probabilities: Dirichlet (K classes) and Beta (one probability).

With base measure 1 on the simplex (Lebesgue on the first K - 1 coordinates)::

    Dirichlet   T = log theta,                      lambda = alpha - 1
                mu_k = psi(alpha_k) - psi(alpha_0),  alpha_0 = sum_k alpha_k
                A = sum_k lgamma(alpha_k) - lgamma(alpha_0)
    Beta        T = (log theta, log(1 - theta)),    lambda = (a - 1, b - 1)

The uniform distribution has lambda = 0, so q / q is proper here: it is uniform.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.constant_base import (
    ConstantBaseMeasure,
    require_inside,
    require_shape,
)
from bayesrule.posteriors.inverse import dirichlet_from_mean_log
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import Params, check_same_schema, own, total, tree_map

__all__ = ["Beta", "Dirichlet"]


def _draw(alpha: Tensor, generator: torch.Generator | None, n: int | None) -> Tensor:
    """Draw from Dirichlet(alpha), on the generator's device."""
    device = alpha.device if generator is None else generator.device
    lead = () if n is None else (n,)
    concentration = alpha.expand((*lead, *alpha.shape)).contiguous().to(device)
    return torch._sample_dirichlet(concentration, generator=generator).to(alpha.device)


def _mean_log(alpha: Tensor) -> Tensor:
    return torch.digamma(alpha) - torch.digamma(alpha.sum(-1, keepdim=True))


def _log_partition(alpha: Tensor) -> Tensor:
    return torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.sum(-1))


def _from_mean_log(t: Tensor, family: str, name: str) -> Tensor:
    """Return alpha with these expected logarithms (..., K).

    Raises:
        ImproperDistribution: There is none: sum_k exp(t_k) must be below 1 (Jensen).
    """
    total_exp = t.exp().sum(-1)
    if not bool((torch.isfinite(t).all(-1) & (total_exp < 1.0)).all()):
        raise ImproperDistribution(
            f"not a proper {family}: expected logarithms t of {name!r} must have sum exp(t) < 1, "
            f"the largest sum is {total_exp.max().item():.6g}"
        )
    return dirichlet_from_mean_log(t)


class Dirichlet(ConstantBaseMeasure):
    """Independent probability vectors; each parameter is (..., K), its last axis one vector.

    nat1 = alpha - 1, mean1 = psi(alpha) - psi(sum alpha); nat2 and mean2 are empty.

    Args:
        concentration: alpha > 0, (..., K) by parameter name.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: A concentration is not finite and positive.
        Unsupported: A parameter has fewer than two classes.
    """

    family: ClassVar[str] = "dirichlet"
    space: ClassVar[str] = "probability vectors"

    def __init__(
        self, concentration: Mapping[str, Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        for name, t in concentration.items():
            fits = t.ndim > 0 and t.shape[-1] > 1
            require_shape(fits, "Dirichlet", name, t, "(..., K) with K > 1")
        require_inside("Dirichlet", concentration, "concentration")
        alpha = own(concentration)
        super().__init__(tree_map(lambda a: a / a.sum(-1, keepdim=True), alpha), buffers)
        self._alpha = alpha

    @property
    def concentration(self) -> Params:
        """Alpha, by parameter name."""
        return dict(self._alpha)

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw probability vectors."""
        return {name: _draw(alpha, generator, n) for name, alpha in self._alpha.items()}

    @property
    def mode(self) -> Params:
        """(alpha - 1) / sum(alpha - 1), by parameter name.

        Raises:
            Unsupported: A concentration is below 1, or all of a vector are 1.
        """
        for name, alpha in self._alpha.items():
            if not bool(((alpha >= 1).all(-1) & (alpha.sum(-1) > alpha.shape[-1])).all()):
                raise Unsupported(f"the Dirichlet over {name!r} has no mode: it needs alpha >= 1")
        return tree_map(lambda a: (a - 1) / (a - 1).sum(-1, keepdim=True), self._alpha)

    def statistics(self, theta: Mapping[str, Tensor]) -> Expectation[Params]:
        """Return log theta."""
        return Expectation({name: theta[name].log() for name in self._alpha}, {})

    def log_partition(self) -> Tensor:
        """Return the sum over vectors of sum_k lgamma(alpha_k) - lgamma(alpha_0)."""
        return total(_log_partition(alpha) for alpha in self._alpha.values())

    def _in_space(self, theta: Tensor) -> bool:
        return bool(((theta > 0).all(-1) & ((theta.sum(-1) - 1).abs() < 1e-4)).all())

    def natural(self) -> Natural[Params]:
        """Return (alpha - 1, nothing)."""
        return Natural(tree_map(lambda a: a - 1, self._alpha), {})

    def expectation(self) -> Expectation[Params]:
        """Return (psi(alpha) - psi(alpha_0), nothing)."""
        return Expectation(tree_map(_mean_log, self._alpha), {})

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with alpha = nat1 + 1."""
        return cls(tree_map(lambda t: t + 1, natural.nat1), buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with E[log theta] = mean1, by a safe Newton method."""
        alpha = {k: _from_mean_log(t, "Dirichlet", k) for k, t in expectation.mean1.items()}
        return cls(alpha, buffers=buffers)

    def _groups(self) -> dict[str, Params]:
        return {"mean": self._mean, "concentration": self._alpha, "buffers": self._buffers}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["concentration"], buffers=groups["buffers"])


class Beta(ConstantBaseMeasure):
    """Independent probabilities in (0, 1), one for each entry.

    nat1 = a - 1, nat2 = b - 1, mean1 = E log theta, mean2 = E log(1 - theta), entry by entry.

    Args:
        a: First concentration > 0, by parameter name (successes + 1).
        b: Second concentration > 0, of the same names and shapes (failures + 1).
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: A concentration is not finite and positive.
    """

    family: ClassVar[str] = "beta"
    space: ClassVar[str] = "(0, 1)^P"

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_same_schema(a, b, "a and b")
        require_inside("Beta", a, "first concentration")
        require_inside("Beta", b, "second concentration")
        self._a = own(a)
        self._b = own({name: b[name].to(t.dtype) for name, t in a.items()})
        super().__init__(tree_map(lambda a, b: a / (a + b), self._a, self._b), buffers)

    @property
    def a(self) -> Params:
        """First concentration, by parameter name."""
        return dict(self._a)

    @property
    def b(self) -> Params:
        """Second concentration, by parameter name."""
        return dict(self._b)

    def _pairs(self) -> Params:
        """Return (a, b) on a new last axis: a Dirichlet's concentration."""
        return tree_map(lambda a, b: torch.stack([a, b], -1), self._a, self._b)

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw probabilities."""
        return {name: _draw(alpha, generator, n)[..., 0] for name, alpha in self._pairs().items()}

    @property
    def mode(self) -> Params:
        """(a - 1) / (a + b - 2), by parameter name.

        Raises:
            Unsupported: Some a or b is below 1, or both are 1.
        """
        for name, a in self._a.items():
            b = self._b[name]
            if not bool(((a >= 1) & (b >= 1) & (a + b > 2)).all()):
                raise Unsupported(f"the Beta over {name!r} has no mode: it needs a, b >= 1")
        return tree_map(lambda a, b: (a - 1) / (a + b - 2), self._a, self._b)

    def statistics(self, theta: Mapping[str, Tensor]) -> Expectation[Params]:
        """Return (log theta, log(1 - theta))."""
        ordered = {name: theta[name] for name in self._a}
        return Expectation(
            tree_map(torch.log, ordered), tree_map(lambda t: torch.log1p(-t), ordered)
        )

    def log_partition(self) -> Tensor:
        """Return sum log B(a, b)."""
        return total(_log_partition(alpha) for alpha in self._pairs().values())

    def _in_space(self, theta: Tensor) -> bool:
        return bool(((theta > 0) & (theta < 1)).all())

    def natural(self) -> Natural[Params]:
        """Return (a - 1, b - 1)."""
        return Natural(tree_map(lambda t: t - 1, self._a), tree_map(lambda t: t - 1, self._b))

    def expectation(self) -> Expectation[Params]:
        """Return (psi(a) - psi(a + b), psi(b) - psi(a + b))."""
        both = tree_map(_mean_log, self._pairs())
        return Expectation(tree_map(lambda t: t[..., 0], both), tree_map(lambda t: t[..., 1], both))

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with a = nat1 + 1 and b = nat2 + 1."""
        return cls(
            tree_map(lambda t: t + 1, natural.nat1),
            tree_map(lambda t: t + 1, natural.nat2),
            buffers=buffers,
        )

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with these expected logarithms, by a safe Newton method."""
        pairs = {
            name: _from_mean_log(torch.stack([t, expectation.mean2[name]], -1), "Beta", name)
            for name, t in expectation.mean1.items()
        }
        a, b = tree_map(lambda t: t[..., 0], pairs), tree_map(lambda t: t[..., 1], pairs)
        return cls(a, b, buffers=buffers)

    def _groups(self) -> dict[str, Params]:
        return {"mean": self._mean, "a": self._a, "b": self._b, "buffers": self._buffers}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["a"], groups["b"], buffers=groups["buffers"])
