"""Positive variables: Gamma (numbers) and Wishart (matrices), with shape and rate.

With base measure 1::

    Gamma     q = b^a / Gamma(a) x^(a-1) exp(-b x)
              T = (log x, x),          lambda = (a - 1, -b)
              mu = (psi(a) - log b, a / b),               A = lgamma(a) - a log b
    Wishart   q = |X|^((nu-d-1)/2) exp(-tr(V^-1 X)/2) / (2^(nu d/2) |V|^(nu/2) Gamma_d(nu/2))
              T = (log|X|, X),         lambda = ((nu-d-1)/2, -V^-1/2)
              mu = (psi_d(nu/2) + d log 2 + log|V|, nu V)
              A = nu/2 log|V| + nu d/2 log 2 + log Gamma_d(nu/2)

The usual use is the precision of a Gaussian: N observations x of N(0, X^-1) add
(N/2, -1/2 sum x x^T) to lambda. Wishart with d = 1 is Gamma(nu/2, 1/(2V)).
"""

from __future__ import annotations

import math
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
from bayesrule.posteriors.inverse import multidigamma, solve_log_minus_multidigamma
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import (
    Params,
    check_same_schema,
    own,
    standard_normal,
    total,
    tree_map,
)

__all__ = ["Gamma", "Wishart"]


def _standard_gamma(shape: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw Gamma(shape, 1) entry by entry, on the generator's device."""
    device = shape.device if generator is None else generator.device
    return torch._standard_gamma(shape.contiguous().to(device), generator=generator).to(
        shape.device
    )


class Gamma(ConstantBaseMeasure):
    """Independent positive numbers, one for each entry.

    nat1 = a - 1, nat2 = -b, mean1 = E log x = psi(a) - log b, mean2 = E x = a / b.

    Args:
        shape: a > 0, by parameter name.
        rate: b > 0, of the same names and shapes.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: A shape or rate is not finite and positive.
    """

    family: ClassVar[str] = "gamma"
    space: ClassVar[str] = "(0, inf)^P"

    def __init__(
        self,
        shape: Mapping[str, Tensor],
        rate: Mapping[str, Tensor],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_same_schema(shape, rate, "shape and rate")
        require_inside("Gamma", shape, "shape")
        require_inside("Gamma", rate, "rate")
        self._shape = own(shape)
        self._rate = own({name: rate[name].to(t.dtype) for name, t in shape.items()})
        super().__init__(tree_map(torch.div, self._shape, self._rate), buffers)

    @property
    def shape(self) -> Params:
        """The shape a, by parameter name."""
        return dict(self._shape)

    @property
    def rate(self) -> Params:
        """The rate b, by parameter name."""
        return dict(self._rate)

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw x = Gamma(a, 1) / b."""
        lead = () if n is None else (n,)
        return {
            name: _standard_gamma(a.expand((*lead, *a.shape)), generator) / self._rate[name]
            for name, a in self._shape.items()
        }

    @property
    def mode(self) -> Params:
        """(a - 1) / b, by parameter name.

        Raises:
            Unsupported: A shape is not above 1.
        """
        for name, a in self._shape.items():
            if not bool((a > 1).all()):
                raise Unsupported(f"the Gamma over {name!r} has no mode: it needs shapes above 1")
        return tree_map(lambda a, b: (a - 1) / b, self._shape, self._rate)

    def statistics(self, theta: Mapping[str, Tensor]) -> Expectation[Params]:
        """Return (log x, x)."""
        ordered = {name: theta[name] for name in self._shape}
        return Expectation(tree_map(torch.log, ordered), ordered)

    def log_partition(self) -> Tensor:
        """Return sum lgamma(a) - a log b."""
        parts = tree_map(lambda a, b: torch.lgamma(a) - a * b.log(), self._shape, self._rate)
        return total(parts.values())

    def _in_space(self, theta: Tensor) -> bool:
        return bool((theta > 0).all())

    def natural(self) -> Natural[Params]:
        """Return (a - 1, -b)."""
        return Natural(tree_map(lambda a: a - 1, self._shape), tree_map(torch.neg, self._rate))

    def expectation(self) -> Expectation[Params]:
        """Return (psi(a) - log b, a / b)."""
        log_mean = tree_map(lambda a, b: torch.digamma(a) - b.log(), self._shape, self._rate)
        return Expectation(log_mean, dict(self._mean))

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with a = nat1 + 1 and b = -nat2."""
        shape = tree_map(lambda t: t + 1, natural.nat1)
        return cls(shape, tree_map(torch.neg, natural.nat2), buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with these moments, by Newton's method on log a - psi(a).

        Raises:
            ImproperDistribution: There is none: E log x must be below log E x (Jensen).
        """
        require_inside("Gamma", expectation.mean2, "mean")
        gap = tree_map(lambda t, m: m.log() - t, expectation.mean1, expectation.mean2)
        require_inside("Gamma", gap, "gap log E x - E log x")
        shape = tree_map(solve_log_minus_multidigamma, gap)
        return cls(shape, tree_map(torch.div, shape, expectation.mean2), buffers=buffers)

    def _groups(self) -> dict[str, Params]:
        return {
            "mean": self._mean,
            "shape": self._shape,
            "rate": self._rate,
            "buffers": self._buffers,
        }

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["shape"], groups["rate"], buffers=groups["buffers"])


class Wishart(ConstantBaseMeasure):
    """Independent symmetric positive definite matrices; each parameter is (..., d, d).

    nat1 = (nu - d - 1)/2 of shape (...), nat2 = -V^-1/2, mean1 = E log|X|, mean2 = E X = nu V.

    Args:
        df: Degrees of freedom nu > d - 1, of shape (...), by parameter name.
        rate: V^-1, symmetric positive definite (..., d, d), of the same names.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: nu or V is not what it must be.
        Unsupported: The shapes do not fit.
    """

    family: ClassVar[str] = "wishart"
    space: ClassVar[str] = "positive definite matrices"

    def __init__(
        self,
        df: Mapping[str, Tensor],
        rate: Mapping[str, Tensor],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        for name, R in rate.items():
            fits = R.ndim >= 2 and R.shape[-1] == R.shape[-2]
            require_shape(fits, "Wishart", name, R, "(..., d, d)")
        heads = {name: R[..., 0, 0] for name, R in rate.items()}
        check_same_schema(heads, df, "rate (without its matrix axes) and degrees of freedom")
        self._df = own({name: df[name].to(R.dtype) for name, R in rate.items()})
        for name, nu in self._df.items():
            require_inside("Wishart", {name: nu}, "degrees of freedom", rate[name].shape[-1] - 1)
        self._rate = own(tree_map(_symmetric, dict(rate)))
        self._chol = {name: _cholesky(R, name) for name, R in self._rate.items()}
        V = tree_map(lambda L: _symmetric(torch.cholesky_inverse(L)), self._chol)
        super().__init__(tree_map(lambda nu, V: nu[..., None, None] * V, self._df, V), buffers)

    @property
    def df(self) -> Params:
        """Degrees of freedom nu, by parameter name."""
        return dict(self._df)

    @property
    def rate(self) -> Params:
        """V^-1, by parameter name."""
        return dict(self._rate)

    def _log_det_scale(self) -> Params:
        """Return log|V|, by parameter name."""
        return tree_map(lambda L: -2.0 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1), self._chol)

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw X = L^-T A A^T L^-1 with V^-1 = L L^T and Bartlett's lower triangular A.

        A_jj^2 ~ chi^2(nu - j) for j = 0 .. d - 1, and standard normals below the diagonal.
        """
        lead = () if n is None else (n,)
        draws = {}
        for name, L in self._chol.items():
            d = L.shape[-1]
            nu = self._df[name].expand((*lead, *self._df[name].shape))
            dof = nu.unsqueeze(-1) - torch.arange(d, dtype=L.dtype, device=L.device)
            chi = (2.0 * _standard_gamma(0.5 * dof, generator)).sqrt()
            A = standard_normal((*lead, *L.shape), L, generator).tril(-1) + torch.diag_embed(chi)
            half = torch.linalg.solve_triangular(L.mT, A, upper=True)
            draws[name] = half @ half.mT
        return draws

    @property
    def mode(self) -> Params:
        """(nu - d - 1) V, by parameter name.

        Raises:
            Unsupported: Some nu is not above d + 1.
        """
        for name, nu in self._df.items():
            if not bool((nu > self._mean[name].shape[-1] + 1).all()):
                raise Unsupported(f"the Wishart over {name!r} has no mode: it needs nu > d + 1")
        return {
            name: (1.0 - (M.shape[-1] + 1) / self._df[name])[..., None, None] * M
            for name, M in self._mean.items()
        }

    def statistics(self, theta: Mapping[str, Tensor]) -> Expectation[Params]:
        """Return (log|X|, X)."""
        ordered = {name: theta[name] for name in self._mean}
        return Expectation(tree_map(torch.logdet, ordered), ordered)

    def log_partition(self) -> Tensor:
        """Return the sum of nu/2 (log|V| + d log 2) + log Gamma_d(nu/2)."""
        parts = []
        for name, log_det in self._log_det_scale().items():
            d, half = self._mean[name].shape[-1], 0.5 * self._df[name]
            parts.append(half * (log_det + d * math.log(2.0)) + torch.mvlgamma(half, d))
        return total(parts)

    def _in_space(self, theta: Tensor) -> bool:
        X = theta.detach()
        if not torch.allclose(X, X.mT, rtol=1e-4, atol=1e-6 * float(X.abs().max())):
            return False
        return bool((torch.linalg.cholesky_ex(theta).info == 0).all())

    def natural(self) -> Natural[Params]:
        """Return ((nu - d - 1)/2, -V^-1/2)."""
        nat1 = {name: 0.5 * (nu - self._mean[name].shape[-1] - 1) for name, nu in self._df.items()}
        return Natural(nat1, tree_map(lambda R: -0.5 * R, self._rate))

    def expectation(self) -> Expectation[Params]:
        """Return (psi_d(nu/2) + d log 2 + log|V|, nu V)."""
        mean1 = {}
        for name, log_det in self._log_det_scale().items():
            d = self._mean[name].shape[-1]
            mean1[name] = multidigamma(0.5 * self._df[name], d) + d * math.log(2.0) + log_det
        return Expectation(mean1, dict(self._mean))

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with nu = 2 nat1 + d + 1 and V^-1 = -2 nat2."""
        df = {name: 2.0 * t + natural.nat2[name].shape[-1] + 1 for name, t in natural.nat1.items()}
        return cls(df, tree_map(lambda t: -2.0 * t, natural.nat2), buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with these moments, by Newton's method on d log x - psi_d(x).

        Raises:
            ImproperDistribution: There is none: E log|X| must be below log|E X| (Jensen).
        """
        df, rate = {}, {}
        for name, M in expectation.mean2.items():
            d = M.shape[-1]
            L = _cholesky(_symmetric(M), name, "mean")
            log_det = 2.0 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            gap = log_det - expectation.mean1[name]
            require_inside("Wishart", {name: gap}, "gap log|E X| - E log|X|")
            df[name] = 2.0 * solve_log_minus_multidigamma(gap, d)
            rate[name] = df[name][..., None, None] * torch.cholesky_inverse(L)
        return cls(df, rate, buffers=buffers)

    def _groups(self) -> dict[str, Params]:
        return {"mean": self._mean, "df": self._df, "rate": self._rate, "buffers": self._buffers}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["df"], groups["rate"], buffers=groups["buffers"])


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _cholesky(matrix: Tensor, name: str, what: str = "rate V^-1") -> Tensor:
    """Return the lower factor.

    Raises:
        ImproperDistribution: The matrix is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info == 0).all()) and bool(torch.isfinite(factor).all()):
        return factor
    finite = bool(torch.isfinite(matrix).all())
    smallest = f"{torch.linalg.eigvalsh(matrix).min().item():.6g}" if finite else "not finite"
    raise ImproperDistribution(
        f"not a proper Wishart: the {what} of {name!r} must be positive definite (smallest "
        f"eigenvalue: {smallest}). If this is a site or a ratio, keep it as `q.natural()` until "
        "the product is proper"
    )
