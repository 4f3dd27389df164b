"""Policy evaluation with linear features, where everything about TD, TN and FR is exact.

Features Phi (n states x p), sampling distribution D = diag(d), transitions P, rewards r, discount
gamma, step eta::

    C = Phi' D Phi      A = Phi' D (I - gamma P) Phi      b = Phi' D r      w* = A^-1 b

    TD   w <- w + eta (b - A w)
    TN   w <- w + eta (b + gamma Phi' D P Phi wbar - C w)             wbar <- w every T steps
    FR   w <- w + eta (b - A w - kappa C (w - wbar))                  wbar <- w every T steps

The error after a period, e = wbar - w*, is multiplied by

    M_TD(T) = (I - eta A)^T
    M_TN(T) = (I - eta C)^T (I - M_PVI) + M_PVI      M_PVI = gamma C^-1 Phi' D P Phi    (T -> inf)
    M_FR(T) = (I - eta H)^T (I - M) + M              H = A + kappa C,  M = kappa H^-1 C (T -> inf)

so all three have the fixed point w*, and converge exactly where the spectral radius is below one.
With lambda = eig(C^-1 A): TN(inf) multiplies a mode by 1 - lambda, FR(inf) by kappa / (kappa +
lambda), and FR's inner loop (T -> inf) is stable for a small step where Re eig(H) > 0. Radii of
different T are compared per update, radius ** (1 / T).

Source: Piche et al. (arXiv 2210.12282), sections on policy evaluation. Where C is singular, a
problem is first reduced to the row space of Phi, since C^-1 does not exist in the other directions
and no update moves them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "LinearProblem",
    "baird",
    "random_problem",
    "spectral_radius",
    "three_state",
    "two_state",
]


@dataclass(frozen=True)
class LinearProblem:
    """A policy-evaluation problem with linear features, in double precision.

    Attributes:
        features: Phi, shape (n, p).
        weights: d, the sampling distribution, shape (n,).
        transitions: P, shape (n, n); rows sum to one (less than one where episodes end).
        rewards: r, shape (n,).
        gamma: Discount.
    """

    features: Tensor
    weights: Tensor
    transitions: Tensor
    rewards: Tensor
    gamma: float

    # ------------------------------------------------------------------ matrices

    @property
    def C(self) -> Tensor:  # noqa: N802
        """Phi' D Phi."""
        return self.features.T @ (self.weights[:, None] * self.features)

    @property
    def B(self) -> Tensor:  # noqa: N802
        """Phi' D P Phi, which a target network's extra term is made of."""
        return self.features.T @ (self.weights[:, None] * (self.transitions @ self.features))

    @property
    def A(self) -> Tensor:  # noqa: N802
        """Phi' D (I - gamma P) Phi."""
        return self.C - self.gamma * self.B

    @property
    def b(self) -> Tensor:
        """Phi' D r."""
        return self.features.T @ (self.weights * self.rewards)

    def fixed_point(self) -> Tensor:
        """Return w* = A^-1 b."""
        return torch.linalg.solve(self.A, self.b)

    def modes(self) -> Tensor:
        """Return lambda = eig(C^-1 A), complex."""
        return torch.linalg.eigvals(torch.linalg.solve(self.C, self.A))

    def reduced(self) -> LinearProblem:
        """Return the problem in the row space of Phi: features Phi V_r of full column rank."""
        _, sizes, right = torch.linalg.svd(self.features, full_matrices=False)
        rank = int((sizes > sizes[0] * 1e-12).sum())
        return self._with(self.features @ right[:rank].T)

    def whitened(self) -> LinearProblem:
        """Return the problem with the same functions and C = I."""
        root = torch.linalg.cholesky(self.C)
        return self._with(torch.linalg.solve_triangular(root, self.features.T, upper=False).T)

    def _with(self, features: Tensor) -> LinearProblem:
        return LinearProblem(features, self.weights, self.transitions, self.rewards, self.gamma)

    # ----------------------------------------------------------------- operators

    def td(self, eta: float, period: int = 1) -> Tensor:
        """Return M_TD = (I - eta A)^T."""
        return torch.linalg.matrix_power(self._identity() - eta * self.A, period)

    def tn(self, eta: float, period: int | None) -> Tensor:
        """Return M_TN of a period; None: T -> infinity, projected value iteration."""
        limit = self.gamma * torch.linalg.solve(self.C, self.B)
        return self._periodic(self.C, limit, eta, period)

    def fr(self, eta: float, period: int | None, kappa: float) -> Tensor:
        """Return M_FR of a period; None: T -> infinity (where the inner loop is stable)."""
        inner = self.A + kappa * self.C
        return self._periodic(inner, kappa * torch.linalg.solve(inner, self.C), eta, period)

    def _periodic(self, inner: Tensor, limit: Tensor, eta: float, period: int | None) -> Tensor:
        if period is None:
            return limit
        eye = self._identity()
        return torch.linalg.matrix_power(eye - eta * inner, period) @ (eye - limit) + limit

    def _identity(self) -> Tensor:
        return torch.eye(self.features.shape[1], dtype=self.features.dtype)

    # ---------------------------------------------------------------- recursions

    def simulate(
        self,
        method: str,
        w: Tensor,
        *,
        eta: float,
        period: int,
        periods: int,
        kappa: float = 0.0,
    ) -> Tensor:
        """Run the recursion itself, update by update, and return wbar after the last period.

        Args:
            method: ``td``, ``tn`` or ``fr``.
            w: Where it starts, shape (p,).
            eta: Step.
            period: T.
            periods: Number of periods.
            kappa: Weight of functional regularisation.
        """
        A, B, C, b = self.A, self.B, self.C, self.b
        wbar = w
        for _ in range(periods):
            for _ in range(period):
                if method == "tn":
                    w = w + eta * (b + self.gamma * B @ wbar - C @ w)
                else:
                    pull = kappa * C @ (w - wbar) if method == "fr" else 0.0
                    w = w + eta * (b - A @ w - pull)
            wbar = w
        return wbar


def spectral_radius(operator: Tensor) -> float:
    """Return the largest modulus of the eigenvalues; infinite if an entry is not finite."""
    if not torch.isfinite(operator).all():
        return float("inf")
    return float(torch.linalg.eigvals(operator).abs().max())


# ------------------------------------------------------------------------- problems


def two_state(
    features: tuple[float, float] = (1.0, -3.0),
    weights: tuple[float, float] = (0.95, 0.05),
    *,
    gamma: float = 0.995,
) -> LinearProblem:
    """Return two states that swap with probability 0.95, and one feature.

    By default TD converges and a target network diverges (lambda above 2).
    """
    stay = 0.05
    return LinearProblem(
        torch.tensor(features, dtype=torch.float64)[:, None],
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor([[stay, 1 - stay], [1 - stay, stay]], dtype=torch.float64),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        gamma,
    )


def baird(gamma: float = 0.99) -> LinearProblem:
    """Return Baird's star of seven states and eight weights, uniformly sampled off-policy.

    Six states have 2 on a weight of their own and 1 on a shared one; the seventh has 1 and 2. The
    target policy always goes to the seventh. TD diverges; the rewards are zero.
    """
    n = 7
    features = torch.zeros(n, n + 1, dtype=torch.float64)
    for state in range(n - 1):
        features[state, state], features[state, n] = 2.0, 1.0
    features[n - 1, n - 1], features[n - 1, n] = 1.0, 2.0
    transitions = torch.zeros(n, n, dtype=torch.float64)
    transitions[:, n - 1] = 1.0
    weights = torch.full((n,), 1.0 / n, dtype=torch.float64)
    return LinearProblem(features, weights, transitions, torch.zeros(n, dtype=torch.float64), gamma)


def three_state(gamma: float = 0.99) -> LinearProblem:
    """Return three states and two whitened features for which TD and every target network diverge.

    lambda = -0.0607 +- 0.5613 i: a negative real part, so that 1 - s lambda lies outside the unit
    circle for every s in (0, 1], hence TN(T) for every T; the imaginary part leaves FR the window
    |Re lambda| < kappa < |lambda|^2 / (2 |Re lambda|), here (0.061, 2.625). Found by a search over
    small whole features; not in the paper.
    """
    after = [1, 1, 0]  # the first goes to the second, which stays; the third goes to the first
    return LinearProblem(
        torch.tensor([[1.0, -1.0], [2.0, 1.0], [0.0, -1.0]], dtype=torch.float64),
        torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64),
        torch.eye(3, dtype=torch.float64)[after],
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
        gamma,
    ).whitened()


def random_problem(
    generator: torch.Generator, *, states: int, features: int, gamma: float
) -> LinearProblem:
    """Return a problem drawn at random, with whitened features.

    Features are standard normal, sampling distribution and transitions flat Dirichlet (so sampling
    is off-policy), rewards standard normal.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def simplex(*shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
        exponential = -torch.log1p(-drawn)
        return exponential / exponential.sum(-1, keepdim=True)

    return LinearProblem(
        normal(states, features), simplex(states), simplex(states, states), normal(states), gamma
    ).whitened()
