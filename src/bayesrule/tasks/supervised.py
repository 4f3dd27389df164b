"""Supervised learning: learn q from (input, target) pairs, evaluate it on held-out ones."""

from __future__ import annotations

from bayesrule.models import count_parameters
from bayesrule.posteriors import save_posterior
from bayesrule.pretrained import checkpoint_version
from bayesrule.tasks.evaluate import Evaluation, evaluate, evaluate_split
from bayesrule.tasks.inference import make_inference
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["Supervised"]


class Supervised(Task):
    """Classification, regression or language modelling, as the data's kind says."""

    def run(self, context: Context) -> Outcome:
        """Learn, save the posterior, evaluate."""
        problem = Problem.from_context(context)
        inference = make_inference(context.config["posterior"])
        learnt = inference.learn(problem, measure=lambda now: _measure(problem, now))
        details = {
            "data": problem.data.describe(),
            "parameters": count_parameters(learnt.model),
            "steps": problem.total_steps(),
            "seconds_per_epoch": problem.seconds_per_epoch(),
        }
        if (checkpoint := context.config["model"].get("checkpoint")) is not None:
            package = checkpoint_version(checkpoint)
            details["checkpoint"] = {"name": checkpoint, "package": package}
        if not context.writer:
            return Outcome({}, details)
        save_posterior(learnt.posterior, context.folder.path)
        self.keep(context, learnt)
        evaluation = self.evaluate(problem, learnt)
        return Outcome(evaluation.metrics, {**details, "curves": evaluation.curves})

    def keep(self, context: Context, learnt: Learnt) -> None:
        """Leave further files of what was learnt in the run's folder; none here."""
        del context, learnt

    def evaluate(self, problem: Problem, learnt: Learnt) -> Evaluation:
        """Return the metrics of what was learnt; a paper's own task may add to them."""
        return evaluate(problem, learnt)


def _measure(problem: Problem, learnt: Learnt) -> dict[str, float]:
    """Return the metrics during training: on the validation split, else the test split."""
    out = Evaluation()
    name, split = ("val", problem.data.val) if problem.data.val else ("test", problem.data.test)
    evaluate_split(problem, learnt, name, split, out)
    return out.metrics
