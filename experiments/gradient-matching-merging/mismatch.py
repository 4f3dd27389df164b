"""Gradient mismatch beside the distance to joint training, as tasks are added (claim C1).

For the merged model m of the first n tasks, alpha = 1::

    mismatch = || H_0 (m - theta_0) + sum_t grad lbar_t(m) ||
    gap      = mean over test inputs of KL( p(. | joint_n) || p(. | m) )

The mismatch is the gradient of the objective that joint training on those tasks minimises; it
vanishes at joint_n. For task arithmetic it is, by equation 2, the norm of the summed differences
grad lbar_t(m) - grad lbar_t(theta_t) in equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesrule.data import Split
from bayesrule.merging import MergeOptions, merge
from bayesrule.posteriors import Params, eval_mode
from bayesrule.runs.statistics import spearman
from bayesrule.tasks.merging import Ingredients, Merging, Parts
from bayesrule.tasks.merging.task import log_probs
from bayesrule.tasks.module import forward
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.task import Outcome

__all__ = ["RULES", "Mismatch"]

RULES = {"ta": "task_arithmetic", "ug": "gradient_matching"}


class Mismatch(Merging):
    """Metrics ``n<k>/mismatch_<rule>`` and ``n<k>/gap_<rule>``, and their rank correlation."""

    def evaluate(self, problem: Problem, parts: Parts, made: Ingredients) -> Outcome:
        """Compare both rules with joint training on the first 1, 2, ... tasks."""
        model = problem.model()
        metrics: dict[str, float] = {}
        pairs: list[tuple[float, float]] = []
        (test,) = parts.tests.values()
        for n in range(1, len(parts.tasks) + 1):
            joint = log_probs(problem, model, made.joint[n], test)
            metrics[f"n{n}/mismatch_joint"] = self.mismatch(problem, parts, made, made.joint[n], n)
            for short, rule in RULES.items():
                merged, _, _ = merge(
                    rule,
                    made.models[:n],
                    base=made.base,
                    curvatures=made.curvatures[:n] if short == "ug" else (),
                    base_curvature=made.base_curvature if short == "ug" else None,
                    options=MergeOptions(alphas=[1.0] * n),
                )
                found = self.mismatch(problem, parts, made, merged, n)
                gap = _kl(joint, log_probs(problem, model, merged, test))
                metrics |= {f"n{n}/mismatch_{short}": found, f"n{n}/gap_{short}": gap}
                pairs.append((found, gap))
        metrics["rank/mismatch_gap"] = spearman(*zip(*pairs, strict=True))
        return Outcome(metrics)

    def mismatch(
        self, problem: Problem, parts: Parts, made: Ingredients, at: Params, n: int
    ) -> float:
        """Return the gradient norm of the joint objective of the first n tasks."""
        model = problem.model()
        model.load_state_dict(at, strict=False)
        total = {k: made.base_curvature[k] * (at[k] - made.base[k]) for k in at}
        for part in parts.tasks[:n]:
            for name, g in _summed_gradient(problem, model, part.train).items():
                total[name] = total[name] + g
        return float(sum(t.double().square().sum() for t in total.values())) ** 0.5


def _summed_gradient(problem: Problem, model: nn.Module, split: Split) -> Params:
    """Return the gradient of the summed loss."""
    model.zero_grad()
    with eval_mode(model), torch.enable_grad():
        for batch in problem.batches(split):
            problem.likelihood.nll(forward(model, batch["input"]), batch["target"]).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _kl(left_NK: Tensor, right_NK: Tensor) -> float:
    left, right = left_NK.double(), right_NK.double()
    return float((left.exp() * (left - right)).sum(-1).mean())
