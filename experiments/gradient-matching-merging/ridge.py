"""Ridge regression on real data, where equation 5 with full matrices is exact (claims C5 and C6).

::

    lbar_t(w) = 1/2 ||X_t w - y_t||^2,    theta_0 = argmin of the base rows' loss + prior/2 ||w||^2
    theta_t   = argmin lbar_t + 1/2 ||w - theta_0||^2_{H_0}

Posteriors are `FullGaussian` values, merging is prior * prod (q_t / prior) ** alpha_t, removal the
same with alpha = -1. The oracle solves the normal equations of the joint, or of the remaining,
data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrule.config import Config, cache_dir
from bayesrule.data import load_data
from bayesrule.merging import MergeOptions, merge, merge_posteriors
from bayesrule.posteriors import FullGaussian
from bayesrule.seeding import generator
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.step_memory import StepVectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["Ridge"]


@dataclass
class Ridge(Task):
    """Relative errors ||m - oracle|| / ||oracle - theta_0||, by rule.

    ``joint/<rule>`` merges quarters of the rows (sorted by a feature that the seed draws) with
    factors drawn from (0.2, 1.8); ``removal/<rule>`` takes the last quarter out of a model of all
    rows. Rules: ``ug`` with full matrices, ``ug_diag``, ``ta``, ``fisher``, ``fisher_base``.

    Attributes:
        n_tasks: Number of quarters.
        base_size: Rows of the base model.
        prior: Precision of the ridge.
    """

    n_tasks: int
    base_size: int
    prior: float

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the linear systems that are solved, as steps; there is no network."""
        n, solved = int(config["data"]["train_size"]), self.n_tasks + 5
        return Requirements(n, solved, 11, StepVectors(0.0, 0.0))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Solve on random data."""
        g = torch.Generator().manual_seed(0)
        X = torch.randn(200, 11, generator=g).double()
        y = torch.randn(200, generator=g).double()
        metrics = self.errors(X, y, 0)
        assert all(value == value for value in metrics.values())
        return ["200 random rows"]

    def run(self, context: Context) -> Outcome:
        """Solve; well below a second."""
        config = context.config
        data = load_data(config["data"], seed=config["seed"], cache_dir=cache_dir())
        batch = data.train.whole()
        X = batch["input"].double()
        X = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], 1)
        metrics = self.errors(X, batch["target"].double().reshape(-1), config["seed"])
        return Outcome(metrics, {"data": data.describe(), "parameters": X.shape[1]})

    def errors(self, X: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        """Return the metrics.

        Args:
            X: Inputs (N, P) with a constant column last.
            y: Targets (N,).
            seed: Draws the base rows, the feature that sorts the others, and the factors.
        """
        g = generator(seed, "ridge")
        order = torch.randperm(len(X), generator=g)
        feature = int(torch.randint(X.shape[1] - 1, (), generator=g))
        alphas = (0.2 + 1.6 * torch.rand(self.n_tasks, generator=g)).tolist()
        base, rest = order[: self.base_size], order[self.base_size :]
        rest = rest[X[rest, feature].argsort()]
        rows = list(rest.tensor_split(self.n_tasks))
        eye = self.prior * torch.eye(X.shape[1], dtype=X.dtype)
        H0, b0 = X[base].mT @ X[base] + eye, X[base].mT @ y[base]
        tasks = [(X[r].mT @ X[r], X[r].mT @ y[r]) for r in rows]
        joint = torch.linalg.solve(
            H0 + sum(a * H for a, (H, _) in zip(alphas, tasks, strict=True)),
            b0 + sum(a * b for a, (_, b) in zip(alphas, tasks, strict=True)),
        )
        found = {
            f"joint/{rule}": value
            for rule, value in self._rules(H0, b0, tasks, alphas, joint).items()
        }
        Hall, ball = H0 + sum(H for H, _ in tasks), b0 + sum(b for _, b in tasks)
        H, b = tasks[-1]
        retrained = torch.linalg.solve(Hall - H, ball - b)
        found |= {
            f"removal/{rule}": value
            for rule, value in self._rules(Hall, ball, [(H, b)], [-1.0], retrained).items()
            if not rule.startswith("fisher")
        }
        return found

    def _rules(
        self,
        H0: Tensor,
        b0: Tensor,
        tasks: list[tuple[Tensor, Tensor]],
        alphas: list[float],
        oracle: Tensor,
    ) -> dict[str, float]:
        """Return the error of every rule, about the base model N(H_0^-1 b_0, H_0^-1)."""
        theta0 = torch.linalg.solve(H0, b0)
        models = [torch.linalg.solve(H0 + H, b0 + b) for H, b in tasks]
        prior = FullGaussian({"w": theta0}, H0)
        qs = [FullGaussian({"w": m}, H0 + H) for m, (H, _) in zip(models, tasks, strict=True)]
        scale = (oracle - theta0).norm()
        found = {
            "ug": float((merge_posteriors(prior, qs, alphas).mean["w"] - oracle).norm() / scale)
        }
        diagonal = {
            "ta": "task_arithmetic",
            "ug_diag": "gradient_matching",
            "fisher": "fisher",
            "fisher_base": "fisher_base",
        }
        for short, rule in diagonal.items():
            if rule == "fisher" and min(alphas) < 0:
                continue
            merged, _, _ = merge(
                rule,
                [{"w": m} for m in models],
                base={"w": theta0},
                curvatures=[{"w": H.diagonal()} for H, _ in tasks] if short != "ta" else (),
                base_curvature={"w": H0.diagonal()} if short not in ("ta", "fisher") else None,
                options=MergeOptions(alphas=alphas),
            )
            found[short] = float((merged["w"] - oracle).norm() / scale)
        return found
