"""The relaxed Bayes objective of one-dimensional losses: Bayes, its relaxation, and SAM, exactly.

Let f(mu) = E_q[-loss] over the expectation parameters mu = (E theta, E theta^2) of a Gaussian q.
The paper replaces f by its Fenchel biconjugate f**, the largest convex function below it (sec. 3).
For q = N(m, v) conjugating twice gives, with point masses in the inner supremum::

    -f**(mu) = min_lambda max_t loss(t) + lambda_1 (t - m) + lambda_2 (t^2 - m^2 - v)
             = max { E_p[loss] : p any distribution with mean m and variance v }        relaxed

(the second line is the dual of the first, a linear programme). Hence with bayes(m) = E_q[loss]::

    bayes(m)  <=  relaxed(m)  <=  penalised(m) + 1/2,
    penalised(m) = max_eps loss(m + eps) - eps^2 / (2 v)

the last by lambda_2 = -1/(2 v), lambda_1 = m / v: the form that SAM takes. For quadratic losses f
is linear in mu, and the relaxation is exact. With eps* the maximiser of the penalised form,
loss(m + eps*) is the largest value in the ball of radius |eps*|: SAM's constrained form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linprog

from bayesrule.config import Config
from bayesrule.seeding import child_seed
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["Relaxation", "bayes", "penalised", "random_loss", "relaxed"]

Array = np.ndarray[Any, np.dtype[np.float64]]

GRID = np.linspace(-6.0, 6.0, 1201)
"""Values of theta over which suprema are taken."""


def random_loss(rng: np.random.Generator, theta: Array, bumps: int = 6) -> Array:
    """Return theta^2 / 20 minus random Gaussian bumps: sharp and flat minima, at every theta."""
    depth, centre = rng.uniform(0.3, 1.5, bumps), rng.uniform(-3.0, 3.0, bumps)
    width = np.exp(rng.uniform(np.log(0.15), np.log(1.2), bumps))
    wells = depth * np.exp(-((theta[..., None] - centre) ** 2) / (2.0 * width**2))
    out: Array = theta**2 / 20.0 - wells.sum(-1)
    return out


def bayes(loss: Any, mean: Array, variance: float, nodes: int = 160) -> Array:
    """Return E_q[loss] for q = N(mean, variance), by Gauss-Hermite quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    points = mean[:, None] + np.sqrt(variance) * x
    out: Array = loss(points) @ (w / w.sum())
    return out


def relaxed(values: Array, mean: Array, variance: float) -> Array:
    """Return max E_p[loss] over distributions p on the grid with this mean and variance."""
    out = []
    for m in mean:
        centred = GRID - m
        moments = np.stack([np.ones_like(GRID), centred, centred**2])
        found = linprog(-values, A_eq=moments, b_eq=[1.0, 0.0, variance], bounds=(0.0, None))
        if found.status != 0:
            raise RuntimeError(f"the linear programme at mean {m:.3f}: {found.message}")
        out.append(-found.fun)
    return np.array(out)


def penalised(values: Array, mean: Array, variance: float) -> tuple[Array, Array]:
    """Return max_eps loss(m + eps) - eps^2 / (2 variance) on the grid, and the maximisers eps*."""
    eps = GRID[None, :] - mean[:, None]
    objective = values[None, :] - eps**2 / (2.0 * variance)
    best = objective.argmax(1)
    rows = np.arange(len(mean))
    return objective[rows, best], eps[rows, best]


class Relaxation(Task):
    """Compares the objectives on a grid of means, for a loss drawn by the seed.

    Metrics: ``relaxation/above_bayes`` and ``relaxation/below_penalised``, the smallest of relaxed
    - bayes and of penalised + 1/2 - relaxed; ``relaxation/quadratic``, the largest
    |relaxed - bayes| of a quadratic loss; ``relaxation/constrained``, the largest amount by which
    the loss in the ball of radius |eps*| exceeds loss(m + eps*). Curves: all of them over m.

    Args:
        variance: v of q.
        means: Number of means between -3 and 3.
    """

    def __init__(self, variance: float, means: int) -> None:
        self.variance, self.means = variance, means

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return one parameter and no training."""
        return Requirements(n_train=0, steps=1, parameters=1, vectors=StepVectors(0.0, 0.0))

    def dry_run(self, plan: Any, memory: float) -> list[str]:
        """Compare the objectives at three means."""
        self._compare(0, 3)
        return []

    def run(self, context: Context) -> Outcome:
        """Compare the objectives."""
        metrics, curves = self._compare(context.config["seed"], self.means)
        return Outcome(metrics, {"curves": curves})

    def _compare(self, seed: int, means: int) -> tuple[dict[str, float], dict[str, Any]]:
        v, mean = self.variance, np.linspace(-3.0, 3.0, means)
        named = child_seed(seed, "loss")

        def loss(theta: Array) -> Array:
            return random_loss(np.random.default_rng(named), theta)

        values = loss(GRID)
        plain, upper = bayes(loss, mean, v), relaxed(values, mean, v)
        sharp, eps = penalised(values, mean, v)
        ball = np.abs(GRID[None, :] - mean[:, None]) <= np.abs(eps)[:, None] + 1e-12
        worst = np.where(ball, values, -np.inf).max(1)
        square = 0.5 * (GRID - 0.3) ** 2
        exact = 0.5 * ((mean - 0.3) ** 2 + v)
        metrics = {
            "relaxation/above_bayes": float((upper - plain).min()),
            "relaxation/below_penalised": float((sharp + 0.5 - upper).min()),
            "relaxation/quadratic": float(np.abs(relaxed(square, mean, v) - exact).max()),
            "relaxation/constrained": float((worst - np.interp(mean + eps, GRID, values)).max()),
        }
        curves = {
            "mean": mean.tolist(),
            "loss": loss(mean).tolist(),
            "bayes": plain.tolist(),
            "relaxed": upper.tolist(),
            "penalised": sharp.tolist(),
        }
        return metrics, {"relaxation/objectives": curves}
