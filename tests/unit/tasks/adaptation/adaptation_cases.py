"""Small generalised linear models for the identities of knowledge adaptation."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesrule.corrections import Memory
from bayesrule.corrections.k_prior import DataTerm, KPrior
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from bayesrule.tasks.adaptation.objective import WEIGHT, Objective, solve

LIKELIHOODS = {
    "logistic": (Bernoulli(), 1),
    "softmax": (Categorical(), 3),
    "linear": (Gaussian(1.0), 2),
}
N, P = 30, 4


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def problem(name: str, n: int = N, p: int = P, seed: int = 0):
    """Return likelihood, number of outputs, inputs and labels."""
    likelihood, C = LIKELIHOODS[name]
    x = randn(n, p, seed=seed)
    x[:, 0] = 1.0
    f = x @ randn(p, C, seed=seed + 1)
    y = f + randn(n, C, seed=seed + 2) if name == "linear" else likelihood.sample(f, gen(seed + 3))
    return likelihood, C, x, y


def zero_anchor(C: int, p: int, delta: float) -> QuadraticAnchor:
    return QuadraticAnchor({WEIGHT: torch.zeros(C, p, dtype=torch.float64)}, delta)


def batch_objective(likelihood: Likelihood, C: int, x: Tensor, y: Tensor, delta: float):
    return Objective((DataTerm.of_labels(x, y),), zero_anchor(C, x.shape[1], delta), likelihood)


def fitted(likelihood: Likelihood, C: int, x: Tensor, y: Tensor, delta: float) -> Tensor:
    objective = batch_objective(likelihood, C, x, y, delta)
    return solve(objective, torch.zeros(C, x.shape[1], dtype=torch.float64), tolerance=1e-13)


def k_prior(
    likelihood: Likelihood, x: Tensor, w_star: Tensor, delta: float, temperature=1.0
) -> KPrior:
    memory = Memory(x, torch.zeros(len(x), dtype=torch.long), (), x @ w_star.mT)
    term = DataTerm.of_memory(memory, likelihood, temperature=temperature)
    return KPrior((term,), QuadraticAnchor({WEIGHT: w_star}, delta), likelihood)
