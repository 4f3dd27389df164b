"""References for families on other spaces than R^P: numbers, simplices, one-hot rows, matrices.

They answer the questions of `posterior_references`, from SciPy's and PyTorch's distributions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from posterior_references import States
from scipy import integrate, special, stats


@dataclass(frozen=True)
class Numbers:
    """Independent entries: SciPy's distributions `law`, and PyTorch's for divergences.

    `statistics` are T_1, T_2 as functions of one number.
    """

    law: list[Any]
    twin: Any
    modes: np.ndarray
    statistics: tuple[Callable[[float], float], ...]

    @property
    def mean(self) -> np.ndarray:
        return np.array([one.mean() for one in self.law])

    @property
    def cov(self) -> np.ndarray:
        return np.diag([one.var() for one in self.law])

    @property
    def mode(self) -> np.ndarray:
        return self.modes

    def log_prob(self, x: np.ndarray) -> float:
        return float(sum(one.logpdf(v) for one, v in zip(self.law, x, strict=True)))

    def point(self, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.array([one.ppf(rng.uniform(0.05, 0.95)) for one in self.law])

    def lift(self, x: float) -> np.ndarray:
        return np.array([x])

    def integrate(self, f: Callable[[float], float], width: float = 0.0) -> float:
        low, high = self.law[0].ppf(1e-12), self.law[0].isf(1e-12)
        return integrate.quad(f, low, high, limit=400)[0]

    def entropy(self) -> float:
        return float(sum(one.entropy() for one in self.law))

    def kl(self, other: Numbers) -> float:
        return float(torch.distributions.kl_divergence(self.twin, other.twin).sum())

    def permuted(self, order: np.ndarray) -> Numbers:
        twin = type(self.twin)(*(getattr(self.twin, name)[order] for name in self._names()))
        law = [self.law[i] for i in order]
        return Numbers(law, twin, self.modes[order], self.statistics)

    def _names(self) -> list[str]:
        beta = isinstance(self.twin, torch.distributions.Beta)
        return ["concentration1", "concentration0"] if beta else ["concentration", "rate"]

    def p_values(self, x: np.ndarray) -> list[float]:
        return [stats.kstest(x[:, j], one.cdf).pvalue for j, one in enumerate(self.law)]

    def expected_statistics(self) -> np.ndarray:
        return np.array([one.expect(T) for T in self.statistics for one in self.law])

    def uniform_entropy(self) -> float:
        return 0.0  # of Beta(1, 1)


def gammas(a: np.ndarray, b: np.ndarray) -> Numbers:
    twin = torch.distributions.Gamma(torch.tensor(a), torch.tensor(b))
    law = [stats.gamma(s, scale=1 / r) for s, r in zip(a, b, strict=True)]
    return Numbers(law, twin, (a - 1) / b, (np.log, lambda x: x))


def betas(a: np.ndarray, b: np.ndarray) -> Numbers:
    twin = torch.distributions.Beta(torch.tensor(a), torch.tensor(b))
    law = [stats.beta(s, r) for s, r in zip(a, b, strict=True)]
    return Numbers(law, twin, (a - 1) / (a + b - 2), (np.log, _log1m))


def _log1m(x: float) -> float:
    return float(np.log1p(-x))


@dataclass(frozen=True)
class Simplices:
    """Independent Dirichlet rows of these concentrations."""

    rows: list[np.ndarray]

    def _pieces(self, x: np.ndarray) -> list[np.ndarray]:
        return np.split(x, np.cumsum([len(a) for a in self.rows])[:-1], axis=-1)

    @property
    def mean(self) -> np.ndarray:
        return np.concatenate([stats.dirichlet(a).mean() for a in self.rows])

    @property
    def cov(self) -> np.ndarray:
        from scipy.linalg import block_diag

        return block_diag(*[stats.dirichlet(a).cov() for a in self.rows])

    @property
    def mode(self) -> np.ndarray:
        return np.concatenate([(a - 1) / (a - 1).sum() for a in self.rows])

    def log_prob(self, x: np.ndarray) -> float:
        """In all coordinates, so that it can be differentiated off the simplex."""
        return sum(
            float(
                special.xlogy(a - 1, v).sum() + special.gammaln(a.sum()) - special.gammaln(a).sum()
            )
            for a, v in zip(self.rows, self._pieces(x), strict=True)
        )

    def point(self, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.concatenate([rng.dirichlet(np.full(len(a), 3.0)) for a in self.rows])

    def lift(self, x: float) -> np.ndarray:
        return np.array([x, 1.0 - x])

    def integrate(self, f: Callable[[float], float], width: float = 0.0) -> float:
        return integrate.quad(f, 0.0, 1.0, limit=400)[0]

    def entropy(self) -> float:
        return float(sum(stats.dirichlet(a).entropy() for a in self.rows))

    def kl(self, other: Simplices) -> float:
        law = torch.distributions.Dirichlet
        return sum(
            float(torch.distributions.kl_divergence(law(torch.tensor(a)), law(torch.tensor(b))))
            for a, b in zip(self.rows, other.rows, strict=True)
        )

    def permuted(self, order: np.ndarray) -> Simplices:
        found = np.concatenate(self.rows)[order]
        sizes = {len(a) for a in self.rows}
        small = min(sizes)  # the contract's backwards schema has the short vector first
        return Simplices([*np.split(found[:-small], 2), found[-small:]])

    def p_values(self, x: np.ndarray) -> list[float]:
        """Marginals, and the share of the first in the first two, which is a Beta too."""
        found = []
        for a, v in zip(self.rows, self._pieces(x), strict=True):
            found.append(stats.kstest(v[:, 0], stats.beta(a[0], a[1:].sum()).cdf).pvalue)
            share = v[:, 0] / (v[:, 0] + v[:, 1])
            found.append(stats.kstest(share, stats.beta(a[0], a[1]).cdf).pvalue)
        return found

    def expected_statistics(self) -> np.ndarray:
        laws = [stats.beta(one, a.sum() - one) for a in self.rows for one in a]
        return np.array([law.expect(np.log) for law in laws])

    def uniform_entropy(self) -> float:
        return -float(sum(special.gammaln(len(a)) for a in self.rows))


def one_hots(rows: list[np.ndarray]) -> States:
    """Independent one-hot rows with these probabilities, every state listed."""
    picks = list(itertools.product(*[range(len(p)) for p in rows]))
    states = [np.concatenate([np.eye(len(p))[k] for p, k in zip(rows, pick)]) for pick in picks]
    weights = [np.prod([p[k] for p, k in zip(rows, pick)]) for pick in picks]
    return States(np.array(states), np.array(weights))


@dataclass(frozen=True)
class Matrices:
    """Independent Wishart matrices W(nu, V)."""

    parts: list[tuple[float, np.ndarray]]

    def _pieces(self, x: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([V.size for _, V in self.parts])[:-1]
        cut = np.split(x, ends, axis=-1)
        return [
            one.reshape(*one.shape[:-1], *V.shape)
            for one, (_, V) in zip(cut, self.parts, strict=True)
        ]

    @property
    def mean(self) -> np.ndarray:
        return np.concatenate([(nu * V).ravel() for nu, V in self.parts])

    @property
    def cov(self) -> np.ndarray:
        from scipy.linalg import block_diag

        blocks = []
        for nu, V in self.parts:
            d = len(V)
            four = np.einsum("ik,jl->ijkl", V, V) + np.einsum("il,jk->ijkl", V, V)
            blocks.append(nu * four.reshape(d * d, d * d))
        return block_diag(*blocks)

    @property
    def mode(self) -> np.ndarray:
        return np.concatenate([((nu - len(V) - 1) * V).ravel() for nu, V in self.parts])

    def log_prob(self, x: np.ndarray) -> float:
        """From determinants and traces, so that it can be differentiated off the symmetric ones."""
        total = 0.0
        for (nu, V), X in zip(self.parts, self._pieces(x), strict=True):
            d = len(V)
            total += 0.5 * (nu - d - 1) * np.linalg.slogdet(X)[1]
            total -= 0.5 * np.sum(np.linalg.inv(V) * X)
            total -= 0.5 * nu * (d * np.log(2.0) + np.linalg.slogdet(V)[1])
            total -= special.multigammaln(0.5 * nu, d)
        return float(total)

    def point(self, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.concatenate(
            [stats.wishart(nu + 2, V).rvs(random_state=rng).ravel() for nu, V in self.parts]
        )

    def lift(self, x: float) -> np.ndarray:
        return np.array([x])

    def integrate(self, f: Callable[[float], float], width: float = 0.0) -> float:
        ((nu, V),) = self.parts
        high = float(V[0, 0]) * stats.chi2(nu).isf(1e-14)
        return integrate.quad(f, 0.0, high, limit=400)[0]

    def entropy(self) -> float:
        return float(sum(stats.wishart(nu, V).entropy() for nu, V in self.parts))

    def kl(self, other: Matrices) -> float:
        total = 0.0
        for (n, V), (m, W) in zip(self.parts, other.parts, strict=True):
            d = len(V)
            psi = special.digamma(0.5 * (n - np.arange(d))).sum()
            total += 0.5 * (n - m) * psi
            total += 0.5 * m * (np.linalg.slogdet(W)[1] - np.linalg.slogdet(V)[1])
            total += 0.5 * n * (np.trace(np.linalg.solve(W, V)) - d)
            total += special.multigammaln(0.5 * m, d) - special.multigammaln(0.5 * n, d)
        return float(total)

    def permuted(self, order: np.ndarray) -> Matrices:
        del order  # the two names exchange their matrices
        return Matrices(self.parts[::-1])

    def p_values(self, x: np.ndarray) -> list[float]:
        """X_11 / V_11 ~ chi2(nu), and for d = 2: 2 sqrt(|X|/|V|) ~ chi2(2 nu - 2)."""
        found = []
        for (nu, V), X in zip(self.parts, self._pieces(x), strict=True):
            found.append(stats.kstest(X[:, 0, 0] / V[0, 0], stats.chi2(nu).cdf).pvalue)
            root = 2 * np.sqrt(np.linalg.det(X) / np.linalg.det(V))
            found.append(stats.kstest(root, stats.chi2(2 * nu - 2).cdf).pvalue)
        return found

    def expected_statistics(self) -> np.ndarray:
        """|X| / |V| is a product of independent chi2(nu - j); E X = nu V."""
        log_dets = [
            np.linalg.slogdet(V)[1] + sum(stats.chi2(nu - j).expect(np.log) for j in range(len(V)))
            for nu, V in self.parts
        ]
        return np.concatenate([log_dets, self.mean])
