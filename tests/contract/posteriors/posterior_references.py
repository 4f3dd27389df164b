"""What a family must be, worked out with NumPy and SciPy alone.

`Gaussians` is a mixture of Gaussian components (of zero covariance: of points) on R^P, `Signs` a
distribution on {-1, +1}^P whose states are listed one by one. Both answer the same questions, so
the contract asks them of every family.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, stats


@dataclass(frozen=True)
class Gaussians:
    """sum_k w_k N(m_k, C_k)."""

    parts: list[tuple[float, np.ndarray, np.ndarray]]

    @property
    def mean(self) -> np.ndarray:
        return sum(w * m for w, m, _ in self.parts)

    @property
    def cov(self) -> np.ndarray:
        mean = self.mean
        return sum(w * (c + np.outer(m - mean, m - mean)) for w, m, c in self.parts)

    @property
    def mode(self) -> np.ndarray:
        ((_, m, _),) = self.parts
        return m

    def log_prob(self, x: np.ndarray) -> float:
        terms = [np.log(w) + stats.multivariate_normal(m, c).logpdf(x) for w, m, c in self.parts]
        return float(np.logaddexp.reduce(terms))

    def point(self, seed: int) -> np.ndarray:
        """A place to evaluate densities at."""
        return np.random.default_rng(seed).standard_normal(len(self.mean))

    def integrate(self, f: Callable[[float], float], width: float = 40.0) -> float:
        """Integrate over the space, in one dimension."""
        c = float(self.mean[0])
        return integrate.quad(f, c - width, c + width, points=[c], limit=400)[0]

    def entropy(self) -> float:
        ((_, m, c),) = self.parts
        return float(stats.multivariate_normal(m, c).entropy())

    def kl(self, other: Gaussians) -> float:
        normal = torch.distributions.MultivariateNormal
        q, p = (normal(*map(torch.tensor, ref.parts[0][1:])) for ref in (self, other))
        return float(torch.distributions.kl_divergence(q, p))

    def permuted(self, order: np.ndarray) -> Gaussians:
        return Gaussians([(w, m[order], c[np.ix_(order, order)]) for w, m, c in self.parts])

    def p_values(self, x: np.ndarray) -> list[float]:
        """Two-sided tests of n draws (n, P): of mean and covariance, and of normality."""
        ((_, mean, cov),) = self.parts
        n, P = x.shape
        z = np.linalg.solve(np.linalg.cholesky(cov), (x - mean).T).T
        second = z.T @ z / n
        rows, cols = np.triu_indices(P, 1)
        diagonal = n / 2 * np.sum((np.diag(second) - 1) ** 2)
        found = [stats.kstest(z.ravel()[:: P + 1], "norm").pvalue]
        for stat, df in (
            (n * np.sum(z.mean(0) ** 2), P),
            (n * np.sum(second[rows, cols] ** 2) + diagonal, P * (P + 1) / 2),
        ):
            found.append(2 * min(stats.chi2.cdf(stat, df), stats.chi2.sf(stat, df)))
        return found


@dataclass(frozen=True)
class Signs:
    """Independent signs with q(theta_j = +1) = p_j, as a table of all 2^P states."""

    p: np.ndarray

    @property
    def states(self) -> np.ndarray:
        return np.array(list(itertools.product([-1.0, 1.0], repeat=len(self.p))))

    @property
    def weights(self) -> np.ndarray:
        return np.where(self.states > 0, self.p, 1 - self.p).prod(1)

    @property
    def mean(self) -> np.ndarray:
        return self.weights @ self.states

    @property
    def cov(self) -> np.ndarray:
        d = self.states - self.mean
        return d.T @ (self.weights[:, None] * d)

    @property
    def mode(self) -> np.ndarray:
        return self.states[np.argmax(self.weights)]

    def log_prob(self, x: np.ndarray) -> float:
        (index,) = np.flatnonzero((self.states == x).all(1))
        return float(np.log(self.weights[index]))

    def point(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).choice([-1.0, 1.0], len(self.p))

    def integrate(self, f: Callable[[float], float], width: float = 0.0) -> float:
        return f(-1.0) + f(1.0)

    def entropy(self) -> float:
        return float(stats.entropy(self.weights))

    def kl(self, other: Signs) -> float:
        return float(stats.entropy(self.weights, other.weights))

    def permuted(self, order: np.ndarray) -> Signs:
        return Signs(self.p[order])

    def p_values(self, x: np.ndarray) -> list[float]:
        """Chi-square of the states' frequencies, states rarer than five draws taken together."""
        found, counts = np.unique(x, axis=0, return_counts=True)
        observed = np.zeros(len(self.states))
        for state, count in zip(found, counts, strict=True):
            observed[np.flatnonzero((self.states == state).all(1))[0]] = count
        expected = self.weights * len(x)
        often = expected >= 5
        observed = np.append(observed[often], observed[~often].sum())
        expected = np.append(expected[often], expected[~often].sum())
        keep = expected > 0
        stat, df = np.sum((observed - expected)[keep] ** 2 / expected[keep]), keep.sum() - 1
        return [2 * min(stats.chi2.cdf(stat, df), stats.chi2.sf(stat, df))]


Reference = Gaussians | Signs
