"""Problems that the recipes run on: data that scikit-learn ships, in float64, and seeded starts.

A recipe and its oracle take their start, batches and noise from here with the same seed, so that
both see the same numbers. Starts are near 0: from far away undamped Newton diverges, for the rule
as for the classical method.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesrule.rule.losses import LinearModel
from bayesrule.seeding import numpy_generator

__all__ = [
    "GMM_PRIOR",
    "N_ITERATES",
    "NoiseStream",
    "StateSpace",
    "batches",
    "breast_cancer",
    "diabetes",
    "iris",
    "logistic",
    "random_precision",
    "rng_of",
    "start",
    "state_space",
    "svi_start",
]

N_ITERATES = 20
"""Iterates of a recipe that are compared with those of its oracle."""

GMM_PRIOR = (1.0, 0.1)
"""Concentration of the weights and precision of the means in the unit-variance mixture model."""


def rng_of(seed: int, use: str) -> np.random.Generator:
    """Return a stream of its own for every seed and use."""
    return numpy_generator(seed, "rule", use)


@functools.cache
def _standardised(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs with columns of mean 0 and variance 1, and targets as shipped."""
    import sklearn.datasets

    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return x.astype(np.float64), y.astype(np.float64)


def breast_cancer(n_features: int = 30) -> tuple[Tensor, Tensor]:
    """Return 569 items with labels in {0, 1}."""
    x, y = _standardised("breast_cancer")
    return torch.from_numpy(x[:, :n_features].copy()), torch.from_numpy(y)


def diabetes() -> tuple[Tensor, Tensor]:
    """Return 442 items with 10 features and standardised targets."""
    x, y = _standardised("diabetes")
    return torch.from_numpy(x), torch.from_numpy((y - y.mean()) / y.std())


def iris() -> tuple[Tensor, Tensor]:
    """Return 150 items with 4 features and labels 0, 1, 2."""
    x, y = _standardised("iris")
    return torch.from_numpy(x), torch.from_numpy(y)


def logistic(n_features: int = 30, prior_prec: float = 1.0) -> LinearModel:
    """Return Bayesian logistic regression on breast_cancer."""
    return LinearModel.logistic(*breast_cancer(n_features), prior_prec)


def start(seed: int, n_params: int, sd: float = 0.01) -> Tensor:
    """Return a start m_0 ~ N(0, sd^2 I)."""
    return torch.from_numpy(sd * rng_of(seed, "start").standard_normal(n_params))


def random_precision(seed: int, n_params: int) -> Tensor:
    """Return a symmetric positive definite matrix."""
    root = rng_of(seed, "precision").standard_normal((n_params, n_params))
    return torch.from_numpy(root @ root.T / n_params + 0.1 * np.eye(n_params))


def batches(seed: int, n_data: int, size: int, n: int) -> list[Tensor]:
    """Return `n` batches of `size` distinct items."""
    rng = rng_of(seed, "batches")
    return [torch.from_numpy(rng.choice(n_data, size, replace=False)) for _ in range(n)]


class NoiseStream:
    """Draws of a seed, one after the other: `noise(like)`, normal or uniform in (0, 1)."""

    def __init__(self, seed: int, law: str = "normal") -> None:
        self._rng, self._law = rng_of(seed, "noise"), law

    def __call__(self, like: Tensor) -> Tensor:
        """Return the next draw, of the shape of `like`."""
        shape = tuple(like.shape)
        draw = (
            self._rng.standard_normal(shape) if self._law == "normal" else self._rng.random(shape)
        )
        return torch.from_numpy(draw).to(like)


@dataclass(frozen=True)
class StateSpace:
    """x_0 ~ N(m0, P0), x_{t+1} = A x_t + N(0, Q), y_t = H x_t + N(0, R)."""

    m0: np.ndarray
    P0: np.ndarray
    A: np.ndarray
    Q: np.ndarray
    H: np.ndarray
    R: np.ndarray
    y: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.m0, self.P0, self.A, self.Q, self.H, self.R, self.y))


def state_space(seed: int, n_steps: int = 50) -> StateSpace:
    """Return position and velocity, the position observed, with observations drawn by the seed."""
    A = np.array([[1.0, 0.5], [0.0, 0.95]])
    Q = np.array([[0.05, 0.02], [0.02, 0.1]])
    H, R = np.array([[1.0, 0.0]]), np.array([[0.3]])
    m0, P0 = np.zeros(2), np.eye(2)
    rng = rng_of(seed, "chain")
    x, y = rng.multivariate_normal(m0, P0), []
    for t in range(n_steps):
        if t:
            x = A @ x + rng.multivariate_normal(np.zeros(2), Q)
        y.append(H @ x + np.sqrt(R[0, 0]) * rng.standard_normal(1))
    return StateSpace(m0, P0, A, Q, H, R, np.array(y))


def svi_start(seed: int, n_components: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the start of the mixture on iris: alpha = 10, precision 10, means at three items."""
    x = iris()[0].numpy()
    rows = rng_of(seed, "svi").choice(len(x), n_components, replace=False)
    return np.full(n_components, 10.0), x[rows].copy(), np.full((n_components, x.shape[1]), 10.0)
