"""Mixture models under the rule: indicators, weights, means, precisions as nodes of a mean field.

    z_n ~ Categorical(pi),    x_n given z_n = k ~ N(mu_k, Lambda_k^-1)

Every node is conjugate given the others, so that each gradient grad_mu E_q[-log p] is minus the sum
of the natural parameters of its factors, with the neighbours' statistics replaced by expectations.
A step with rho = 1 sets a node to its optimum (coordinate ascent); with rho < 1 and a batch it is
stochastic variational inference (Hoffman et al. 2013); with `delta` on the parameters, whose
expectations are then the values at their modes, it is EM (Dempster et al. 1977).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesrule.posteriors import (
    Categorical,
    DiagonalGaussian,
    Dirichlet,
    ExponentialFamily,
    FullGaussian,
    Natural,
    Wishart,
)
from bayesrule.rule.approximations import Approximations, StepSizes
from bayesrule.rule.gradients import NodeGradient
from bayesrule.rule.rule import BayesianLearningRule

__all__ = ["FullMixture", "UnitMixture"]

Start = tuple[np.ndarray, np.ndarray, np.ndarray]


def _move(q: ExponentialFamily, messages: Natural[Any], rho: float = 1.0) -> Any:
    """Move one node by the sum of its messages."""
    rule = BayesianLearningRule(type(q), NodeGradient(messages), StepSizes(rho))
    return rule.posterior(rule.step(rule.start(q)))


def _indicators(log_odds: Tensor) -> Tensor:
    """Return E[z] (n, K) after a full step of q(z), whose messages sum to `log_odds`, (n, K)."""
    messages = Natural({"z": log_odds[:, :-1] - log_odds[:, -1:]}, {})
    q = _move(Categorical({"z": torch.zeros_like(log_odds)}), messages)
    return q.mean["z"]


class UnitMixture:
    """Variational inference for Gaussians of unit covariance: q(z) q(pi) q(mu_1, ..., mu_K).

    Args:
        how: `minibatch` says whether a step's batch is read.
        x: Data (N, d).
        prior: Concentration of pi, and precision of the mu_k around 0.
        start: Concentrations (K,), means (K, d) and precisions (K, d) of q.
    """

    def __init__(
        self, how: Approximations, x: Tensor, prior: tuple[float, float], start: Start
    ) -> None:
        how.require({"minibatch"}, "UnitMixture")
        self.how, self.x = how, x
        alpha, means, precs = (torch.from_numpy(np.array(part)) for part in start)
        self.weights = Dirichlet({"pi": alpha})
        self.means = DiagonalGaussian({"mu": means}, {"mu": precs})
        self._prior_weights = Natural({"pi": torch.full_like(alpha, prior[0] - 1.0)}, {})
        self._prior_means = Natural(
            {"mu": torch.zeros_like(means)}, {"mu": torch.full_like(means, -0.5 * prior[1])}
        )

    def step(self, rho: float, batch: Tensor | None = None) -> list[Tensor]:
        """Take a full step of the indicators and a step rho of the global nodes.

        Args:
            rho: Step size of the global nodes.
            batch: Indices; read with `minibatch`.

        Returns:
            Concentrations, means and precisions of q.
        """
        x = self.x if batch is None or not self.how.minibatch else self.x[batch]
        factor = len(self.x) / len(x)
        # E log pi_k - E||x - mu_k||^2 / 2
        log_pi = self.weights.expectation().mean1["pi"]
        m, var = self.means.mean["mu"], self.means.var["mu"]
        square = (x.unsqueeze(1) - m).square().sum(-1) + var.sum(-1)
        r = _indicators(log_pi - 0.5 * square)
        counts = factor * r.sum(0)
        # pi: T = log pi, one count for each indicator;  mu_k: (sum r x, -sum r I / 2)
        messages = self._prior_weights + Natural({"pi": counts}, {})
        self.weights = _move(self.weights, messages, rho)
        halves = (-0.5 * counts).unsqueeze(-1).expand_as(m)
        likelihood = Natural({"mu": factor * r.mT @ x}, {"mu": halves})
        self.means = _move(self.means, self._prior_means + likelihood, rho)
        return [
            self.weights.concentration["pi"],
            self.means.mean["mu"],
            self.means.precision["mu"],
        ]


class FullMixture:
    """q(z) q(pi) prod_k q(mu_k) q(Lambda_k) with flat priors, all nodes at rho = 1.

    Args:
        how: With `delta` the expectations over parameters are the values at their modes: EM.
            Without it they are exact: variational Bayes.
        x: Data (N, d).
        start: Weights (K,), means (K, d) and covariances (K, d, d).
    """

    def __init__(self, how: Approximations, x: Tensor, start: Start) -> None:
        how.require({"delta"}, "FullMixture")
        self.how, self.x = how, x
        weights, means, covs = (torch.from_numpy(np.array(part)) for part in start)
        (N, d), K = x.shape, len(weights)
        self.eye = torch.eye(d, dtype=x.dtype)
        # q whose modes are the start, with the spread of N/K items
        self.weights = Dirichlet({"pi": 1.0 + N * weights})
        self.means = [
            FullGaussian({"mu": m}, N / K * torch.linalg.inv(C))
            for m, C in zip(means, covs, strict=True)
        ]
        df = torch.tensor(N / K + d + 1, dtype=x.dtype)
        self.precisions = [Wishart({"X": df}, {"X": N / K * C}) for C in covs]

    def _log_density(self, k: int) -> tuple[Tensor, Tensor]:
        """Return E log N(x_n | mu_k, Lambda_k^-1) (N,) up to a constant, and E Lambda_k."""
        q_mu, q_prec = self.means[k], self.precisions[k]
        if self.how.delta:
            prec = q_prec.mode["X"]
            log_det, spread = torch.logdet(prec), torch.zeros((), dtype=prec.dtype)
        else:
            prec, log_det = q_prec.mean["X"], q_prec.expectation().mean1["X"]
            spread = (prec * q_mu.covariance).sum()
        e = self.x - q_mu.mean["mu"]
        return 0.5 * (log_det - ((e @ prec) * e).sum(-1) - spread), prec

    def step(self) -> list[Tensor]:
        """Move the indicators (E step), then the parameters (M step).

        Returns:
            Weights, means and covariances at the modes.
        """
        log_pi = self.weights.expectation().mean1["pi"]
        if self.how.delta:
            log_pi = self.weights.mode["pi"].log()
        parts = [self._log_density(k) for k in range(len(self.means))]
        r = _indicators(torch.stack([log_n for log_n, _ in parts], -1) + log_pi)
        counts = r.sum(0)
        self.weights = _move(self.weights, Natural({"pi": counts}, {}))
        for k, (_, prec) in enumerate(parts):
            # mu_k: (E Lambda sum r x, -sum r E Lambda / 2);  Lambda_k: (sum r / 2, -scatter / 2)
            likelihood = Natural({"mu": prec @ (r[:, k] @ self.x)}, -0.5 * counts[k] * prec)
            self.means[k] = _move(self.means[k], likelihood)
            e = self.x - self.means[k].mean["mu"]
            scatter = (r[:, k].unsqueeze(-1) * e).mT @ e
            if not self.how.delta:
                scatter = scatter + counts[k] * self.means[k].covariance
            completed = Natural({"X": 0.5 * counts[k]}, {"X": -0.5 * scatter})
            self.precisions[k] = _move(self.precisions[k], completed)
        return [
            self.weights.mode["pi"],
            torch.stack([q.mean["mu"] for q in self.means]),
            torch.stack([torch.linalg.inv(q.mode["X"]) for q in self.precisions]),
        ]
