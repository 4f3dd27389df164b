"""Linear algebra of symmetric block-tridiagonal matrices, linear in the number of blocks.

S has diagonal blocks D_t (T, d, d) and blocks B_t = S[t+1, t] below them (T-1, d, d). Its Cholesky
factor L is block-bidiagonal, and every operation is one pass over the blocks::

    L_t L_t^T = D_t - C_{t-1} C_{t-1}^T,      C_t = L[t+1, t] = B_t L_t^-T
    S^-1:  P_t = L_t^-T (I + C_t^T P_{t+1} C_t) L_t^-1,    S^-1[t+1, t] = -P_{t+1} C_t L_t^-1

In state-space models the pass up is the information filter and the pass down the
Rauch-Tung-Striebel smoother.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from bayesrule.errors import ImproperDistribution

__all__ = ["BlockCholesky", "block_cholesky", "block_times", "dense_blocks"]


@dataclass(frozen=True)
class BlockCholesky:
    """The factor L: `diagonal` L_t (T, d, d), lower triangular, and `lower` C_t (T-1, d, d)."""

    diagonal: Tensor
    lower: Tensor

    def log_det(self) -> Tensor:
        """Return log det S."""
        return 2.0 * self.diagonal.diagonal(dim1=-2, dim2=-1).log().sum()

    def solve_up(self, b: Tensor) -> Tensor:
        """Return L^-1 b for b of shape (..., T, d)."""
        ys: list[Tensor] = []
        for t in range(len(self.diagonal)):
            right = b[..., t, :]
            if t:
                right = right - _apply(self.lower[t - 1], ys[-1])
            ys.append(_solve(self.diagonal[t], right, upper=False))
        return torch.stack(ys, -2)

    def solve_down(self, y: Tensor) -> Tensor:
        """Return L^-T y for y of shape (..., T, d)."""
        xs: list[Tensor] = []
        for t in reversed(range(len(self.diagonal))):
            right = y[..., t, :]
            if xs:
                right = right - _apply(self.lower[t].mT, xs[-1])
            xs.append(_solve(self.diagonal[t].mT, right, upper=True))
        return torch.stack(xs[::-1], -2)

    def solve(self, b: Tensor) -> Tensor:
        """Return S^-1 b for b of shape (..., T, d)."""
        return self.solve_down(self.solve_up(b))

    def inverse_blocks(self) -> tuple[Tensor, Tensor]:
        """Return the blocks of S^-1 where S has blocks: (T, d, d) and (T-1, d, d) below."""
        eye = torch.eye(
            self.diagonal.shape[-1], dtype=self.diagonal.dtype, device=self.diagonal.device
        )
        P: list[Tensor] = []
        below: list[Tensor] = []
        for t in reversed(range(len(self.diagonal))):
            inv = solve_triangular(self.diagonal[t], eye, upper=False)
            block = inv.mT @ inv
            if P:
                G = -self.lower[t] @ inv  # x_t given x_{t+1} has the mean G^T x_{t+1}
                cross = P[-1] @ G
                below.append(cross)
                block = block + G.mT @ cross
            P.append(0.5 * (block + block.mT))
        lower = torch.stack(below[::-1]) if below else self.lower
        return torch.stack(P[::-1]), lower


def block_cholesky(diagonal: Tensor, lower: Tensor, what: str) -> BlockCholesky:
    """Return the factor of S.

    Args:
        diagonal: D_t, (T, d, d).
        lower: B_t = S[t+1, t], (T-1, d, d).
        what: The matrix in words, for the message.

    Raises:
        ImproperDistribution: S is not positive definite; names the first block that fails.
    """
    factors: list[Tensor] = []
    below: list[Tensor] = []
    for t in range(len(diagonal)):
        block = diagonal[t]
        if t:
            block = block - below[-1] @ below[-1].mT
        factor, info = torch.linalg.cholesky_ex(block)
        if int(info) or not bool(torch.isfinite(factor).all()):
            raise ImproperDistribution(
                f"not a proper Gaussian: the {what} must be positive definite, but is not from "
                f"block {t} of {len(diagonal)} on. If this is a site or a ratio, keep it as "
                "`q.natural()` until the product is proper"
            )
        factors.append(factor)
        if t + 1 < len(diagonal):
            below.append(solve_triangular(factor, lower[t].mT, upper=False).mT)
    return BlockCholesky(torch.stack(factors), torch.stack(below) if below else lower)


def block_times(diagonal: Tensor, lower: Tensor, x: Tensor) -> Tensor:
    """Return S x for x of shape (..., T, d)."""
    out = _apply(diagonal, x)
    if len(lower):
        out = out.clone()
        out[..., 1:, :] += _apply(lower, x[..., :-1, :])
        out[..., :-1, :] += _apply(lower.mT, x[..., 1:, :])
    return out


def dense_blocks(diagonal: Tensor, lower: Tensor) -> Tensor:
    """Return S written out, (T d, T d)."""
    T, d, _ = diagonal.shape
    S = diagonal.new_zeros(T, d, T, d)
    for t in range(T):
        S[t, :, t, :] = diagonal[t]
        if t + 1 < T:
            S[t + 1, :, t, :] = lower[t]
            S[t, :, t + 1, :] = lower[t].mT
    return S.reshape(T * d, T * d)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _solve(triangle: Tensor, vector: Tensor, *, upper: bool) -> Tensor:
    flat = vector.reshape(-1, vector.shape[-1]).mT
    return solve_triangular(triangle, flat, upper=upper).mT.reshape(vector.shape)
