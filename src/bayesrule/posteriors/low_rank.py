"""Gaussian with covariance diagonal + low rank: SWAG (Maddox et al. 2019, arXiv:1902.02476).

    Sigma = diag(var) + sum_r d_r d_r^T,     theta = mean + sqrt(var) z1 + sum_r d_r z2_r

SWAG, from iterates theta_1..theta_n with running means mean_i (section 3 of the paper)::

    mean = 1/n sum theta_i,   diag = max(1/n sum theta_i^2 - mean^2, 1e-30)
    d_r  = (theta_i - mean_i) / sqrt(2 (R - 1)) for the last R iterates,   var = diag / 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.gaussian import GaussianPosterior
from bayesrule.posteriors.params import (
    Params,
    check_same_schema,
    flatten,
    own,
    standard_normal,
    total,
    unflatten,
)

__all__ = ["LowRankGaussian", "SwagMoments"]


class LowRankGaussian(GaussianPosterior):
    """N(mean, diag(var) + sum_r d_r d_r^T).

    Not closed under products (precisions of this form do not add), so it has no algebra. Density
    and entropy go through the Woodbury identity and need var > 0; drawing needs var >= 0 only.

    Args:
        mean: m, by parameter name.
        var: Diagonal part, >= 0, by parameter name.
        deviations: d_1..d_R, tensors of shape (R, *shape), by parameter name.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: A variance is negative or not finite.
    """

    family: ClassVar[str] = "low_rank_gaussian"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        var: Mapping[str, Tensor],
        deviations: Mapping[str, Tensor],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(mean, buffers)
        check_same_schema(mean, var, "mean and var")
        check_same_schema(mean, deviations, "mean and deviations", leading=1)
        for name, v in var.items():
            if not bool((torch.isfinite(v) & (v >= 0)).all()):
                raise ImproperDistribution(
                    f"not a proper Gaussian: the variance of {name!r} must be finite and "
                    f"non-negative (smallest: {v.min().item():.6g})"
                )
        self._var = own({name: var[name].to(m.dtype) for name, m in self._mean.items()})
        self._dev = own({name: deviations[name].to(m.dtype) for name, m in self._mean.items()})

    @property
    def rank(self) -> int:
        """R, the number of deviations."""
        return next(iter(self._dev.values())).shape[0]

    @property
    def var(self) -> Params:
        """The diagonal part of the covariance, by parameter name."""
        return dict(self._var)

    @property
    def deviations(self) -> Params:
        """The deviations d_r, (R, *shape), by parameter name."""
        return dict(self._dev)

    def variance(self) -> Params:
        """Return diag(Sigma) = var + sum_r d_r^2, by parameter name."""
        return {name: v + self._dev[name].square().sum(0) for name, v in self._var.items()}

    def _woodbury(self) -> tuple[Tensor, Tensor]:
        """Return V = d / sqrt(var), (R, P), and the Cholesky factor of I + V V^T."""
        zero = next((name for name, v in self._var.items() if bool((v <= 0).any())), None)
        if zero is not None:
            raise ImproperDistribution(
                f"this LowRankGaussian has no density: the diagonal variance of {zero!r} is zero, "
                "so the covariance is singular"
            )
        V = flatten(self._dev, leading=1) / flatten(self._var).sqrt()
        eye = torch.eye(V.shape[0], dtype=V.dtype, device=V.device)
        return V, torch.linalg.cholesky(eye + V @ V.mT)

    def precision_times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return Sigma^-1 v = w (v/w - V^T (I + V V^T)^-1 V v/w) / var, w = sqrt(var)."""
        V, L = self._woodbury()
        root = flatten(self._var).sqrt()
        u = flatten({name: vector[name] for name in self._mean}) / root
        inner = torch.cholesky_solve((V @ u).unsqueeze(-1), L).squeeze(-1)
        return unflatten((u - V.mT @ inner) / root, self._mean)

    def precision_diag(self) -> Params:
        """Return diag(Sigma^-1), by parameter name."""
        V, L = self._woodbury()
        half = torch.linalg.solve_triangular(L, V, upper=False)
        return unflatten((1.0 - half.square().sum(0)) / flatten(self._var), self._mean)

    def log_det_precision(self) -> Tensor:
        """Return -sum log var - logdet(I + V V^T)."""
        _, L = self._woodbury()
        diagonal = total(v.log() for v in self._var.values())
        return -(diagonal + 2.0 * L.diagonal().log().sum())

    def covariance_matrix(self) -> Tensor:
        """Return Sigma, (P, P), dense."""
        d = flatten(self._dev, leading=1)
        return torch.diag(flatten(self._var)) + d.mT @ d

    def precision_matrix(self) -> Tensor:
        """Return Sigma^-1, (P, P), dense."""
        V, L = self._woodbury()
        root = flatten(self._var).sqrt()
        eye = torch.eye(V.shape[1], dtype=V.dtype, device=V.device)
        return (eye - V.mT @ torch.cholesky_solve(V, L)) / torch.outer(root, root)

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw theta = mean + sqrt(var) z1 + sum_r d_r z2_r; one z2 for all parameters."""
        lead = () if n is None else (n,)
        first = next(iter(self._mean.values()))
        z2 = standard_normal((*lead, self.rank), first, generator)
        result = {}
        for name, m in self._mean.items():
            z1 = standard_normal((*lead, *m.shape), m, generator)
            low = torch.tensordot(z2.to(m.dtype), self._dev[name], dims=1)
            result[name] = m + self._var[name].sqrt() * z1 + low
        return result

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return cov_BCC = J diag(var) J^T + (J d)(J d)^T."""
        check_same_schema(self._mean, jac, "the posterior and the Jacobian", leading=2)
        jac_BCP = flatten({name: jac[name] for name in self._mean}, leading=2)
        half_BCP = jac_BCP * flatten(self._var).sqrt()
        low_BCR = jac_BCP @ flatten(self._dev, leading=1).mT
        return half_BCP @ half_BCP.mT + low_BCR @ low_BCR.mT

    def _groups(self) -> dict[str, Params]:
        return {
            "mean": self._mean,
            "var": self._var,
            "deviations": self._dev,
            "buffers": self._buffers,
        }

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["mean"], groups["var"], groups["deviations"], buffers=groups["buffers"])


class SwagMoments:
    """Running moments of SGD iterates; `posterior()` gives SWAG.

    Args:
        rank: R, the number of last deviations to keep; at least 2 for a low-rank part.
    """

    def __init__(self, rank: int = 20) -> None:
        if rank < 2:
            raise Unsupported(f"SWAG divides by R - 1, so the rank must be at least 2, not {rank}")
        self.rank, self.n = rank, 0
        self.mean: Params = {}
        self.sq_mean: Params = {}
        self.deviations: list[Params] = []

    def collect(self, params: Mapping[str, Tensor]) -> None:
        """Take one iterate into the running moments."""
        theta = own(params)
        if self.n == 0:
            self.mean, self.sq_mean = own(theta), {n: t.square() for n, t in theta.items()}
        else:
            check_same_schema(self.mean, theta, "the moments and the iterate")
            for name, t in theta.items():
                self.mean[name] += (t - self.mean[name]) / (self.n + 1)
                self.sq_mean[name] += (t.square() - self.sq_mean[name]) / (self.n + 1)
        self.n += 1
        self.deviations.append({name: t - self.mean[name] for name, t in theta.items()})
        del self.deviations[: -self.rank]

    def posterior(self, buffers: Mapping[str, Tensor] | None = None) -> LowRankGaussian:
        """Return the SWAG posterior of the iterates so far.

        Raises:
            Unsupported: Fewer than two iterates were collected.
        """
        R = len(self.deviations)
        if R < 2:
            raise Unsupported(f"SWAG needs at least two iterates, not {R}")
        var = {
            name: 0.5 * (self.sq_mean[name] - m.square()).clamp_min(1e-30)
            for name, m in self.mean.items()
        }
        scaled = {
            name: torch.stack([d[name] for d in self.deviations]) / math.sqrt(2.0 * (R - 1))
            for name in self.mean
        }
        return LowRankGaussian(self.mean, var, scaled, buffers=buffers)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain tensors and numbers."""
        return {
            "rank": self.rank,
            "n": self.n,
            "mean": own(self.mean),
            "sq_mean": own(self.sq_mean),
            "deviations": [own(d) for d in self.deviations],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.rank, self.n = int(state["rank"]), int(state["n"])
        self.mean, self.sq_mean = own(state["mean"]), own(state["sq_mean"])
        self.deviations = [own(d) for d in state["deviations"]]
