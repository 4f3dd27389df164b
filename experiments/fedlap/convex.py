"""Logistic regression with exact solves: rounds to the joint solution of ADMM-type methods.

Breast cancer, standardised, with a bias; clients hold consecutive parts of the items sorted by
class. FedDyn has summed losses and the prior shared out, l_k(w) + delta/(2K) ||w||^2, so that all
methods have one fixed point::

    distance = ||w_g - w*|| / ||w*||,     w* = argmin sum_k l_k(w) + delta/2 ||w||^2
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.data import load_data, random_like
from bayesrule.errors import ImproperDistribution, NonFiniteLoss
from bayesrule.federated import (
    ADMM,
    Algorithm,
    FedDyn,
    FedLap,
    FedLapCov,
    LinearModel,
    LocalObjective,
    newton,
    newton_solver,
    run_rounds,
)
from bayesrule.likelihoods import Bernoulli
from bayesrule.posteriors import FullGaussian, IsotropicGaussian, NaturalGaussian
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["ConvexRounds"]

DIVERGED = 1e6
NEAR = 1e-3


class ConvexRounds(Task):
    """Distance to the joint solution after each round.

    Metrics of each method: ``rounds/<method>``, the first round from which the distance stays at
    most 1e-3 (`rounds` + 1 if there is none), and ``distance/<method>_round<r>`` for r = 1, 5, 10.
    ``fedlap`` and ``fedlap_cov`` without a number are the best over the dampings tried.

    Args:
        delta: Prior precision.
        clients: K.
        rounds: Most rounds.
        dampings: rho of FedLap and FedLap-Cov beside 1/K.
    """

    def __init__(self, delta: float, clients: int, rounds: int, dampings: list[float]) -> None:
        self.delta, self.clients, self.rounds, self.dampings = delta, clients, rounds, dampings

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the client updates; there is no network."""
        steps = self.clients * self.rounds * (2 * len(self.dampings) + 4)
        return Requirements(int(config["data"]["n_train"]), steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Do two rounds on random data of the shape."""
        batch = random_like(plan.config["data"], n_items=60).train.whole()
        task = ConvexRounds(self.delta, self.clients, 2, self.dampings)
        task.curves(batch["input"].flatten(1), torch.arange(60) % 2)
        return ["two rounds, 60 random items"]

    def run(self, context: Context) -> Outcome:
        """Compute; some seconds, so nothing is checkpointed."""
        config = context.config
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        batch = data.train.whole()
        curves = self.curves(batch["input"].flatten(1), batch["target"])
        metrics: dict[str, float] = {}
        for name, distances in curves.items():
            metrics[f"rounds/{name}"] = float(self.rounds_to(distances))
            for r in (1, 5, 10):
                if r <= len(distances):
                    metrics[f"distance/{name}_round{r}"] = distances[r - 1]
        for method in ("fedlap", "fedlap_cov"):
            tried = [name for name in curves if name.rpartition("_")[0] == method]
            best = min(tried, key=lambda name: (metrics[f"rounds/{name}"], curves[name][-1]))
            metrics[f"rounds/{method}"] = metrics[f"rounds/{best}"]
            metrics[f"distance/{method}_round5"] = min(curves[name][4] for name in tried)
        ratios = {
            "fedlap_over_cov": ("fedlap", "fedlap_cov"),
            "fedlap_over_admm": ("fedlap", "admm"),
        }
        for name, (slow, fast) in ratios.items():
            metrics[f"ratio/{name}"] = metrics[f"rounds/{slow}"] / metrics[f"rounds/{fast}"]
        metrics["ratio/error5_fedlap_over_cov"] = (
            metrics["distance/fedlap_round5"] / metrics["distance/fedlap_cov_round5"]
        )
        details = {"data": data.describe(), "parameters": 0, "curves": {"distance": curves}}
        return Outcome(metrics, details)

    def rounds_to(self, distances: list[float]) -> int:
        """Return the first round from which the distance stays at most `NEAR`."""
        far = [r for r, d in enumerate(distances, start=1) if d > NEAR]
        return (far[-1] if far else 0) + 1

    def curves(self, inputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
        """Return the distance after each round, by method.

        Args:
            inputs: Standardised features, (N, D).
            labels: Zero or one.
        """
        X = torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
        order = torch.argsort(labels, stable=True)
        K, D = self.clients, X.shape[1]
        parts = zip(X[order].tensor_split(K), labels[order].tensor_split(K), strict=True)
        losses = [LinearModel(Bernoulli(), Xk, yk, 1) for Xk, yk in parts]
        zero = {"w": torch.zeros(D, dtype=torch.float64)}
        flat = IsotropicGaussian(zero, self.delta)
        full = FullGaussian(zero, self.delta * torch.eye(D, dtype=torch.float64))
        joint = newton(
            LocalObjective(flat, rho=1.0, weight=1.0), LinearModel(Bernoulli(), X, labels, 1)
        )
        methods: dict[str, tuple[Algorithm, NaturalGaussian]] = {
            "admm": (ADMM(rho=self.delta, delta=self.delta), flat),
            "feddyn": (FedDyn(a=self.delta, ridge=self.delta / K, units="sum"), flat),
        }
        for rho in (1.0 / K, *self.dampings):
            if rho < 1.0:  # undamped, FedLap does not converge with several clients
                methods[f"fedlap_{rho:g}"] = (FedLap(gamma=rho), flat)
            methods[f"fedlap_cov_{rho:g}"] = (FedLapCov(gamma=rho), full)
        return {
            name: self._distances(algorithm, q0, losses, joint)
            for name, (algorithm, q0) in methods.items()
        }

    def _distances(
        self, algorithm: Algorithm, q0: NaturalGaussian, losses: list[LinearModel], joint: Tensor
    ) -> list[float]:
        solvers = [(len(loss.X), newton_solver(loss)) for loss in losses]
        found: list[float] = []
        try:
            for state in run_rounds(
                algorithm, algorithm.start(q0, len(losses)), solvers, self.rounds
            ):
                distance = float((state.posterior.mean["w"] - joint).norm() / joint.norm())
                found.append(min(distance, DIVERGED) if math.isfinite(distance) else DIVERGED)
                if distance < 1e-2 * NEAR or distance > 1e3:
                    break
        except (ImproperDistribution, NonFiniteLoss):
            pass  # it diverged
        end = found[-1] if found and found[-1] < NEAR else DIVERGED
        return found + [end] * (self.rounds - len(found))
