"""Softmax regression on digits with diagonal Gaussians: the server's bound, round by round.

A client minimises its local objective over diagonal Gaussians by full-batch variational online
Newton. With logits sampled locally, f = X m + sqrt(X^2 s) eps of variance s = 1/S (X^2 entry by
entry), and p = softmax(f)::

    E_q[grad l] ~ X^T (p - y),    E_q[hess l]_cd ~ sum_i p_ic (1 - p_ic) x_id^2       two draws
    S <- (1 - b) S + b ( S_g + (weight E_q[hess l] - V)/rho )
    u <- 0.9 u + S^-1 ( (weight E_q[grad l] + v - V m)/rho + S_g (m - m_g) ),      m <- m - a u

The measure is the negative bound of the whole data, E_q[sum_k l_k] + KL(q || p_0), less that of the
joint fit by the same iteration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.data import load_data, random_like
from bayesrule.errors import BayesruleError, ImproperDistribution, NonFiniteLoss
from bayesrule.federated import (
    PVI,
    Algorithm,
    BayesianADMM,
    BregmanADMM,
    LocalObjective,
    run_rounds,
)
from bayesrule.posteriors import DiagonalGaussian, NaturalGaussian
from bayesrule.seeding import child_seed
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["SoftmaxBound"]

CLASSES = 10
REPORT = (1, 2, 5, 10)
FLOOR = 1e-3  # of a precision, as a part of the server's
DIVERGED = 1e6


@dataclass
class SoftmaxClient:
    """One client's solver, see the module's docstring."""

    X: Tensor
    y: Tensor
    seed: int
    steps: int = 80
    a: float = 0.05
    b: float = 0.1

    def moments(self, m: Tensor, s: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return E_q[grad l] and the diagonal of E_q[hess l], (C, D), by two antithetic draws."""
        mean, std = self.X @ m.mT, (self.X.square() @ s.mT).sqrt()
        eps = torch.randn(mean.shape, generator=stream, dtype=mean.dtype)
        onehot = torch.nn.functional.one_hot(self.y, CLASSES).to(m.dtype)
        grad, hess = torch.zeros_like(m), torch.zeros_like(m)
        for sign in (1.0, -1.0):
            p = (mean + sign * std * eps).softmax(-1)
            grad += 0.5 * (p - onehot).mT @ self.X
            hess += 0.5 * (p * (1.0 - p)).mT @ self.X.square()
        return grad, hess

    def __call__(
        self, objective: LocalObjective, carried: Mapping[str, Any]
    ) -> tuple[NaturalGaussian, dict[str, Any]]:
        """Minimise; the draws differ from call to call."""
        calls = int(carried.get("calls", 0))
        stream = torch.Generator().manual_seed(child_seed(self.seed, calls))
        prior, w, rho = objective.prior, objective.weight, objective.rho
        assert isinstance(prior, DiagonalGaussian)
        m_g, S_g = prior.mean["W"], prior.precision["W"]
        tilt = objective.tilt
        v = torch.zeros_like(m_g) if tilt is None else tilt.nat1["W"]
        V = torch.zeros_like(m_g) if tilt is None else -2.0 * tilt.nat2["W"]
        m, S, u = m_g.clone(), S_g.clone(), torch.zeros_like(m_g)
        for _ in range(self.steps):
            grad, hess = self.moments(m, 1.0 / S, stream)
            S = (1.0 - self.b) * S + self.b * (S_g + (w * hess - V) / rho)
            S = torch.maximum(S, FLOOR * S_g)
            u = 0.9 * u + ((w * grad + v - V * m) / rho + S_g * (m - m_g)) / S
            m = m - self.a * u
        if not torch.isfinite(m).all():
            raise NonFiniteLoss("a client's posterior is not finite: its dual diverged")
        return DiagonalGaussian({"W": m}, {"W": S}), {"calls": calls + 1}


class SoftmaxBound(Task):
    """Gap of the server's negative bound to the joint fit, by method and round.

    ``gap/<method>_round<r>``, in nats per item; `DIVERGED` where a method's bound is not finite or
    larger than that.

    Args:
        delta: Prior precision.
        rounds: Rounds of every method.
        draws: Of the bound's expectation.
    """

    def __init__(self, delta: float, rounds: int, draws: int) -> None:
        self.delta, self.rounds, self.draws = delta, rounds, draws

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the full-batch steps of all clients; there is no network."""
        steps = 5 * self.rounds * 5 * 80
        return Requirements(int(config["data"]["train_size"]), steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Do one round on random data of the shape."""
        batch = random_like(plan.config["data"], n_items=40).train.whole()
        task = SoftmaxBound(self.delta, 1, 2)
        task.curves(batch["input"], torch.arange(40) % CLASSES, plan.config["seed"])
        return ["one round, 40 random items"]

    def run(self, context: Context) -> Outcome:
        """Compute; some seconds, so nothing is checkpointed."""
        config = context.config
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        batch = data.train.whole()
        curves = self.curves(batch["input"], batch["target"], config["seed"])
        metrics = {
            f"gap/{name}_round{r}": gaps[r]
            for name, gaps in curves.items()
            for r in (0, *REPORT)
            if r < len(gaps)
        }
        details = {"data": data.describe(), "parameters": 0, "curves": {"gap": curves}}
        return Outcome(metrics, details)

    def curves(self, inputs: Tensor, labels: Tensor, seed: int) -> dict[str, list[float]]:
        """Return the gap at the start and after each round, by method.

        Args:
            inputs: Pixels in [0, 1].
            labels: Digits.
            seed: Of the draws.
        """
        X = inputs.flatten(1).double()
        X = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], dim=1)
        zero = torch.zeros(CLASSES, X.shape[1], dtype=X.dtype)
        prior = DiagonalGaussian({"W": zero}, {"W": torch.full_like(zero, self.delta)})
        whole = SoftmaxClient(X, labels, child_seed(seed, "joint"), steps=400)
        joint, _ = whole(LocalObjective(prior, rho=1.0, weight=1.0), {})
        best = self.bound(joint, prior, X, labels, seed)
        groups = [labels // 2 == k for k in range(5)]
        solvers = [
            (int(rows.sum()), SoftmaxClient(X[rows], labels[rows], child_seed(seed, "client", k)))
            for k, rows in enumerate(groups)
        ]
        methods: dict[str, Algorithm] = {
            "bayes_admm": BayesianADMM(rho=1.0, gamma=1.0),
            "pvi": PVI(gamma=1.0),
            "pvi_damped": PVI(gamma=0.2),
            "bregman": BregmanADMM(rho=1.0, gamma=0.2),
            "bregman_large": BregmanADMM(rho=1.0, gamma=100.0),
        }
        start = self.bound(prior, prior, X, labels, seed)
        curves = {}
        for name, algorithm in methods.items():
            bounds = [start]
            try:
                for state in run_rounds(algorithm, algorithm.start(prior, 5), solvers, self.rounds):
                    bounds.append(self.bound(state.posterior, prior, X, labels, seed))
            except (ImproperDistribution, NonFiniteLoss):
                pass  # it diverged
            bounds += [math.inf] * (self.rounds + 1 - len(bounds))
            gaps = [(one - best) / len(X) for one in bounds]
            curves[name] = [gap if gap < DIVERGED else DIVERGED for gap in gaps]
        if not math.isfinite(best):
            raise BayesruleError("the joint fit did not converge")
        return curves

    def bound(
        self, q: NaturalGaussian, prior: DiagonalGaussian, X: Tensor, y: Tensor, seed: int
    ) -> float:
        """Return E_q[sum l] + KL(q || p_0), the expectation by the same draws for every q."""
        assert isinstance(q, DiagonalGaussian)
        stream = torch.Generator().manual_seed(child_seed(seed, "bound"))
        mean = X @ q.mean["W"].mT
        std = (X.square() @ q.var["W"].mT).sqrt()
        total = 0.0
        for _ in range(self.draws):
            eps = torch.randn(mean.shape, generator=stream, dtype=mean.dtype)
            logits = mean + std * eps
            total += float(torch.nn.functional.cross_entropy(logits, y, reduction="sum"))
        return total / self.draws + float(q.kl(prior))
