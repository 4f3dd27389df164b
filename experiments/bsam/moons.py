"""The paper's two-dimensional illustration: is the predictive entropy large far from the data?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesrule.posteriors import predict
from bayesrule.tasks.evaluate import Evaluation
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.supervised import Supervised

__all__ = ["FarEntropy", "circle"]

GRID = 41  # points a side of the grid that the figure is drawn from


def circle(radius: float, points: int = 200) -> Tensor:
    """Return points of a circle around the origin, (points, 2)."""
    angle = torch.arange(points) * (2.0 * math.pi / points)
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


class FarEntropy(Supervised):
    """Supervised learning in the plane, with entropies on a circle and at the training points.

    Adds ``far/entropy@<rule>`` (mean over a circle of this radius), ``inside/entropy@<rule>`` (mean
    over the training inputs) and ``far/excess@<rule>``, their difference, all in nats; and the
    curve ``grid/entropy@<rule>``, the entropy on a square of twice the radius.

    Args:
        radius: Of the circle, in units of the inputs' standard deviation.
    """

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def evaluate(self, problem: Problem, learnt: Learnt) -> Evaluation:
        """Return the metrics of supervised learning and the entropies."""
        out = super().evaluate(problem, learnt)
        axis = torch.linspace(-self.radius, self.radius, GRID)
        grid = torch.cartesian_prod(axis, axis)
        inside = torch.cat([batch["input"] for batch in problem.train_batches()])
        for rule in ("mean", f"mc{problem.config['metrics']['mc_samples']}"):
            far = self._entropy(problem, learnt, circle(self.radius), rule).mean()
            near = self._entropy(problem, learnt, inside, rule).mean()
            out.metrics[f"far/entropy@{rule}"] = float(far)
            out.metrics[f"inside/entropy@{rule}"] = float(near)
            out.metrics[f"far/excess@{rule}"] = float(far - near)
            values: list[Any] = self._entropy(problem, learnt, grid, rule).tolist()
            out.curves[f"grid/entropy@{rule}"] = {"axis": axis.tolist(), "values": values}
        out.curves["grid/points"] = {
            "inputs": inside.tolist(),
            "targets": torch.cat([b["target"] for b in problem.train_batches()]).tolist(),
        }
        return out

    def _entropy(self, problem: Problem, learnt: Learnt, inputs: Tensor, rule: str) -> Tensor:
        """Return the entropy of the predictive distribution at each input, in nats."""
        log_probs = predict(
            learnt.model,
            learnt.posterior,
            inputs,
            rule,
            problem.likelihood,
            seed=problem.config["seed"],
        )
        return torch.special.entr(log_probs.double().exp()).sum(-1)
