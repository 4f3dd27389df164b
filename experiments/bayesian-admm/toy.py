"""Two clients on one logistic regression: what each client's site knows, over the plane.

Client 0 sees two clusters on the left, client 1 two on the right. Full-covariance Bayesian ADMM,
clients solved by variational online Newton with sampled gradients. The picture is the standard
deviation of the logit x^T theta under the belief of a site, N(., (S_0 + V_k)^-1), and under the
server: a client keeps a large one where it has seen nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesrule.config import Config
from bayesrule.federated import BayesianADMM, LinearModel, von_solver
from bayesrule.likelihoods import Bernoulli
from bayesrule.posteriors import FullGaussian
from bayesrule.seeding import child_seed, generator
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["ToySites"]

CENTRES = (((-3.0, 1.5), (-3.0, -1.5)), ((3.0, -1.5), (3.0, 1.5)))  # client, class
GRID = 41
REACH = 5.0


class ToySites(Task):
    """Sites of two clients after some rounds.

    Metrics: ``toy/std_unseen`` and ``toy/std_seen``, the mean standard deviation of the logit under
    a client's own site on the other client's points and on its own; ``toy/server_std``, the
    server's, on all points; ``toy/precision_error``, the relative difference between the server's
    precision and S_0 + sum_k V_k.

    Args:
        delta: Prior precision.
        rho: Weight of the KL divergence to the server.
        rounds: Number of rounds.
        steps: VON steps of a client in a round.
        items: Points of each cluster.
    """

    def __init__(self, delta: float, rho: float, rounds: int, steps: int, items: int) -> None:
        self.delta, self.rho, self.rounds = delta, rho, rounds
        self.steps, self.items = steps, items

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the VON steps; there is no network."""
        return Requirements(4 * self.items, 2 * self.rounds * self.steps, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Take ten steps in one round."""
        ToySites(self.delta, self.rho, 1, 10, 5).sites(0)
        return ["one round of ten steps"]

    def run(self, context: Context) -> Outcome:
        """Compute; some seconds, so nothing is checkpointed."""
        data, V, state = self.sites(context.config["seed"])
        S_0 = self.delta * torch.eye(3, dtype=torch.float64)
        beliefs = [torch.linalg.inv(S_0 + one) for one in V]
        server = torch.linalg.inv(state.precision)

        def std(cov: Tensor, X: Tensor) -> Tensor:
            return ((X @ cov) * X).sum(1).sqrt()

        total = S_0 + sum(V)
        metrics = {
            "toy/std_seen": _mean(std(beliefs[k], data[k][0]) for k in (0, 1)),
            "toy/std_unseen": _mean(std(beliefs[k], data[1 - k][0]) for k in (0, 1)),
            "toy/server_std": _mean(std(server, data[k][0]) for k in (0, 1)),
            "toy/precision_error": float((state.precision - total).norm() / total.norm()),
        }
        axis = torch.linspace(-REACH, REACH, GRID, dtype=torch.float64)
        x2, x1 = torch.meshgrid(axis, axis, indexing="ij")
        plane = torch.stack([x1.flatten(), x2.flatten(), torch.ones(GRID**2).double()], dim=1)
        maps = {
            name: std(cov, plane).tolist()
            for name, cov in zip(("client0", "client1", "server"), (*beliefs, server), strict=True)
        }
        points = [[X[:, :2].tolist(), y.tolist()] for X, y in data]
        curves: dict[str, Any] = {"toy/std": {"axis": axis.tolist(), **maps}, "toy/points": points}
        return Outcome(metrics, {"parameters": 0, "curves": curves})

    def sites(self, seed: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor], FullGaussian]:
        """Return the clients' data, their dual precisions V_k, and the server's posterior."""
        data = [self._client(seed, k) for k in (0, 1)]
        prior = FullGaussian(
            {"w": torch.zeros(3).double()}, self.delta * torch.eye(3, dtype=torch.float64)
        )
        algorithm = BayesianADMM(rho=self.rho)
        state = algorithm.start(prior, 2)
        clients = [algorithm.client_start(state, k) for k in (0, 1)]
        for r in range(self.rounds):
            message, replies = algorithm.message(state), []
            for k, (X, y) in enumerate(data):
                stream = torch.Generator().manual_seed(child_seed(seed, "von", k, r))
                solve = von_solver(
                    LinearModel(Bernoulli(), X, y, 1),
                    generator=stream,
                    steps=self.steps,
                    a=0.3,
                    b=0.3,
                )
                reply, clients[k] = algorithm.client_update(message, clients[k], k, len(X), solve)
                replies.append(reply)
            state = algorithm.server_update(state, replies)
        assert isinstance(state.posterior, FullGaussian)
        duals = [client.dual for client in clients]
        return data, [-2.0 * dual.nat2 for dual in duals if dual is not None], state.posterior

    def _client(self, seed: int, k: int) -> tuple[Tensor, Tensor]:
        stream = generator(seed, "toy", k)
        parts = []
        for centre in CENTRES[k]:
            noise = torch.randn(self.items, 2, generator=stream, dtype=torch.float64)
            parts.append(torch.tensor(centre, dtype=torch.float64) + 0.9 * noise)
        X = torch.cat(parts)
        y = torch.arange(2).repeat_interleave(self.items)
        return torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], dim=1), y


def _mean(parts: Any) -> float:
    return float(torch.cat(list(parts)).mean())
