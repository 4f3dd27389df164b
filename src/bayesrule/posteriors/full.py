"""Gaussian with a dense precision matrix, for small P: exact answers, last layers, GLMs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.base import ExponentialFamily
from bayesrule.posteriors.gaussian import GaussianPosterior, NaturalGaussian, flat_order
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import (
    Params,
    check_same_schema,
    flatten,
    num_params,
    standard_normal,
    unflatten,
)

__all__ = ["FullGaussian"]


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _cholesky(matrix: Tensor, names: tuple[str, ...], what: str) -> Tensor:
    """Return the lower Cholesky factor, or refuse with the smallest eigenvalue."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0 and bool(torch.isfinite(factor).all()):
        return factor
    if not bool(torch.isfinite(matrix).all()):
        raise ImproperDistribution(f"not a proper Gaussian: the {what} has non-finite entries")
    smallest = torch.linalg.eigvalsh(matrix)[0].item()
    raise ImproperDistribution(
        f"not a proper Gaussian: the {what} over {names[0]!r}"
        + (f" and {len(names) - 1} more parameters" if len(names) > 1 else "")
        + f" must be positive definite, but its smallest eigenvalue is {smallest:.6g}. If this is "
        "a site or a ratio, keep it as `q.natural()` until the product is proper"
    )


class FullGaussian(NaturalGaussian):
    """N(mean, S^-1) with dense S of shape (P, P), flattened in key order of the mean.

    nat1 = S m, nat2 = -S/2, mean1 = m, mean2 = S^-1 + m m^T.

    Args:
        mean: m, by parameter name.
        precision: S, symmetric positive definite (P, P).
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: S is not symmetric positive definite.
        Unsupported: S has the wrong shape.
    """

    family: ClassVar[str] = "full_gaussian"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        precision: Tensor,
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(mean, buffers)
        P = self.num_params
        if tuple(precision.shape) != (P, P):
            raise Unsupported(
                f"FullGaussian over {P} parameters needs a ({P}, {P}) precision, "
                f"not {tuple(precision.shape)}"
            )
        first = next(iter(self._mean.values()))
        S = precision.detach().to(dtype=first.dtype, device=first.device)
        if not bool(torch.isfinite(S).all()):
            raise ImproperDistribution(
                "not a proper Gaussian: the precision has non-finite entries"
            )
        if not torch.allclose(S, S.mT, rtol=1e-4, atol=1e-4 * float(S.abs().max())):
            raise ImproperDistribution("not a proper Gaussian: the precision is not symmetric")
        self._precision = _symmetric(S)
        self._chol = _cholesky(self._precision, self.names, "precision")

    @property
    def precision(self) -> Tensor:
        """The precision S, (P, P)."""
        return self._precision

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance S^-1, (P, P)."""
        return _symmetric(torch.cholesky_inverse(self._chol))

    @classmethod
    def from_gaussian(cls, q: GaussianPosterior) -> Self:
        """Return any Gaussian `q` with its precision written out densely."""
        return cls(q.mean, q.precision_matrix(), buffers=q.buffers)

    def precision_diag(self) -> Params:
        """Return diag(S), by parameter name."""
        return unflatten(self._precision.diagonal(), self._mean)

    def variance(self) -> Params:
        """Return diag(S^-1), by parameter name."""
        return unflatten(self.covariance.diagonal(), self._mean)

    def precision_times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return S v, by parameter name."""
        v = flatten({name: vector[name] for name in self._mean})
        return unflatten(self._precision @ v, self._mean)

    def log_det_precision(self) -> Tensor:
        """Return 2 sum log diag chol(S)."""
        return 2.0 * self._chol.diagonal().log().sum()

    def precision_matrix(self) -> Tensor:
        """Return S, (P, P)."""
        return self._precision

    def covariance_matrix(self) -> Tensor:
        """Return S^-1, (P, P)."""
        return self.covariance

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw theta = m + L^-T eps with S = L L^T, eps ~ N(0, I)."""
        count = 1 if n is None else n
        eps = standard_normal((self.num_params, count), self._precision, generator)
        d = torch.linalg.solve_triangular(self._chol.mT, eps, upper=True).mT
        theta = flatten(self._mean) + (d[0] if n is None else d)
        return unflatten(theta, self._mean)

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return cov_BCC = J S^-1 J^T, through one triangular solve."""
        check_same_schema(self._mean, jac, "the posterior and the Jacobian", leading=2)
        jac_BCP = flatten({name: jac[name] for name in self._mean}, leading=2)
        B, C, P = jac_BCP.shape
        half = torch.linalg.solve_triangular(self._chol, jac_BCP.reshape(B * C, P).mT, upper=False)
        half = half.mT.reshape(B, C, P)
        return half @ half.mT

    def natural(self) -> Natural[Tensor]:
        """Return (S m, -S/2)."""
        return Natural(self.precision_times(self._mean), -0.5 * self._precision)

    def expectation(self) -> Expectation[Tensor]:
        """Return (m, S^-1 + m m^T)."""
        m = flatten(self._mean)
        return Expectation(dict(self._mean), self.covariance + torch.outer(m, m))

    @classmethod
    def from_natural(
        cls, natural: Natural[Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with S = -2 nat2 and S m = nat1."""
        S = _symmetric(-2.0 * natural.nat2)
        factor = _cholesky(S, tuple(natural.nat1), "precision")
        m = torch.cholesky_solve(flatten(natural.nat1).unsqueeze(-1), factor).squeeze(-1)
        return cls(unflatten(m, natural.nat1), S, buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with m = mean1 and S^-1 = mean2 - m m^T."""
        m = flatten(expectation.mean1)
        return cls.from_covariance(
            expectation.mean1, expectation.mean2 - torch.outer(m, m), buffers=buffers
        )

    @classmethod
    def from_covariance(
        cls,
        mean: Mapping[str, Tensor],
        covariance: Tensor,
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Return N(mean, covariance), inverting once by Cholesky.

        Raises:
            ImproperDistribution: The covariance is not positive definite.
        """
        if tuple(covariance.shape) != (num_params(mean),) * 2:
            raise Unsupported(
                f"the covariance of {num_params(mean)} parameters cannot have shape "
                f"{tuple(covariance.shape)}"
            )
        factor = _cholesky(_symmetric(covariance), tuple(mean), "covariance")
        return cls(mean, _symmetric(torch.cholesky_inverse(factor)), buffers=buffers)

    def embed(self, other: ExponentialFamily) -> FullGaussian | None:
        """Return any Gaussian `other` with a dense precision, in the key order of self."""
        if not isinstance(other, GaussianPosterior):
            return None
        if isinstance(other, FullGaussian) and other.names == self.names:
            return other
        order = flat_order(other._mean, self._mean)
        S = other.precision_matrix()[order][:, order]
        mean = {name: other._mean[name] for name in self._mean}
        return FullGaussian(mean, S, buffers=other._buffers)

    def _groups(self) -> dict[str, Params]:
        return {
            "mean": self._mean,
            "precision": {"all": self._precision},
            "buffers": self._buffers,
        }

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["mean"], groups["precision"]["all"], buffers=groups["buffers"])
