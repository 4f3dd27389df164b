"""The linear studies as a task: where TD, target networks and functional regularisation converge.

Everything is computed exactly from the operators of `linear_td`; the seed moves what a finite
experiment has to choose (the mesh, starting points, random problems), so that a claim over seeds is
not about one choice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesrule.config import Config, locate
from bayesrule.seeding import generator
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["LinearAnalysis"]

Answer = tuple[dict[str, float], dict[str, Any]]
_ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def _linear_td(name: str) -> Any:
    """Return a name of the module beside this one, which is no package."""
    return locate(f"experiments.functional-q.linear_td.{name}", root=_ROOT)


class LinearAnalysis(Task):
    """One exact analysis.

    Args:
        analysis: ``disks``, ``examples``, ``random`` or ``four_rooms``.
        gamma: Discount.
        eta: Step of the recursions.
        period: T.
        kappas: Weights of functional regularisation; `disks` takes the first.
        mesh: `disks`: points per axis.
        problems: `random` and `four_rooms`: number of problems drawn.
        shown: `disks`: points per axis of the map that is kept for the figure.
    """

    def __init__(
        self,
        analysis: str,
        gamma: float,
        eta: float,
        period: int,
        kappas: Sequence[float],
        mesh: int,
        problems: int,
        shown: int,
    ) -> None:
        self.analysis, self.gamma, self.eta, self.period = analysis, gamma, eta, period
        self.kappas = list(kappas)
        self.mesh, self.problems, self.shown = mesh, problems, shown

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the number of problems that are solved; there is no network."""
        count = {"disks": self.mesh**2, "examples": 3}.get(self.analysis, self.problems)
        return Requirements(0, count, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Do the analysis on a coarse mesh or a few problems."""
        small = LinearAnalysis(
            self.analysis, self.gamma, self.eta, min(self.period, 100), self.kappas, 8, 5, 4
        )
        metrics, _ = small._answer(plan.config["seed"])
        assert metrics
        return ["mesh 8 x 8" if self.analysis == "disks" else "5 problems"]

    def run(self, context: Context) -> Outcome:
        """Compute; a matter of seconds, so nothing is checkpointed."""
        metrics, curves = self._answer(context.config["seed"])
        return Outcome(metrics, {"parameters": 0, "curves": curves})

    def _answer(self, seed: int) -> Answer:
        analyses: dict[str, Callable[[torch.Generator], Answer]] = {
            "disks": self._disks,
            "examples": self._examples,
            "random": self._random,
            "four_rooms": self._four_rooms,
        }
        metrics, curves = analyses[self.analysis](generator(seed, "linear", self.analysis))
        # the last digits of LAPACK's eigenvalues change from call to call (memory alignment)
        return {name: float(f"{value:.9g}") for name, value in metrics.items()}, curves

    # --------------------------------------------------------------------- disks

    def _disks(self, stream: torch.Generator) -> Answer:
        """Map the stability of all two-state problems with one feature.

        Angle: the feature (cos, sin); radius r: the sampling distribution (r, 1 - r). The seed
        shifts the mesh. Areas are fractions of the mesh's points.
        """
        shift = torch.rand(2, generator=stream, dtype=torch.float64)
        radii = self._radii(self.mesh, shift)
        stable = {name: radius < 1.0 for name, radius in radii.items()}  # NaN is not stable

        def area(where: Tensor) -> float:
            return float(where.double().mean())

        metrics = {f"disks/{name}_stable": area(where) for name, where in stable.items()}
        metrics["disks/td_not_tn"] = area(stable["td"] & ~stable["tn"])
        metrics["disks/td_not_fr"] = area(stable["td"] & ~stable["fr"])
        metrics["disks/fr_not_td"] = area(stable["fr"] & ~stable["td"])
        coarse = self._radii(self.shown, torch.full((2,), 0.5, dtype=torch.float64))
        bounded = {
            name: [[round(float(x), 6) for x in row] for row in radius.nan_to_num(9.0).clamp(max=9)]
            for name, radius in coarse.items()
        }
        return metrics, {"disks": bounded}

    def _radii(self, mesh: int, shift: Tensor) -> dict[str, Tensor]:
        """Return radii per update, shape (angles, distributions); p = 1, so all is scalar."""
        steps = torch.arange(mesh, dtype=torch.float64)
        angle = 2.0 * math.pi * (steps + shift[0]) / mesh
        r = (steps + shift[1]) / mesh
        base = _linear_td("two_state")(gamma=self.gamma).transitions
        phi = torch.stack([angle.cos(), angle.sin()], -1)[:, None, :]
        d = torch.stack([r, 1.0 - r], -1)[None, :, :]
        C = (d * phi * phi).sum(-1)
        B = (d * phi * (phi @ base.T)).sum(-1)
        A = C - self.gamma * B
        kappa = self.kappas[0]

        def periodic(inner: Tensor, limit: Tensor) -> Tensor:
            moved = (1.0 - self.eta * inner) ** self.period * (1.0 - limit) + limit
            return moved.abs() ** (1.0 / self.period)

        return {
            "td": (1.0 - self.eta * A).abs(),
            "tn": periodic(C, self.gamma * B / C),
            "fr": periodic(A + kappa * C, kappa * C / (A + kappa * C)),
        }

    # ------------------------------------------------------------------ examples

    def _examples(self, stream: torch.Generator) -> Answer:
        """Radii per update of the three examples, and how far the recursions themselves get.

        ``<example>/<method>_error`` is log10 |wbar - w*| / |w_0 - w*| after 50 periods from a
        random start, at least -12 (rounding is not far below); ``tn_best`` is the smallest radius
        of TN over T up to 10,000.
        """
        radius = _linear_td("spectral_radius")
        metrics: dict[str, float] = {}
        problems = {
            "two_state": _linear_td("two_state")(gamma=self.gamma),
            "three_state": _linear_td("three_state")(),
            "baird": _linear_td("baird")().reduced(),
        }
        periods = [*range(1, 100), *range(100, 1000, 50), *range(1000, 10001, 1000)]
        for name, problem in problems.items():
            start = torch.randn(problem.b.shape, generator=stream, dtype=torch.float64)
            metrics[f"{name}/td"] = radius(problem.td(self.eta))
            metrics[f"{name}/tn"] = _per_update(problem.tn(self.eta, self.period), self.period)
            metrics[f"{name}/tn_limit"] = radius(problem.tn(self.eta, None))
            metrics[f"{name}/tn_best"] = min(
                _per_update(problem.tn(self.eta, T), T) for T in periods
            )
            for kappa in self.kappas:
                moved = problem.fr(self.eta, self.period, kappa)
                metrics[f"{name}/fr_{kappa:g}"] = _per_update(moved, self.period)
            recursions = {"td": ("td", 0.0), "tn": ("tn", 0.0)}
            recursions |= {f"fr_{kappa:g}": ("fr", kappa) for kappa in self.kappas}
            for label, (method, kappa) in recursions.items():
                end = problem.simulate(
                    method, start, eta=self.eta, period=self.period, periods=50, kappa=kappa
                )
                away = [float((w - problem.fixed_point()).norm()) for w in (end, start)]
                metrics[f"{name}/{label}_error"] = math.log10(max(away[0] / away[1], 1e-12))
        return metrics, {}

    # -------------------------------------------------------------------- random

    def _random(self, stream: torch.Generator) -> Answer:
        """Fractions of random problems (3 states, 2 features) in which a method converges.

        For T -> infinity and a small step: TD where Re lambda > 0, TN where |1 - lambda| < 1, FR
        where Re lambda > -kappa (inner loop) and |kappa + lambda| > kappa (outer loop). Asymmetry
        is |B - B'| / |B| of the matrix that multiplies w - wbar in the extra term (Frobenius): zero
        where the term is a gradient.
        """
        draw = _linear_td("random_problem")
        counts = dict.fromkeys(("td", "tn", "td_not_tn", "td_not_fr", "fr_not_td", "fr_only"), 0)
        asymmetry = {"tn": 0.0, "fr": 0.0}
        for _ in range(self.problems):
            problem = draw(stream, states=3, features=2, gamma=self.gamma)
            lam = problem.modes()
            td, tn = bool((lam.real > 0).all()), bool(((1.0 - lam).abs() < 1.0).all())
            fr = [_fr_converges(lam, kappa) for kappa in self.kappas]
            counts["td"] += td
            counts["tn"] += tn
            counts["td_not_tn"] += td and not tn
            counts["td_not_fr"] += td and not all(fr)
            counts["fr_not_td"] += any(fr) and not td
            counts["fr_only"] += any(fr) and not td and not tn
            for name, matrix in (("tn", problem.B), ("fr", problem.C)):
                asymmetry[name] += float((matrix - matrix.T).norm() / matrix.norm())
        metrics = {f"random/{name}": count / self.problems for name, count in counts.items()}
        for name, total in asymmetry.items():
            metrics[f"random/asymmetry_{name}"] = total / self.problems
        return metrics, {}

    # ---------------------------------------------------------------- four rooms

    def _four_rooms(self, stream: torch.Generator) -> Answer:
        """Evaluate the random policy of the four rooms on its own data, T -> infinity.

        With one value per cell all modes are real, and the slowest one (about 1 - gamma) decides:
        TN keeps 1 - lambda of the error per period, FR kappa / (kappa + lambda), which is about 1 -
        lambda / kappa. ``fr_<kappa>_speed`` is the log radius over TN's (1 / kappa to first order).
        The same with 10 random features, drawn by the seed: ``features_...``.
        """
        matrices = locate("experiments.functional-q.four_rooms_mdp.four_rooms_mdp", root=_ROOT)
        mdp = matrices(self.gamma)
        eye = torch.eye(len(mdp.weights), dtype=torch.float64)
        features = torch.randn(len(eye), 10, generator=stream, dtype=torch.float64)
        metrics: dict[str, float] = {}
        for prefix, phi in (("", eye), ("features_", features)):
            problem = _linear_td("LinearProblem")(
                phi, mdp.weights, mdp.chain, mdp.rewards, self.gamma
            )
            tn = _linear_td("spectral_radius")(problem.tn(self.eta, None))
            metrics[f"four_rooms/{prefix}tn"] = tn
            for kappa in self.kappas:
                fr = _linear_td("spectral_radius")(problem.fr(self.eta, None, kappa))
                metrics[f"four_rooms/{prefix}fr_{kappa:g}"] = fr
                metrics[f"four_rooms/{prefix}fr_{kappa:g}_speed"] = math.log(fr) / math.log(tn)
        return metrics, {}


def _per_update(operator: Tensor, period: int) -> float:
    return _linear_td("spectral_radius")(operator) ** (1.0 / period)


def _fr_converges(lam: Tensor, kappa: float) -> bool:
    """Return whether FR(T -> infinity) converges for whitened features and a small step."""
    inner = bool((lam.real > -kappa).all())
    return inner and bool(((kappa + lam).abs() > kappa).all())
