"""What a family must be, worked out with NumPy and SciPy alone.

`Gaussians` is a mixture of Gaussian components (of zero covariance: of points) on R^P, `States` a
distribution whose states are listed one by one (signs, one-hot rows). All references answer the
same questions, so the contract asks them of every family; `exponential_references` has the others.
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

    def lift(self, x: float) -> np.ndarray:
        """The vector that a number stands for, in one dimension."""
        return np.array([x])

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
class States:
    """A table of all states (n, P) and their probabilities (n,)."""

    states: np.ndarray
    weights: np.ndarray

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
        return np.random.default_rng(seed).choice(self.states)

    def lift(self, x: float) -> np.ndarray:
        return np.array([x]) if self.states.shape[1] == 1 else np.array([x, 1.0 - x])

    def integrate(self, f: Callable[[float], float], width: float = 0.0) -> float:
        return sum(f(float(state[0])) for state in self.states)

    def entropy(self) -> float:
        return float(stats.entropy(self.weights))

    def kl(self, other: States) -> float:
        place = {tuple(state): k for k, state in enumerate(other.states)}
        order = [place[tuple(state)] for state in self.states]
        return float(stats.entropy(self.weights, other.weights[order]))

    def permuted(self, order: np.ndarray) -> States:
        return States(self.states[:, order], self.weights)

    def uniform_entropy(self) -> float:
        return float(np.log(len(self.states)))

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


def signs(p: np.ndarray) -> States:
    """Independent signs with q(theta_j = +1) = p_j, every state listed."""
    states = np.array(list(itertools.product([-1.0, 1.0], repeat=len(p))))
    return States(states, np.where(states > 0, p, 1 - p).prod(1))
