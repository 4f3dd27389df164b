"""Gaussian whose precision is Kronecker-factored per parameter: KFAC Laplace.

A parameter of shape (r, ...) is read as a matrix W of r rows and c columns; its block of the
precision, over the row-major entries of W, is

    S = scale * (G (x) A) + delta I,     G (r, r) over rows (outputs), A (c, c) over columns

With G = U diag(g) U^T and A = V diag(a) V^T the eigenvalues are E_ij = scale g_i a_j + delta,
exactly: the isotropic part is not spread over the factors as in damped KFAC
(Immer et al. 2021, arXiv:2104.04975). Blocks of different parameters are independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.base import ExponentialFamily, Posterior
from bayesrule.posteriors.gaussian import GaussianPosterior, IsotropicGaussian, NaturalGaussian
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import (
    Params,
    check_same_schema,
    standard_normal,
    total,
    tree_map,
)

__all__ = ["KroneckerGaussian"]

Factors = dict[str, tuple[Tensor, Tensor]]


class _Eigen(NamedTuple):
    """Eigendecomposition of one block."""

    rows: Tensor  # U, (r, r)
    cols: Tensor  # V, (c, c)
    row_values: Tensor  # g, (r,)
    col_values: Tensor  # a, (c,)


def _matrix(tensor: Tensor, lead: int = 0) -> Tensor:
    """Read (*batch, r, ...) as (*batch, r, c); vectors have c = 1, scalars r = c = 1."""
    batch, shape = tensor.shape[:lead], tensor.shape[lead:]
    rows = shape[0] if len(shape) else 1
    return tensor.reshape(*batch, rows, -1)


class KroneckerGaussian(NaturalGaussian):
    """N(mean, S^-1) with S block diagonal, each block scale G (x) A + delta I.

    For fixed factors (G, A) this is an exponential family with natural parameters S m, -scale/2 and
    -delta/2, so products, ratios and powers of members *with the same factors*, and with isotropic
    Gaussians, are exact. A sum of two different Kronecker products is not a Kronecker product; such
    algebra is refused.

    Args:
        mean: m, by parameter name.
        factors: Name -> (G, A), symmetric positive semi-definite (r, r) and (c, c).
        delta: Name -> isotropic part of the block, 0-d tensors or numbers; or one number for all.
        scale: Name -> scale of the Kronecker product; one for all; default 1.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: A block is not positive definite.
        Unsupported: Factors do not fit the parameters.
    """

    family: ClassVar[str] = "kronecker_gaussian"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        factors: Mapping[str, tuple[Tensor, Tensor]],
        delta: float | Mapping[str, Tensor | float] = 0.0,
        scale: float | Mapping[str, Tensor | float] = 1.0,
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(mean, buffers)
        self._factors = _own_factors(self._mean, factors)
        self._delta = _per_block(self._mean, delta)
        self._scale = _per_block(self._mean, scale)
        self._eigen = {name: _decompose(G, A) for name, (G, A) in self._factors.items()}
        self._require_proper()

    def _require_proper(self) -> None:
        for name, E in self._eigenvalues().items():
            if not bool((torch.isfinite(E) & (E > 0)).all()):
                raise ImproperDistribution(
                    f"not a proper Gaussian: the precision block of {name!r} must be positive "
                    f"definite, but its smallest eigenvalue is {E.min().item():.6g}"
                )

    @property
    def factors(self) -> Factors:
        """Name -> (G, A), the Kronecker factors over rows and columns."""
        return dict(self._factors)

    @property
    def delta(self) -> Params:
        """Name -> isotropic part of the block (0-d)."""
        return dict(self._delta)

    @property
    def scale(self) -> Params:
        """Name -> scale of the Kronecker product (0-d)."""
        return dict(self._scale)

    def _eigenvalues(self) -> Params:
        """Return E_ij = scale g_i a_j + delta per block, (r, c)."""
        return {
            name: self._scale[name] * torch.outer(e.row_values, e.col_values) + self._delta[name]
            for name, e in self._eigen.items()
        }

    def _spectral(self, vector: Mapping[str, Tensor], values: Params, lead: int = 0) -> Params:
        """Return U (values * (U^T X V)) V^T per block, in the parameters' shapes."""
        result = {}
        for name, e in self._eigen.items():
            X = _matrix(vector[name], lead)
            Y = e.rows @ (values[name] * (e.rows.mT @ X @ e.cols)) @ e.cols.mT
            result[name] = Y.reshape(vector[name].shape)
        return result

    def precision_times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return scale G X A + delta X per block."""
        result = {}
        for name, (G, A) in self._factors.items():
            X = _matrix(vector[name])
            Y = self._scale[name] * (G @ X @ A) + self._delta[name] * X
            result[name] = Y.reshape(vector[name].shape)
        return result

    def precision_diag(self) -> Params:
        """Return scale G_ii A_jj + delta, by parameter name."""
        return {
            name: (
                self._scale[name] * torch.outer(G.diagonal(), A.diagonal()) + self._delta[name]
            ).reshape(self._mean[name].shape)
            for name, (G, A) in self._factors.items()
        }

    def variance(self) -> Params:
        """Return diag(S^-1) = (U*U) E^-1 (V*V)^T, by parameter name."""
        E = self._eigenvalues()
        return {
            name: (e.rows.square() @ E[name].reciprocal() @ e.cols.square().mT).reshape(
                self._mean[name].shape
            )
            for name, e in self._eigen.items()
        }

    def log_det_precision(self) -> Tensor:
        """Return sum_ij log E_ij over all blocks."""
        return total(E.log() for E in self._eigenvalues().values())

    def precision_matrix(self) -> Tensor:
        """Return S, (P, P), dense."""
        blocks = []
        for name, (G, A) in self._factors.items():
            S = self._scale[name] * torch.kron(G, A)
            blocks.append(S + self._delta[name] * torch.eye(len(S), dtype=S.dtype, device=S.device))
        return _block_diag(blocks)

    def covariance_matrix(self) -> Tensor:
        """Return S^-1, (P, P), dense."""
        blocks, E = [], self._eigenvalues()
        for name, e in self._eigen.items():
            Q = torch.kron(e.rows, e.cols)
            blocks.append((Q / E[name].flatten()) @ Q.mT)
        return _block_diag(blocks)

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw W = M + U (eps / sqrt E) V^T per block, eps ~ N(0, I)."""
        lead = () if n is None else (n,)
        E = self._eigenvalues()
        result = {}
        for name, m in self._mean.items():
            e = self._eigen[name]
            eps = standard_normal((*lead, *E[name].shape), m, generator)
            W = e.rows @ (eps * E[name].rsqrt()) @ e.cols.mT
            result[name] = m + W.reshape((*lead, *m.shape))
        return result

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return cov_BCC = sum over blocks of J S^-1 J^T, through the eigenvectors."""
        check_same_schema(self._mean, jac, "the posterior and the Jacobian", leading=2)
        cov: Tensor | None = None
        for name, E in self._eigenvalues().items():
            e = self._eigen[name]
            X = e.rows.mT @ _matrix(jac[name], 2) @ e.cols * E.rsqrt()
            half_BCP = X.flatten(start_dim=2)
            term = half_BCP @ half_BCP.mT
            cov = term if cov is None else cov + term
        assert cov is not None
        return cov

    def _trace(self, other: GaussianPosterior) -> Tensor:
        """Return tr(S_other Sigma): exact without dense matrices for Kronecker `other` too.

        tr((G' (x) A') Q E^-1 Q^T) = sum_ij (U^T G' U)_ii (V^T A' V)_jj / E_ij.
        """
        if not isinstance(other, KroneckerGaussian):
            return super()._trace(other)
        terms = []
        for name, E in self._eigenvalues().items():
            e, (G, A) = self._eigen[name], other._factors[name]
            g = ((e.rows.mT @ G) * e.rows.mT).sum(-1)
            a = ((e.cols.mT @ A) * e.cols.mT).sum(-1)
            terms.append((other._scale[name] * torch.outer(g, a) + other._delta[name]) / E)
        return total(terms)

    def natural(self) -> Natural[Params]:
        """Return (S m, {name/scale, name/delta}), coordinates for these factors."""
        nat2 = {f"{name}/scale": t for name, t in self._scale.items()}
        nat2 |= {f"{name}/delta": t for name, t in self._delta.items()}
        return Natural(self.precision_times(self._mean), tree_map(lambda t: -0.5 * t, nat2))

    def expectation(self) -> Expectation[Any]:
        """Refuse: the inverse map has no closed form."""
        raise Unsupported(
            "KroneckerGaussian has no expectation parameters here: E[theta^T (G (x) A) theta] and "
            "E[|theta|^2] have no closed inverse. Use FullGaussian.from_gaussian(q)"
        )

    @classmethod
    def from_natural(
        cls,
        natural: Natural[Params],
        *,
        buffers: Mapping[str, Tensor] | None = None,
        factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Self:
        """Return the member with these factors, scale, delta and S m = nat1.

        Raises:
            ImproperDistribution: A block is not positive definite.
            Unsupported: `factors` is not given.
        """
        if factors is None:
            raise Unsupported(
                "natural parameters of a KroneckerGaussian belong to its factors; pass `factors=`"
            )
        scale = {name: -2.0 * natural.nat2[f"{name}/scale"] for name in natural.nat1}
        delta = {name: -2.0 * natural.nat2[f"{name}/delta"] for name in natural.nat1}
        at_zero = tree_map(torch.zeros_like, natural.nat1)
        shell = cls(at_zero, factors, delta, scale, buffers=buffers)
        shell._mean = shell._spectral(
            natural.nat1, tree_map(torch.reciprocal, shell._eigenvalues())
        )
        return shell

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Any], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Refuse, as `expectation` does."""
        raise Unsupported("KroneckerGaussian has no closed map from expectation parameters")

    def _rebuild(self, natural: Natural[Any], buffers: Mapping[str, Tensor]) -> Self:
        return self.from_natural(natural, buffers=buffers, factors=self._factors)

    def embed(self, other: ExponentialFamily) -> Self | None:
        """Return `other` in these factors: isotropic, or Kronecker with equal factors."""
        if isinstance(other, IsotropicGaussian):
            mean = {name: other._mean[name] for name in self._mean}
            s = other.precision
            return type(self)(
                mean, self._factors, dict.fromkeys(mean, s), 0.0, buffers=other._buffers
            )
        if isinstance(other, KroneckerGaussian) and _equal(self._factors, other._factors):
            return type(self)(
                {name: other._mean[name] for name in self._mean},
                self._factors,
                other._delta,
                other._scale,
                buffers=other._buffers,
            )
        return None

    def __mul__(self, other: Posterior) -> ExponentialFamily:
        """Return the product; exact for the same factors or an isotropic `other`, else refused."""
        self._explain(other, "*")
        return super().__mul__(other)

    def __truediv__(self, other: Posterior) -> ExponentialFamily:
        """Return the ratio; exact for the same factors or an isotropic `other`, else refused."""
        self._explain(other, "/")
        return super().__truediv__(other)

    def _explain(self, other: Posterior, sign: str) -> None:
        if isinstance(other, KroneckerGaussian):
            check_same_schema(self._mean, other._mean)
            if not _equal(self._factors, other._factors):
                raise Unsupported(
                    f"KroneckerGaussian {sign} KroneckerGaussian is exact only for equal factors: "
                    "a sum of two Kronecker products is not one. Convert both with "
                    "FullGaussian.from_gaussian if P x P fits in memory"
                )

    def _groups(self) -> dict[str, Params]:
        return {
            "mean": self._mean,
            "row_factor": {name: G for name, (G, _) in self._factors.items()},
            "col_factor": {name: A for name, (_, A) in self._factors.items()},
            "delta": self._delta,
            "scale": self._scale,
            "buffers": self._buffers,
        }

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        rows, cols = groups["row_factor"], groups["col_factor"]
        factors = {name: (rows[name], cols[name]) for name in rows}
        mean, delta, scale = groups["mean"], groups["delta"], groups["scale"]
        return cls(mean, factors, delta, scale, buffers=groups["buffers"])


def _own_factors(mean: Params, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Factors:
    result: Factors = {}
    for name, m in mean.items():
        if name not in factors:
            raise Unsupported(f"KroneckerGaussian has no factors for {name!r}")
        r, c = _matrix(m).shape
        G, A = (f.detach().to(dtype=m.dtype, device=m.device) for f in factors[name])
        if tuple(G.shape) != (r, r) or tuple(A.shape) != (c, c):
            raise Unsupported(
                f"{name!r} of shape {tuple(m.shape)} needs factors ({r}, {r}) and ({c}, {c}), not "
                f"{tuple(G.shape)} and {tuple(A.shape)}"
            )
        result[name] = (0.5 * (G + G.mT), 0.5 * (A + A.mT))
    extra = next((name for name in factors if name not in mean), None)
    if extra is not None:
        raise Unsupported(f"KroneckerGaussian has factors but no mean for {extra!r}")
    return result


def _per_block(mean: Params, value: float | Mapping[str, Tensor | float]) -> Params:
    per_name = value if isinstance(value, Mapping) else dict.fromkeys(mean, value)
    return {
        name: torch.as_tensor(per_name[name], dtype=m.dtype, device=m.device).detach().clone()
        for name, m in mean.items()
    }


def _decompose(G: Tensor, A: Tensor) -> _Eigen:
    """Eigendecompose both factors; eigenvalues that are negative by rounding become zero."""
    g, U = torch.linalg.eigh(G)
    a, V = torch.linalg.eigh(A)
    return _Eigen(U, V, _clip(g), _clip(a))


def _clip(values: Tensor) -> Tensor:
    floor = -1e3 * torch.finfo(values.dtype).eps * values.abs().max()
    if bool((values < floor).any()):
        raise ImproperDistribution(
            "a Kronecker factor must be positive semi-definite, but its smallest eigenvalue is "
            f"{values.min().item():.6g}"
        )
    return values.clamp_min(0)


def _block_diag(blocks: list[Tensor]) -> Tensor:
    sizes = [len(block) for block in blocks]
    dense = blocks[0].new_zeros(sum(sizes), sum(sizes))
    start = 0
    for block, size in zip(blocks, sizes, strict=True):
        dense[start : start + size, start : start + size] = block
        start += size
    return dense


def _equal(left: Factors, right: Factors) -> bool:
    return set(left) == set(right) and all(
        torch.equal(G, right[name][0]) and torch.equal(A, right[name][1])
        for name, (G, A) in left.items()
    )
