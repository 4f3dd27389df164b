"""Continual learning of permuted inputs with yesterday's posterior as prior (claim C4).

Task t permutes the inputs of one data set by its own fixed permutation. One network learns the
tasks in turn, each from the posterior of the one before, which is its prior as well (section 3.4 of
the paper) or, to compare, is not. A task's batch-normalisation statistics are estimated with the
binary weights when it ends and kept for it; the weights are shared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesrule.data import Split
from bayesrule.errors import ConfigError
from bayesrule.models import count_parameters
from bayesrule.posteriors import Posterior, reestimate_batch_norm, save_posterior
from bayesrule.seeding import generator
from bayesrule.tasks.evaluate import Evaluation, evaluate_split
from bayesrule.tasks.inference import Single, make_inference
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.schedule import learning_rate_factor, planned_steps
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["PermutedSplit", "PermutedTasks"]

_KEPT = re.compile(r"/(acc|nll|ece)@")


class PermutedSplit(Split):
    """A split whose inputs have their entries in another order.

    Args:
        base: The split.
        order: The permutation of the flattened entries.
    """

    def __init__(self, base: Split, order: Tensor) -> None:
        self.base, self.order = base, order

    def __len__(self) -> int:
        return len(self.base)

    @property
    def targets(self) -> Tensor:
        """The targets of all items."""
        return self.base.targets

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        """Return the permuted items at `indices`."""
        batch = self.base.batch(indices, epoch)
        x = batch["input"]
        return {**batch, "input": x.flatten(1)[:, self.order].view_as(x)}

    def subset(self, indices: Tensor) -> PermutedSplit:
        """Return the permuted split of the items at `indices`."""
        return PermutedSplit(self.base.subset(indices), self.order)

    def digest(self) -> str:
        """Return that of the items, which the permutation does not choose."""
        return self.base.digest()


class PermutedTasks(Task):
    """Learns permutations of one data set in turn.

    Args:
        n_tasks: Number of tasks.
        carry_prior: Whether the posterior of the task before is the prior, or lambda_0 = 0.
    """

    def __init__(self, n_tasks: int, carry_prior: bool) -> None:
        self.n_tasks, self.carry_prior = n_tasks, carry_prior

    def planned_steps(self, trainer: Mapping[str, Any], n_train: int, trainings: int) -> int:
        """Return the steps of all tasks."""
        return self.n_tasks * trainings * planned_steps(trainer, n_train)

    def run(self, context: Context) -> Outcome:
        """Learn the tasks, one resumable phase each; evaluate all seen ones after each.

        Raises:
            ConfigError: If the posterior is not learnt by one optimiser.
            Unsupported: If that optimiser cannot go on from a posterior of its own.
        """
        options = context.config["posterior"]
        if not isinstance(make_inference(options), Single):
            raise ConfigError("permuted tasks are learnt by one optimiser with a settable prior")
        problem = Problem.from_context(context)
        tasks = [self._task(problem, t) for t in range(self.n_tasks)]
        model = problem.model()
        self._check(problem, options)
        factor = learning_rate_factor(problem.config["trainer"], problem.total_steps())
        q: Posterior | None = None
        statistics: list[dict[str, Tensor]] = []
        out = Evaluation()
        for t, (train, _) in enumerate(tasks):
            # the same problem goes on: its place in the history is carried along
            problem = replace(problem, data=replace(problem.data, train=train))
            optimizer = problem.optimizer(model, options, t)
            if q is not None:
                optimizer.set_posterior(q, model)
                if self.carry_prior:
                    optimizer.set_prior(q, model)
            problem.fit(model, optimizer, f"task{t + 1}", member=t, factor=factor)
            q = optimizer.posterior(model)
            state = reestimate_batch_norm(model, q.mode_state(), problem.train_batches)
            statistics.append({n: v for n, v in state.items() if n not in q.names})
            if context.writer:
                self._evaluate(problem, Learnt(model, q), tasks, statistics, out)
        details = {
            "data": problem.data.describe(),
            "parameters": count_parameters(model),
            "steps": self.n_tasks * problem.total_steps(),
        }
        if context.writer:
            assert q is not None
            save_posterior(q.with_buffers(statistics[-1]), context.folder.path)
        return Outcome(out.metrics, details)

    def _check(self, problem: Problem, options: Mapping[str, Any]) -> None:
        """Raise what a second task would raise, before the first is learnt."""
        model = problem.model()
        optimizer = problem.optimizer(model, options)
        q = optimizer.posterior(model)
        optimizer.set_posterior(q, model)
        if self.carry_prior:
            optimizer.set_prior(q, model)

    def _task(self, problem: Problem, t: int) -> tuple[Split, Split]:
        """Return the training and test split of task `t`, permuted alike."""
        size = problem.data.train.batch(torch.arange(1))["input"].numel()
        order = torch.randperm(size, generator=generator(problem.config["seed"], "permutation", t))
        data = problem.data
        return PermutedSplit(data.train, order), PermutedSplit(data.test, order)

    def _evaluate(
        self,
        problem: Problem,
        learnt: Learnt,
        tasks: list[tuple[Split, Split]],
        statistics: list[dict[str, Tensor]],
        out: Evaluation,
    ) -> None:
        """Add the metrics of every task seen so far, each with its own statistics.

        ``task<j>_after<t>/acc@mode`` and the like; at the end also ``final/acc@mode``, the mean
        over tasks, and ``first/acc@mode``, the mean over tasks when each was just learnt.
        """
        seen = len(statistics)
        for j in range(seen):
            own = Learnt(learnt.model, learnt.posterior.with_buffers(statistics[j]))
            found = Evaluation()
            evaluate_split(problem, own, f"task{j + 1}_after{seen}", tasks[j][1], found)
            out.metrics |= {
                name: value for name, value in found.metrics.items() if _KEPT.search(name)
            }
        if seen < self.n_tasks:
            return
        names = [n.partition("/")[2] for n in out.metrics if n.startswith("task1_after1/")]
        for name in names:
            for head, after in (("final", lambda j: self.n_tasks), ("first", lambda j: j)):
                values = [
                    out.metrics[f"task{j}_after{after(j)}/{name}"]
                    for j in range(1, self.n_tasks + 1)
                ]
                out.metrics[f"{head}/{name}"] = sum(values) / len(values)
