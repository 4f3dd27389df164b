"""Squares of gradients as curvature: of whole minibatches (RMSprop, Adam), of single items (OGN).

For the summed loss, h = sum_i g_i^2 over all data is the diagonal of the empirical Fisher. With a
batch of M items and ghat = (N/M) sum_B g_i::

    E[(N/M) sum_B g_i^2] = h,        E[ghat^2] = (sum_i g_i)^2 + (N/M) N Var(g_i)

so that the square of a minibatch gradient is too large by about N/M, whatever the curvature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesrule.curvature import per_example_gradients
from bayesrule.models import count_parameters
from bayesrule.posteriors.params import flatten
from bayesrule.runs.statistics import spearman
from bayesrule.seeding import generator
from bayesrule.tasks.inference import make_inference
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["CurvatureBias"]


class CurvatureBias(Task):
    """Both estimates, averaged over batches, beside the full-batch sum of squares.

    For each batch size M: ``curvature/<estimate>_ratio_M<M>``, the median over parameters of
    estimate / h; ``curvature/<estimate>_error_M<M>``, the absolute log10 of that; and
    ``curvature/<estimate>_rank_M<M>``, Spearman's rank correlation with h. The estimates are
    ``sqgrad`` and ``gn``. Parameters whose gradient is zero for every item are left out.

    Args:
        trained: After training (the run's posterior and trainer), or at initialisation.
        batch_sizes: M.
        batches: Number of batches averaged over.
        noise_std: Noise of the likelihood (regression).
    """

    def __init__(
        self, trained: bool, batch_sizes: list[int], batches: int, noise_std: float
    ) -> None:
        self.trained, self.batch_sizes, self.batches = trained, batch_sizes, batches
        self.noise_std = noise_std

    def run(self, context: Context) -> Outcome:
        """Train if asked, then draw batches."""
        problem = Problem.from_context(context)
        if self.trained:
            model = make_inference(context.config["posterior"]).learn(problem).model
        else:
            model = problem.model()
        train = problem.data.train
        batch = train.batch(torch.arange(len(train)))
        grads = per_example_gradients(model, problem.likelihood.loss, batch)
        g_NP = flatten(grads, leading=1).double()
        metrics: dict[str, float] = {}
        for M in self.batch_sizes:
            stream = generator(context.config["seed"], "batches", M)
            metrics |= self._compare(g_NP, M, stream)
        details: dict[str, Any] = {
            "data": problem.data.describe(),
            "parameters": count_parameters(model),
        }
        return Outcome(metrics, details)

    def _compare(self, g_NP: Tensor, M: int, stream: torch.Generator) -> dict[str, float]:
        N = len(g_NP)
        h = g_NP.square().sum(0)
        live = h > 0
        g_NP, h = g_NP[:, live], h[live]
        estimates = {"sqgrad": torch.zeros_like(h), "gn": torch.zeros_like(h)}
        for _ in range(self.batches):
            rows = g_NP[torch.randperm(N, generator=stream)[:M]]
            estimates["sqgrad"] += (N / M * rows.sum(0)).square() / self.batches
            estimates["gn"] += N / M * rows.square().sum(0) / self.batches
        metrics = {}
        for name, estimate in estimates.items():
            ratio = float((estimate / h).median())
            metrics[f"curvature/{name}_ratio_M{M}"] = ratio
            metrics[f"curvature/{name}_error_M{M}"] = abs(
                float(torch.log10(torch.tensor(ratio, dtype=torch.float64)))
            )
            metrics[f"curvature/{name}_rank_M{M}"] = spearman(estimate.tolist(), h.tolist())
        return metrics
