"""Two exact analyses: how few vectors carry the past's gradient, and what K-priors contain.

Optimal memory. For a generalised linear model with features Phi = U S V^T of rank R, the past's
gradient needs no more than R vectors v_r, which are no data points, with weights that depend on w::

    Phi^T [h(Phi w) - h(Phi w*)]  =  sum_r beta_r(w) v_r [h(v_r^T w) - h(v_r^T w*)]
    beta_r(w) = s_r u_r^T [h(Phi w) - h(Phi w*)] / [h(v_r^T w) - h(v_r^T w*)]

Special cases. With no memory, a K-prior is a Gaussian prior around w*; with a quadratic loss and
all data, it is the Gaussian posterior (Kalman's); with another model and no weight term, it is
knowledge distillation at temperature T; what is added can be removed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.corrections import Memory, select
from bayesrule.corrections.k_prior import DataTerm, KPrior
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.data import DataBundle, load_data, random_like
from bayesrule.errors import ConfigError
from bayesrule.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from bayesrule.seeding import generator
from bayesrule.tasks.adaptation.data import items_of, polynomial_features, pool_images
from bayesrule.tasks.adaptation.objective import WEIGHT, Objective, gradient, solve
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["Analyses"]

Answer = tuple[dict[str, float], dict[str, Any]]
_POINTS = 5  # random w at which gradients are compared
_SIZES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the rank, for the figure


class Analyses(Task):
    """One exact analysis on a classification set, odd against even.

    Args:
        analysis: ``optimal_memory`` or ``special_cases``.
        pool: Side of the squares of pixels that are averaged.
        degree: Of the polynomial features.
        strength: delta.
        temperature: Of the distillation.
    """

    def __init__(
        self, analysis: str, pool: int, degree: int, strength: float, temperature: float
    ) -> None:
        self.analysis, self.pool, self.degree = analysis, pool, degree
        self.strength, self.temperature = strength, temperature

    def check(self, config: Config) -> None:
        """Refuse a model or a posterior: the models here are linear."""
        if "model" in config or "posterior" in config:
            raise ConfigError("the analyses of k-priors take no model and no posterior")

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return one step; there is no network."""
        return Requirements(0, 1, 0, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Do the analysis on a few random items."""
        data = random_like(plan.config["data"], seed=plan.config["seed"], n_items=200)
        assert self._answer(plan.config["seed"], data)[0]
        return ["200 random items"]

    def run(self, context: Context) -> Outcome:
        """Compute; a matter of seconds, so nothing is checkpointed."""
        config = context.config
        self.check(config)
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        metrics, curves = self._answer(config["seed"], data)
        return Outcome(metrics, {"data": data.describe(), "parameters": 0, "curves": curves})

    def _answer(self, seed: int, data: DataBundle) -> Answer:
        items = items_of(data.train, "parity")
        x = polynomial_features(pool_images(items.input, self.pool), self.degree)
        stream = generator(seed, "k-priors", self.analysis)
        analyses: dict[str, Callable[[Tensor, Tensor, torch.Generator], Answer]] = {
            "optimal_memory": self._optimal_memory,
            "special_cases": self._special_cases,
        }
        return analyses[self.analysis](x, items.label, stream)

    def _fit(self, likelihood: Likelihood, x: Tensor, y: Tensor, C: int = 1) -> Tensor:
        zero = torch.zeros(C, x.shape[1], dtype=x.dtype)
        anchor = QuadraticAnchor({WEIGHT: zero}, self.strength)
        objective = Objective((DataTerm.of_labels(x, y),), anchor, likelihood)
        return solve(objective, zero, tolerance=1e-12)

    # ------------------------------------------------------------------ optimal memory

    def _optimal_memory(self, x: Tensor, y: Tensor, stream: torch.Generator) -> Answer:
        """Compare gradients from R and fewer singular vectors with those from as many points.

        Errors are relative to the past's gradient, means over random w around w*.
        """
        w_star = self._fit(Bernoulli(), x, y)[0]
        U, S, Vh = torch.linalg.svd(x, full_matrices=False)
        rank = int((1e-10 * S[0] < S).sum())
        logits = x @ w_star
        order = torch.randperm(len(x), generator=stream)
        sizes = sorted({max(1, round(share * rank)) for share in _SIZES})
        errors: dict[str, list[float]] = {"singular": [], "top": [], "random": []}
        scale = float(w_star.norm()) / len(w_star) ** 0.5
        points = [
            w_star + scale * torch.randn(len(w_star), generator=stream, dtype=x.dtype)
            for _ in range(_POINTS)
        ]
        for size in sizes:
            top = select("lambda_descend", size, target=y, logits=logits, balanced=False)
            found: dict[str, float] = dict.fromkeys(errors, 0.0)
            for w in points:
                moved = (x @ w).sigmoid() - logits.sigmoid()
                exact = x.mT @ moved
                near = {
                    "singular": _from_vectors(U, S, Vh, size, moved, w, w_star),
                    "top": x[top].mT @ moved[top],
                    "random": len(x) / size * x[order[:size]].mT @ moved[order[:size]],
                }
                for name, value in near.items():
                    found[name] += float((value - exact).norm() / exact.norm()) / _POINTS
            for name, value in found.items():
                errors[name].append(value)
        metrics = {
            "optimal/rank": float(rank),
            "optimal/share": rank / len(x),
            "optimal/gradient_error": errors["singular"][-1],
            "optimal/gradient_error_top": errors["top"][-1],
            "optimal/gradient_error_random": errors["random"][-1],
        }
        return metrics, {"optimal/errors": {"size": sizes, **errors}}

    # ------------------------------------------------------------------- special cases

    def _special_cases(self, x: Tensor, y: Tensor, stream: torch.Generator) -> Answer:
        """Return the largest deviation from each special case, relative to the weights' norm."""
        cut = len(x) // 5
        old, new = (x[cut:], y[cut:]), (x[:cut], y[:cut])
        metrics = {
            "special/weight_prior": self._weight_prior(old, new),
            "special/gaussian": self._gaussian(old, new),
            "special/distillation": self._distillation(x, stream),
            "special/add_remove": self._add_remove(old, new),
        }
        return metrics, {}

    def _adapt(
        self,
        likelihood: Likelihood,
        w_star: Tensor,
        memory: Tensor,
        extra: tuple[DataTerm, ...],
    ) -> Tensor:
        kept = Memory(memory, torch.zeros(len(memory)), (), memory @ w_star.mT)
        terms = (DataTerm.of_memory(kept, likelihood),) if len(memory) else ()
        anchor = QuadraticAnchor({WEIGHT: w_star}, self.strength)
        return solve(Objective((*extra, *terms), anchor, likelihood), w_star, tolerance=1e-12)

    def _weight_prior(self, old: Any, new: Any) -> float:
        """No memory: the stationary point of l(w) + delta/2 |w - w*|^2, written out."""
        w_star = self._fit(Bernoulli(), *old)
        w = self._adapt(Bernoulli(), w_star, old[0][:0], (DataTerm.of_labels(*new),))
        x, y = new
        grad = ((x @ w[0]).sigmoid() - y) @ x + self.strength * (w - w_star)[0]
        return float(grad.norm() / w.norm())

    def _gaussian(self, old: Any, new: Any) -> float:
        """Quadratic loss, all data: ridge regression on everything, in closed form."""
        (x, y), (more_x, more_y) = ((a, b.double()[:, None]) for a, b in (old, new))
        likelihood = Gaussian(1.0)
        w_star = self._fit(likelihood, x, y)
        w = self._adapt(likelihood, w_star, x, (DataTerm.of_labels(more_x, more_y),))
        all_x, all_y = torch.cat([x, more_x]), torch.cat([y, more_y])
        eye = torch.eye(all_x.shape[1], dtype=all_x.dtype)
        ridge = torch.linalg.solve(all_x.mT @ all_x + self.strength * eye, all_x.mT @ all_y)
        return float((w.mT - ridge).norm() / ridge.norm())

    def _distillation(self, x: Tensor, stream: torch.Generator) -> float:
        """Another model, no weight term: the gradient of T^2 KL(p_T || q_T), by autograd."""
        T, few = self.temperature, x[:100]
        teacher = few @ torch.randn(x.shape[1], 3, generator=stream, dtype=x.dtype)
        student = torch.randn(3, x.shape[1], generator=stream, dtype=x.dtype).requires_grad_()
        kept = Memory(few, torch.zeros(len(few)), (), teacher)
        prior = KPrior((DataTerm.of_memory(kept, Categorical(), 1.0, T),), None, Categorical())
        ours = gradient(
            Objective(prior.terms, QuadraticAnchor({WEIGHT: student.detach()}, 0.0), Categorical()),
            student.detach(),
        )
        theirs = T**2 * F.kl_div(
            (few @ student.mT / T).log_softmax(-1), (teacher / T).softmax(-1), reduction="sum"
        )
        (exact,) = torch.autograd.grad(theirs, student)
        return float((ours - exact).norm() / exact.norm())

    def _add_remove(self, old: Any, new: Any) -> float:
        """Add, then remove the same items, with everything in memory: w* is back."""
        w_star = self._fit(Bernoulli(), *old)
        added = self._adapt(Bernoulli(), w_star, old[0], (DataTerm.of_labels(*new),))
        everything = torch.cat([old[0], new[0]])
        back = self._adapt(Bernoulli(), added, everything, (DataTerm.of_labels(*new, -1.0),))
        return float((back - w_star).norm() / w_star.norm())


def _from_vectors(
    U: Tensor, S: Tensor, Vh: Tensor, size: int, moved: Tensor, w: Tensor, w_star: Tensor
) -> Tensor:
    """Return the gradient from the first `size` singular vectors as a memory with weights beta."""
    V = Vh[:size]
    response = (V @ w).sigmoid() - (V @ w_star).sigmoid()
    beta = S[:size] * (U[:, :size].mT @ moved) / response
    return (beta * response) @ V
