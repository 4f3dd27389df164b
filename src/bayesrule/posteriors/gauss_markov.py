"""Gauss-Markov chains: Gaussians with block-tridiagonal precision, in linear time.

    p(x_0, ..., x_{T-1}) = N(x_0 | m_0, P_0) prod_t N(x_{t+1} | A x_t + b, Q)
    S_tt   = P_0^-1 (t = 0) or Q^-1 (t > 0), plus A^T Q^-1 A (t < T - 1)
    S_t+1,t = -Q^-1 A

    nat1 = S m,   nat2 = (-S_tt/2, -S_t+1,t)
    mean1 = m,    mean2 = (E x_t x_t^T, E x_{t+1} x_t^T)

An observation y_t = H x_t + N(0, R) adds (H^T R^-1 y_t, -H^T R^-1 H / 2) at t, so that the
posterior of a linear-Gaussian state-space model is one sum of natural parameters (Kalman filter
and Rauch-Tung-Striebel smoother in information form).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesrule.errors import ImproperDistribution, Unsupported
from bayesrule.posteriors.base import ExponentialFamily
from bayesrule.posteriors.block_tridiagonal import (
    BlockCholesky,
    block_cholesky,
    block_times,
    dense_blocks,
)
from bayesrule.posteriors.gaussian import GaussianPosterior, NaturalGaussian
from bayesrule.posteriors.natural import Expectation, Natural
from bayesrule.posteriors.params import Params, check_same_schema, standard_normal, total

__all__ = ["GaussMarkov"]


class GaussMarkov(NaturalGaussian):
    """N(mean, S^-1) with S block-tridiagonal along the first axis of each parameter.

    A parameter of shape (T, ...) is a chain of T states of d = prod(...) numbers (d = 1 for (T,));
    several parameters are independent chains.

    Args:
        mean: m, (T, ...) by parameter name.
        diagonal: S_tt, (T, d, d) by parameter name.
        lower: S_t+1,t, (T-1, d, d) by parameter name.
        buffers: Non-random companions.

    Raises:
        ImproperDistribution: S is not positive definite.
        Unsupported: The shapes do not fit.
    """

    family: ClassVar[str] = "gauss_markov"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        diagonal: Mapping[str, Tensor],
        lower: Mapping[str, Tensor],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(mean, buffers)
        self._diagonal: Params = {}
        self._lower: Params = {}
        for name, m in self._mean.items():
            T, d = _chain_shape(name, m)
            D, B = (group[name].detach().to(m.dtype) for group in (diagonal, lower))
            for block, count in ((D, T), (B, T - 1)):
                if tuple(block.shape) != (count, d, d):
                    raise Unsupported(
                        f"GaussMarkov over {name!r} of shape {tuple(m.shape)} needs diagonal "
                        f"blocks ({T}, {d}, {d}) and lower ones ({T - 1}, {d}, {d}), not "
                        f"{tuple(block.shape)}"
                    )
            if not torch.allclose(D, D.mT, rtol=1e-4, atol=1e-4 * float(D.abs().max())):
                raise ImproperDistribution(
                    f"not a proper Gaussian: the precision of {name!r} is not symmetric"
                )
            self._diagonal[name] = 0.5 * (D + D.mT)
            self._lower[name] = B.clone()
        self._chol: dict[str, BlockCholesky] = {
            name: block_cholesky(D, self._lower[name], f"precision of {name!r}")
            for name, D in self._diagonal.items()
        }

    @classmethod
    def from_transitions(
        cls,
        name: str,
        n_steps: int,
        initial: tuple[Tensor, Tensor],
        A: Tensor,
        Q: Tensor,
        b: Tensor | None = None,
    ) -> Self:
        """Return the chain x_0 ~ N(m_0, P_0), x_{t+1} = A x_t + b + N(0, Q).

        Args:
            name: The parameter's name; its shape is (n_steps, d).
            n_steps: T, the number of states.
            initial: (m_0, P_0), of shapes (d,) and (d, d).
            A: Transition matrix (d, d).
            Q: Covariance of the transition noise (d, d), positive definite.
            b: Offset (d,), or None.
        """
        m_0, P_0 = initial
        Q_inv = torch.linalg.inv(Q)
        means = [m_0]
        for _ in range(n_steps - 1):
            means.append(A @ means[-1] + (0.0 if b is None else b))
        diagonal = torch.stack([torch.linalg.inv(P_0), *[Q_inv] * (n_steps - 1)])
        diagonal[:-1] += A.mT @ Q_inv @ A
        lower = (-Q_inv @ A).expand(n_steps - 1, *A.shape)
        return cls({name: torch.stack(means)}, {name: diagonal}, {name: lower})

    @property
    def diagonal(self) -> Params:
        """S_tt, (T, d, d) by parameter name."""
        return dict(self._diagonal)

    @property
    def lower(self) -> Params:
        """S_t+1,t, (T-1, d, d) by parameter name."""
        return dict(self._lower)

    @cached_property
    def _covariances(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: chol.inverse_blocks() for name, chol in self._chol.items()}

    def marginals(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the means (T, d) and covariances (T, d, d) of the single states, by name."""
        return {name: (_states(m), self._covariances[name][0]) for name, m in self._mean.items()}

    def precision_diag(self) -> Params:
        """Return diag(S), by parameter name."""
        return {name: self._entries(name, D) for name, D in self._diagonal.items()}

    def variance(self) -> Params:
        """Return diag(S^-1), by parameter name."""
        return {name: self._entries(name, P) for name, (P, _) in self._covariances.items()}

    def _entries(self, name: str, blocks: Tensor) -> Tensor:
        return blocks.diagonal(dim1=-2, dim2=-1).reshape(self._mean[name].shape)

    def precision_times(self, vector: Mapping[str, Tensor]) -> Params:
        """Return S v, by parameter name, in O(T)."""
        return {
            name: block_times(D, self._lower[name], _states(vector[name])).reshape(
                vector[name].shape
            )
            for name, D in self._diagonal.items()
        }

    def log_det_precision(self) -> Tensor:
        """Return logdet S."""
        return total(chol.log_det() for chol in self._chol.values())

    def precision_matrix(self) -> Tensor:
        """Return S written out, (P, P)."""
        return _block_diagonal([dense_blocks(D, self._lower[k]) for k, D in self._diagonal.items()])

    def covariance_matrix(self) -> Tensor:
        """Return S^-1 written out, (P, P): it is dense within a chain."""
        parts = []
        for name, chol in self._chol.items():
            T, d, _ = self._diagonal[name].shape
            eye = torch.eye(T * d, dtype=chol.diagonal.dtype, device=chol.diagonal.device)
            block = chol.solve(eye.reshape(T * d, T, d)).reshape(T * d, T * d)
            parts.append(0.5 * (block + block.mT))
        return _block_diagonal(parts)

    def _trace(self, other: GaussianPosterior) -> Tensor:
        """Return tr(S_other Sigma_self), from the blocks that S_other has."""
        if not isinstance(other, GaussMarkov):
            return super()._trace(other)
        parts = []
        for name, (P, C) in self._covariances.items():
            parts += [other._diagonal[name] * P, 2.0 * other._lower[name] * C]
        return total(parts)

    def sample(self, generator: torch.Generator | None = None, n: int | None = None) -> Params:
        """Draw x = m + L^-T eps, eps ~ N(0, I), by one pass down the chain."""
        lead = () if n is None else (n,)
        draws = {}
        for name, m in self._mean.items():
            eps = standard_normal((*lead, *_states(m).shape), m, generator)
            draws[name] = m + self._chol[name].solve_down(eps).reshape(*lead, *m.shape)
        return draws

    def functional_variance(self, jac: Mapping[str, Tensor]) -> Tensor:
        """Return cov_BCC = J S^-1 J^T, through one pass up the chain."""
        check_same_schema(self._mean, jac, "the posterior and the Jacobian", leading=2)
        cov: Tensor | None = None
        for name, m in self._mean.items():
            J = jac[name]
            half = self._chol[name].solve_up(J.reshape(*J.shape[:2], *_states(m).shape))
            half = half.flatten(start_dim=2)
            term = half @ half.mT
            cov = term if cov is None else cov + term
        assert cov is not None
        return cov

    def natural(self) -> Natural[Params]:
        """Return (S m, (-S_tt/2, -S_t+1,t)); the second part's keys are `<name>/diagonal|lower`."""
        nat2: Params = {}
        for name, D in self._diagonal.items():
            nat2[f"{name}/diagonal"] = -0.5 * D
            nat2[f"{name}/lower"] = -self._lower[name]
        return Natural(self.precision_times(self._mean), nat2)

    def expectation(self) -> Expectation[Params]:
        """Return (m, (E x_t x_t^T, E x_{t+1} x_t^T)), keyed as the natural parameters."""
        mean2: Params = {}
        for name, (P, C) in self._covariances.items():
            m = _states(self._mean[name])
            mean2[f"{name}/diagonal"] = P + m.unsqueeze(-1) * m.unsqueeze(-2)
            mean2[f"{name}/lower"] = C + m[1:].unsqueeze(-1) * m[:-1].unsqueeze(-2)
        return Expectation(dict(self._mean), mean2)

    @classmethod
    def from_natural(
        cls, natural: Natural[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the member with S from nat2 and S m = nat1: a filter and a smoother pass."""
        mean, diagonal, lower = {}, {}, {}
        for name, h in natural.nat1.items():
            _chain_shape(name, h)
            D = -2.0 * natural.nat2[f"{name}/diagonal"]
            diagonal[name], lower[name] = 0.5 * (D + D.mT), -natural.nat2[f"{name}/lower"]
            chol = block_cholesky(diagonal[name], lower[name], f"precision of {name!r}")
            mean[name] = chol.solve(_states(h)).reshape(h.shape)
        return cls(mean, diagonal, lower, buffers=buffers)

    @classmethod
    def from_expectation(
        cls, expectation: Expectation[Params], *, buffers: Mapping[str, Tensor] | None = None
    ) -> Self:
        """Return the chain with these moments, in closed form.

        x_{t+1} given x_t is regressed: A_t = C_t P_t^-1, Q_t = P_{t+1} - A_t C_t^T.
        """
        diagonal, lower = {}, {}
        for name, mean in expectation.mean1.items():
            T, _ = _chain_shape(name, mean)
            m = _states(mean)
            P = expectation.mean2[f"{name}/diagonal"] - m.unsqueeze(-1) * m.unsqueeze(-2)
            C = expectation.mean2[f"{name}/lower"] - m[1:].unsqueeze(-1) * m[:-1].unsqueeze(-2)
            what = f"covariance of {name!r}"
            blocks, below = [_inverse(P[0], what)], []
            for t in range(T - 1):
                A = torch.linalg.solve(P[t], C[t].mT).mT
                Q_inv = _inverse(P[t + 1] - A @ C[t].mT, what)
                below.append(-Q_inv @ A)
                blocks[t] = blocks[t] - A.mT @ below[t]
                blocks.append(Q_inv)
            diagonal[name] = torch.stack(blocks)
            lower[name] = torch.stack(below) if below else C
        return cls(expectation.mean1, diagonal, lower, buffers=buffers)

    def embed(self, other: ExponentialFamily) -> GaussMarkov | None:
        """Return a chain, or a diagonal or isotropic `other` as a chain without transitions."""
        if isinstance(other, GaussMarkov):
            return other
        if not isinstance(other, GaussianPosterior) or not other.is_diagonal:
            return None
        mean = {name: other._mean[name] for name in self._mean}
        diagonal = {
            name: torch.diag_embed(_states(s)) for name, s in other.precision_diag().items()
        }
        lower = {name: torch.zeros_like(self._lower[name]) for name in self._mean}
        return GaussMarkov(mean, diagonal, lower, buffers=other._buffers)

    def _groups(self) -> dict[str, Params]:
        return {
            "mean": self._mean,
            "diagonal": self._diagonal,
            "lower": self._lower,
            "buffers": self._buffers,
        }

    @classmethod
    def _from_groups(cls, groups: Mapping[str, Params], hyper: Mapping[str, Any]) -> Self:
        del hyper
        return cls(groups["mean"], groups["diagonal"], groups["lower"], buffers=groups["buffers"])


def _chain_shape(name: str, mean: Tensor) -> tuple[int, int]:
    """Return (T, d) of a chain.

    Raises:
        Unsupported: The parameter has no axis of time.
    """
    if mean.ndim == 0 or mean.numel() == 0:
        raise Unsupported(
            f"GaussMarkov: parameter {name!r} has shape {tuple(mean.shape)}, expected (T, ...)"
        )
    return mean.shape[0], mean.numel() // mean.shape[0]


def _states(values: Tensor) -> Tensor:
    """Return (T, ...) as (T, d)."""
    return values.reshape(values.shape[0], -1)


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return whole


def _inverse(matrix: Tensor, what: str) -> Tensor:
    """Return the inverse of a positive definite matrix, or refuse."""
    factor, info = torch.linalg.cholesky_ex(0.5 * (matrix + matrix.mT))
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise ImproperDistribution(
            f"not a proper Gaussian: the {what} must be positive definite, it is not"
        )
    return torch.cholesky_inverse(factor)
