"""Gaussian posteriors N(mean, precision^-1): the shared maths, and the two without correlations.

With S the precision matrix, d = theta - m and P parameters::

    log q(theta) = -1/2 ( d^T S d + P log 2 pi - logdet S )
    H(q)         =  1/2 ( P (1 + log 2 pi) - logdet S )
    KL(q || p)   =  1/2 ( tr(S_p Sigma_q) + (m_p - m_q)^T S_p (m_p - m_q) - P
                          + logdet S_q - logdet S_p )
    nat1 = S m,   nat2 = -S/2,   mean1 = m,   mean2 = Sigma + m m^T

No data count or temperature enters here: `precision` is the precision, `ess (h + prior_prec)` in
the notation of the optimisers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.base import ExponentialFamily, Posterior
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import (
    Params,
    check_same_schema,
    flatten,
    own,
    project_variance,
    standard_normal,
    total,
    tree_map,
)

__all__ = ["DiagonalGaussian", "GaussianPosterior", "IsotropicGaussian", "NaturalGaussian"]

LOG_2PI = math.log(2.0 * math.pi)


class GaussianPosterior(Posterior):
    """Common maths of all Gaussian families; each says how its precision acts.

    Attributes:
        is_diagonal: The precision matrix has no off-diagonal entries.
    """

    is_diagonal: ClassVar[bool] = False

    @property
    def mode(self) -> Params:
        """The mode, which is the mean."""
        return self.mean

    @abstractmethod
    def precision_diag(self) -> Params:
        """Return diag(S), by parameter name."""

    @abstractmethod
    def variance(self) -> Params:
        """Return diag(Sigma), the marginal variances, by parameter name."""

    @abstractmethod
    def precision_times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return S v for v keyed by parameter name."""

    @abstractmethod
    def log_det_precision(self) -> Tensor:
        """Return logdet S as a 0-d tensor."""

    @abstractmethod
    def precision_matrix(self) -> Tensor:
        """Return S as a dense (P, P) matrix, flattened in key order."""

    @abstractmethod
    def covariance_matrix(self) -> Tensor:
        """Return Sigma as a dense (P, P) matrix, flattened in key order."""

    def log_prob(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return log N(theta | mean, S^-1) summed over all entries."""
        self._check_theta(theta)
        d = {name: theta[name] - m for name, m in self._mean.items()}
        quadratic = self._inner(d, self.precision_times(d))
        return -0.5 * (quadratic + self.num_params * LOG_2PI - self.log_det_precision())

    def entropy(self) -> Tensor:
        """Return 1/2 (P (1 + log 2 pi) - logdet S), in nats."""
        return 0.5 * (self.num_params * (1.0 + LOG_2PI) - self.log_det_precision())

    def kl(self, other: Posterior) -> Tensor:
        """Return KL(self || other) for any Gaussian `other` over the same parameters.

        Raises:
            Unsupported: `other` is not Gaussian, or the names or shapes do not fit.
        """
        if not isinstance(other, GaussianPosterior):
            raise Unsupported(
                f"KL({type(self).__name__} || {type(other).__name__}) has no closed form; "
                "estimate it with `kl_mc` if the second has a density"
            )
        check_same_schema(self._mean, other._mean)
        d = {name: other._mean[name] - m for name, m in self._mean.items()}
        quadratic = self._inner(d, other.precision_times(d))
        trace = self._trace(other)
        return 0.5 * (
            trace
            + quadratic
            - self.num_params
            + self.log_det_precision()
            - other.log_det_precision()
        )

    def _trace(self, other: GaussianPosterior) -> Tensor:
        """Return tr(S_other Sigma_self)."""
        if self.is_diagonal or other.is_diagonal:
            return self._inner(other.precision_diag(), self.variance())
        S, Sigma = other.precision_matrix(), self.covariance_matrix()
        if other.names != self.names:
            order = flat_order(other._mean, self._mean)
            S = S[order][:, order]
        return (S * Sigma).sum()

    @staticmethod
    def _inner(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
        return total(tensor * right[name] for name, tensor in left.items())


def flat_order(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Return the index that reorders a vector flattened as `source` to the order of `target`."""
    start, offsets = 0, {}
    for name, tensor in source.items():
        offsets[name] = start
        start += tensor.numel()
    device = next(iter(source.values())).device
    return torch.cat(
        [torch.arange(t.numel(), device=device) + offsets[name] for name, t in target.items()]
    )


def require_positive(precision: Mapping[str, Tensor], what: str = "precision") -> None:
    """Require every entry to be finite and positive.

    Raises:
        ImproperDistribution: Naming the first parameter that is not, and its smallest entry.
    """
    for name, tensor in precision.items():
        if not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
            finite = tensor[torch.isfinite(tensor)]
            n_bad = tensor.numel() - int((finite > 0).sum())
            smallest = f"{finite.min().item():.6g}" if finite.numel() else "not finite"
            raise ImproperDistribution(
                f"not a proper Gaussian: the {what} of {name!r} must be finite and positive, but "
                f"{n_bad} of {tensor.numel()} entries are not (smallest: {smallest}). If this is "
                "a site or a ratio, keep it as `q.natural()` until the product is proper"
            )


class NaturalGaussian(GaussianPosterior, ExponentialFamily):
    """A Gaussian family with natural parameters, hence with `*`, `/` and `**`."""


class _UncorrelatedGaussian(NaturalGaussian):
    """Gaussian whose precision acts entry by entry."""

    is_diagonal = True

    def variance(self) -> Params:
        """Return 1 / precision, by parameter name."""
        return {name: 1.0 / s for name, s in self.precision_diag().items()}

    def precision_times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return s * v, entry by entry."""
        return {name: s * vector[name] for name, s in self.precision_diag().items()}

    def precision_matrix(self) -> Tensor:
        """Return the dense diagonal matrix S of shape (P, P)."""
        return torch.diag(flatten(self.precision_diag()))

    def covariance_matrix(self) -> Tensor:
        """Return the dense diagonal matrix Sigma of shape (P, P)."""
        return torch.diag(flatten(self.variance()))

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw theta = mean + eps / sqrt(precision), eps ~ N(0, I)."""
        lead = () if n is None else (n,)
        s = self.precision_diag()
        return {
            name: m + standard_normal((*lead, *m.shape), m, generator) * s[name].rsqrt()
            for name, m in self._mean.items()
        }

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return cov_BCC = sum_p J_bcp J_bdp / s_p."""
        check_same_schema(self._mean, jac, "the posterior and the Jacobian", leading=2)
        return project_variance(jac, self.variance())


class DiagonalGaussian(_UncorrelatedGaussian):
    """N(mean, diag(precision)^-1), the family of IVON, VOGN, Adam-like rules and diagonal Laplace.

    nat1 = s m, nat2 = -s/2, mean1 = m, mean2 = m^2 + 1/s, all entry by entry.

    Args:
        mean: m, by parameter name.
        precision: s > 0, tensors of the same names and shapes (or broadcastable to them).
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: A precision is not finite and positive.
    """

    family: ClassVar[str] = "diagonal_gaussian"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        precision: Mapping[str, Tensor],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(mean, buffers)
        check_same_schema(mean, precision, "mean and precision")
        precision = {name: precision[name].to(m.dtype) for name, m in self._mean.items()}
        require_positive(precision)
        self._precision = own(precision)

    @property
    def precision(self) -> Params:
        """The precision s by parameter name."""
        return dict(self._precision)

    @property
    def var(self) -> Params:
        """The variance 1/s by parameter name."""
        return self.variance()

    def precision_diag(self) -> Params:
        """Return s, by parameter name."""
        return dict(self._precision)

    def log_det_precision(self) -> Tensor:
        """Return sum log s."""
        return total(s.log() for s in self._precision.values())

    def natural(self) -> Natural[Params]:
        """Return (s m, -s/2)."""
        return Natural(
            tree_map(torch.mul, self._precision, self._mean),
            tree_map(lambda s: -0.5 * s, self._precision),
        )

    def expectation(self) -> Expectation[Params]:
        """Return (m, m^2 + 1/s)."""
        return Expectation(
            dict(self._mean),
            tree_map(lambda m, s: m.square() + 1.0 / s, self._mean, self._precision),
        )

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with s = -2 nat2 and m = nat1 / s."""
        precision = tree_map(lambda t: -2.0 * t, natural.nat2)
        require_positive(precision)
        return cls(tree_map(torch.div, natural.nat1, precision), precision, buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with m = mean1 and 1/s = mean2 - mean1^2."""
        var = tree_map(lambda a, b: b - a.square(), expectation.mean1, expectation.mean2)
        require_positive(var, "variance mean2 - mean1^2")
        return cls(expectation.mean1, tree_map(torch.reciprocal, var), buffers=buffers)

    def embed(self, other: ExponentialFamily) -> DiagonalGaussian | None:
        """Return a diagonal or isotropic `other` as a diagonal Gaussian."""
        if isinstance(other, _UncorrelatedGaussian):
            precision = {n: other.precision_diag()[n] for n in self._mean}
            mean = {n: other._mean[n] for n in self._mean}
            return DiagonalGaussian(mean, precision, buffers=other._buffers)
        return None

    def _groups(self) -> dict[str, Params]:
        return {"mean": self._mean, "precision": self._precision, "buffers": self._buffers}

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["mean"], groups["precision"], buffers=groups["buffers"])


class IsotropicGaussian(_UncorrelatedGaussian):
    """N(mean, I/precision) with one number s for all P entries.

    The statistics are (theta, ||theta||^2): nat1 = s m, nat2 = -s/2 (0-d), mean1 = m,
    mean2 = ||m||^2 + P/s (0-d), hence s = P / (mean2 - ||mean1||^2).

    Args:
        mean: m, by parameter name.
        precision: s > 0, a number or 0-d tensor.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: The precision is not finite and positive.
    """

    family: ClassVar[str] = "isotropic_gaussian"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        precision: float | Tensor,
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(mean, buffers)
        first = next(iter(self._mean.values()))
        s = torch.as_tensor(precision, dtype=first.dtype, device=first.device).detach().clone()
        if s.ndim:
            raise Unsupported(
                f"IsotropicGaussian has one precision for all parameters, not {tuple(s.shape)}; "
                "use DiagonalGaussian for one per entry"
            )
        require_positive({"all parameters": s})
        self._precision = s

    @property
    def precision(self) -> Tensor:
        """The common precision s, a 0-d tensor."""
        return self._precision

    @property
    def var(self) -> Tensor:
        """The common variance 1/s, a 0-d tensor."""
        return 1.0 / self._precision

    def precision_diag(self) -> Params:
        """Return s for every entry (expanded views), by parameter name."""
        return {
            name: self._precision.to(m.dtype).to(m.device).expand(m.shape)
            for name, m in self._mean.items()
        }

    def log_det_precision(self) -> Tensor:
        """Return P log s."""
        return self.num_params * self._precision.log()

    def natural(self) -> Natural[Tensor]:
        """Return (s m, -s/2)."""
        return Natural(
            tree_map(lambda m: self._precision.to(m.dtype) * m, self._mean),
            -0.5 * self._precision,
        )

    def expectation(self) -> Expectation[Tensor]:
        """Return (m, ||m||^2 + P/s)."""
        mean2 = self._inner(self._mean, self._mean) + self.num_params / self._precision
        return Expectation(dict(self._mean), mean2)

    @classmethod
    def from_natural(
        cls, natural: Natural[Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with s = -2 nat2 and m = nat1 / s."""
        s = -2.0 * natural.nat2
        require_positive({"all parameters": s})
        return cls(tree_map(lambda t: t / s.to(t.dtype), natural.nat1), s, buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Tensor], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with m = mean1 and s = P / (mean2 - ||mean1||^2)."""
        mean = expectation.mean1
        P = sum(m.numel() for m in mean.values())
        spread = expectation.mean2 - cls._inner(mean, mean)
        require_positive({"all parameters": spread}, "variance mean2 - ||mean1||^2")
        return cls(mean, P / spread, buffers=buffers)

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
