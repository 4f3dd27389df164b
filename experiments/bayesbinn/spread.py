"""How far do predictions of posterior draws spread, near the training data and away from them?

Regression on one input: inside the largest gap between training inputs, and elsewhere between
them. Classification in the plane: at points of a grid that are far from every training input, and
at test inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayesrule.errors import ConfigError
from bayesrule.posteriors import Predictor, reestimate_batch_norm
from bayesrule.tasks.evaluate import Evaluation
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.supervised import Supervised

__all__ = ["Spread", "gap_of"]

GRID, MARGIN, FAR = 25, 1.0, 0.75  # points per side, border, distance: standardised inputs


def gap_of(train_N: Tensor) -> tuple[float, float]:
    """Return the ends of the largest interval between neighbouring training inputs."""
    ordered = train_N.sort().values
    index = int(ordered.diff().argmax())
    return float(ordered[index]), float(ordered[index + 1])


class Spread(Supervised):
    """Supervised learning that also measures the spread of its draws' predictions.

    Args:
        draws: Number of draws.
    """

    def __init__(self, draws: int = 20) -> None:
        self.draws = draws

    def evaluate(self, problem: Problem, learnt: Learnt) -> Evaluation:
        """Add ``spread/away`` and ``spread/near``: mean standard deviations over draws."""
        out = super().evaluate(problem, learnt)
        train = problem.data.train.batch(torch.arange(len(problem.data.train)))
        test = problem.data.test.batch(torch.arange(len(problem.data.test)))["input"]
        inputs_NI = train["input"]
        if problem.data.kind == "regression" and inputs_NI.shape[1] == 1:
            low, high = gap_of(inputs_NI[:, 0])
            x_N = test[:, 0]
            between = (x_N >= inputs_NI.min()) & (x_N <= inputs_NI.max())
            inside_gap = (x_N > low) & (x_N < high)
            near, away = test[between & ~inside_gap], test[inside_gap]
            self._keep_curve(problem, learnt, train, test, out)
        elif problem.data.kind == "classification" and inputs_NI.shape[1:] == (2,):
            near, away = test, _far_points(inputs_NI)
        else:
            raise ConfigError("the spread is measured for one real input, or two with classes")
        for name, points in (("near", near), ("away", away)):
            spread = self._values(problem, learnt, points).std(0)
            out.metrics[f"spread/{name}"] = float(spread.mean())
        return out

    def _values(
        self, problem: Problem, learnt: Learnt, x: Tensor, rule: str | None = None
    ) -> Tensor:
        """Return the predictions of every draw at `x`: means, or class probabilities."""
        own = problem.config["metrics"]["own_norms"]
        predictor = Predictor(
            learnt.model,
            learnt.posterior,
            problem.likelihood,
            rule or f"mc{self.draws}",
            problem.config["seed"],
            (lambda s: reestimate_batch_norm(learnt.model, s, problem.train_batches))
            if own
            else None,
        )
        outputs_SBC, _ = predictor.outputs(x)
        if len(outputs_SBC) == 1 and rule is None:  # a point: its draws are all alike
            outputs_SBC = outputs_SBC.expand(self.draws, *outputs_SBC.shape[1:])
        if problem.data.kind == "classification":
            return problem.likelihood.log_probs(outputs_SBC).exp()
        return outputs_SBC

    def _keep_curve(
        self,
        problem: Problem,
        learnt: Learnt,
        train: dict[str, Tensor],
        x: Tensor,
        out: Evaluation,
    ) -> None:
        """Keep what the figure draws: data, mean and spread of the draws, the plug-in."""
        rule = "mode" if learnt.posterior.own_mode else "mean"
        values_SB = self._values(problem, learnt, x)[..., 0]
        out.curves["spread/prediction"] = {
            "x": x[:, 0].tolist(),
            "mean": values_SB.mean(0).tolist(),
            "std": values_SB.std(0).tolist(),
            "plug_in": self._values(problem, learnt, x, rule)[0, :, 0].tolist(),
            "train_x": train["input"][:, 0].tolist(),
            "train_y": train["target"].reshape(-1).tolist(),
            "gap": list(gap_of(train["input"][:, 0])),
        }


def _far_points(train_N2: Tensor) -> Tensor:
    """Return the points of a grid around the data that are far from every training input."""
    low, high = train_N2.min(0).values - MARGIN, train_N2.max(0).values + MARGIN
    sides = [torch.linspace(float(a), float(b), GRID) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*sides).to(train_N2.dtype)
    return grid[torch.cdist(grid, train_N2).min(1).values > FAR]
