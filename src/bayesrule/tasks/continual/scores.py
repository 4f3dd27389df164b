"""What is measured on a stream: matrices of scores, and the numbers that sum them up.

After each task t every task j seen so far is predicted on its test items, and the next one as well
(forward transfer): a[t, j], under every prediction rule. Names in a record, with T tasks:

=============================  ==================================================================
``test/acc@mean``              mean over all tasks after the last one; also ``nll`` and ``ece``
``test/forgetting@mean``       and ``forgetting_max``, ``bwt``, ``fwt``, ``learning_acc``,
                               ``learning_acc_new``, ``incremental_acc`` (`metrics.continual`)
``test/task_il_acc@mean``      class-incremental streams: within each item's own task
``test/class_il_acc@mean``     task-incremental streams: over the classes of all tasks
``task<j>/acc@mean``           task j after the last one; also ``nll`` and ``ece``
``after<t>/acc@mean``          mean over tasks 1..t after task t
``memory/items``, ``/bytes``   what is kept of the past at the end
=============================  ==================================================================

The matrices themselves are in the record's details (``continual``), as are predictions on a grid
where inputs are points of the plane and there are two outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesrule.data import Experience, Split, Stream
from bayesrule.likelihoods import Head
from bayesrule.metrics import (
    accuracy,
    average_accuracy,
    backward_transfer,
    ece,
    forgetting,
    forgetting_max,
    forward_transfer,
    incremental_accuracy,
    learning_accuracy,
    nll,
)
from bayesrule.tasks.evaluate import Evaluation, predict_split
from bayesrule.tasks.problem import Learnt, Problem

__all__ = ["Scores", "rules_of", "score_task"]

Row = list[float | None]
_SCORES = ("acc", "nll", "ece")
GRID = 40
SHOWN = 80


def rules_of(problem: Problem, learnt: Learnt) -> list[str]:
    """Return the prediction rules of a run: plug-in, averages, linearised if asked for."""
    cfg = problem.config["metrics"]
    own_mode = ["mode"] if learnt.posterior.own_mode else []
    drawn = [f"mc{k}" for k in sorted({*cfg["prefixes"], cfg["mc_samples"]})]
    if learnt.posterior.support() is not None:  # the average of a point mass is itself
        drawn = [f"mc{cfg['mc_samples']}"]
    return ["mean", *own_mode, *drawn, *(["lin"] if cfg["linearised"] else [])]


def score_task(
    problem: Problem, learnt: Learnt, stream: Stream, task: Experience, split: Split, rule: str
) -> dict[str, float]:
    """Return the scores of one task's items under one rule.

    Args:
        problem: Its likelihood is the base's.
        learnt: Network and posterior.
        stream: The stream.
        task: The experience whose items these are.
        split: Its test or validation items.
        rule: ``mean``, ``mode``, ``mc<K>`` or ``lin``.
    """
    bins = max(problem.config["metrics"]["ece_bins"][:1], default=15)
    own_head = replace(problem, likelihood=Head(problem.likelihood, task.columns))
    found = predict_split(own_head, learnt, split, rule)
    log_probs, targets = found.log_probs_NK, found.targets
    assert log_probs is not None
    out = {
        "acc": float(accuracy(log_probs, targets)),
        "nll": float(nll(log_probs, targets)),
        "ece": float(ece(log_probs, targets, bins)),
    }
    if stream.incremental == "class":
        out["task_il_acc"] = _within(log_probs, targets, task.own)
    if stream.incremental == "task" and rule != "lin":
        every = predict_split(problem, learnt, task.in_columns(split), rule)
        assert every.log_probs_NK is not None
        out["class_il_acc"] = float(accuracy(every.log_probs_NK, every.targets))
    return out


def _within(log_probs_NK: Tensor, targets: Tensor, own: Sequence[int]) -> float:
    """Return the accuracy among some classes: p(y | x, y in own)."""
    columns = torch.tensor(own)
    best = columns[log_probs_NK[:, columns].argmax(-1)]
    return float((best == targets).double().mean())


class Scores:
    """The matrices of a run, row by row; plain data, saved with the position.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.n_tasks = len(stream.tasks)
        self.rows: dict[str, list[Row]] = {}
        self.initial: dict[str, Row] = {}
        self.val: dict[str, Row] = {}
        self.memory: list[dict[str, int]] = []
        self.grids: dict[str, Any] = {}

    # ----------------------------------------------------------------- measure

    def before(self, problem: Problem, learnt: Learnt) -> None:
        """Measure the untrained network on every task but the first."""
        self.initial = self.row(problem, lambda j: learnt, range(1, self.n_tasks), "test")

    def after(
        self, problem: Problem, learnt: Callable[[int], Learnt], t: int, items: int, nbytes: int
    ) -> dict[str, float]:
        """Add the row of task t (from 0) and return it by name, for the history.

        Args:
            problem: Its likelihood is the base's.
            learnt: Gives what predicts task j.
            t: The task.
            items: Items that are kept of the past.
            nbytes: Bytes that the past takes.
        """
        seen = range(min(t + 2, self.n_tasks))
        row = self.row(problem, learnt, seen, "test")
        for name, values in row.items():
            self.rows.setdefault(name, [])
            self.rows[name].append(values)
        if t == self.n_tasks - 1 and self.stream[-1].val is not None:
            self.val = self.row(problem, learnt, range(self.n_tasks), "val")
        self.memory.append({"items": items, "bytes": nbytes})
        self._add_grid(problem, learnt(t))
        named = {
            f"task{j + 1}/{name}": value
            for name, values in row.items()
            for j, value in enumerate(values[: t + 1])
            if value is not None
        }
        return {**named, "memory/items": items, "memory/bytes": nbytes}

    def evaluation(self, problem: Problem, learnt: Learnt) -> Evaluation:
        """Return the scores of one posterior on all tasks, as in `summary`'s last row."""
        out = Evaluation()
        for part in ("test", *(["val"] if self.stream[-1].val is not None else [])):
            row = self.row(problem, lambda j: learnt, range(self.n_tasks), part)
            for name, values in row.items():
                out.metrics[f"{part}/{name}"] = float(_tensor([values]).mean())
                if part == "test" and name.partition("@")[0] in _SCORES:
                    for j, value in enumerate(values):
                        assert value is not None
                        out.metrics[f"task{j + 1}/{name}"] = value
        return out

    def row(
        self, problem: Problem, learnt: Callable[[int], Learnt], tasks: range, part: str
    ) -> dict[str, Row]:
        """Return scores by ``<metric>@<rule>``, an entry for each task, None where not measured."""
        out: dict[str, Row] = {}
        for j in tasks:
            task, own = self.stream.tasks[j], learnt(j)
            split = task.test if part == "test" else task.val
            assert split is not None
            point = own.posterior.support() is not None
            for rule in rules_of(problem, own):
                values: Mapping[str, float | None]
                if point and rule.startswith("mc"):
                    values = {
                        name.partition("@")[0]: row[j]
                        for name, row in out.items()
                        if name.endswith("@mean")
                    }
                else:
                    values = score_task(problem, own, self.stream, task, split, rule)
                for name, value in values.items():
                    row = out.setdefault(f"{name}@{rule}", [None] * self.n_tasks)
                    row[j] = value
        return out

    def _add_grid(self, problem: Problem, learnt: Learnt) -> None:
        """Keep p(y = 1) on a grid of the plane, where inputs are its points and outputs two."""
        if self.stream.input_shape != (2,) or self.stream.n_outputs != 2:
            return
        if not self.grids:
            points = torch.cat([task.test.whole()["input"] for task in self.stream.tasks])
            low, high = points.amin(0), points.amax(0)
            margin = 0.15 * (high - low)
            axes = [
                torch.linspace(float(a), float(b), GRID)
                for a, b in zip(low - margin, high + margin, strict=True)
            ]
            self.grids = {"x": axes[0].tolist(), "y": axes[1].tolist(), "p": {}}
            self.grids["points"] = [_shown(task.test) for task in self.stream.tasks]
        x, y = (torch.tensor(self.grids[name]) for name in ("x", "y"))
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
        split = _Points(points)
        for rule in rules_of(problem, learnt):
            found = predict_split(problem, learnt, split, rule).log_probs_NK
            assert found is not None
            p = found.exp()[:, 1].view(GRID, GRID).double()
            self.grids["p"].setdefault(rule, []).append(p.mul(1e4).round().div(1e4).tolist())

    # ------------------------------------------------------------------ sum up

    def summary(self) -> dict[str, float]:
        """Return the metrics of a finished stream; what is undefined is left out."""
        out: dict[str, float] = {}
        for name, rows in self.rows.items():
            metric, _, rule = name.partition("@")
            a = _tensor(rows)
            out[f"test/{name}"] = average_accuracy(a)
            if metric in _SCORES:
                out |= {f"task{j + 1}/{name}": float(a[-1, j]) for j in range(self.n_tasks)}
            if metric == "acc":
                initial = _tensor([self.initial.get(name, [None] * self.n_tasks)])[0]
                out |= self._accuracies(a, initial, rule)
        for name, row in self.val.items():
            out[f"val/{name}"] = float(_tensor([row]).mean())
        out |= {f"memory/{key}": float(value) for key, value in self.memory[-1].items()}
        return {name: value for name, value in out.items() if math.isfinite(value)}

    def _accuracies(self, a: Tensor, initial: Tensor, rule: str) -> dict[str, float]:
        """Return what a matrix of accuracies is summed up by."""
        values = {
            "forgetting": forgetting(a),
            "forgetting_max": forgetting_max(a),
            "bwt": backward_transfer(a),
            "fwt": forward_transfer(a, initial),
            "learning_acc": learning_accuracy(a),
            "learning_acc_new": float(a.diagonal()[1:].mean()) if self.n_tasks > 1 else math.nan,
            "incremental_acc": incremental_accuracy(a),
        }
        after = {
            f"after{t + 1}/acc@{rule}": float(a[t, : t + 1].mean()) for t in range(self.n_tasks)
        }
        return {**{f"test/{key}@{rule}": value for key, value in values.items()}, **after}

    def details(self) -> dict[str, Any]:
        """Return the matrices and grids for the record."""
        found = {"matrices": self.rows, "initial": self.initial, "memory": self.memory}
        return {**found, "grid": self.grids} if self.grids else found

    # ------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return everything measured so far, as plain data."""
        names = ("rows", "initial", "val", "memory", "grids")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)


def _tensor(rows: Sequence[Row]) -> Tensor:
    """Return rows as float64; NaN where nothing was measured."""
    return torch.tensor(
        [[math.nan if value is None else value for value in row] for row in rows],
        dtype=torch.float64,
    )


def _shown(split: Split) -> list[list[float]]:
    """Return some items of the plane as [x, y, target]."""
    batch = split.batch(torch.arange(min(SHOWN, len(split))))
    rows = torch.cat([batch["input"], batch["target"][:, None]], 1).double()
    return rows.mul(1e4).round().div(1e4).tolist()  # type: ignore[no-any-return]


class _Points(Split):
    """Points to predict, without targets."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    @property
    def targets(self) -> Tensor:
        return torch.zeros(len(self.points), dtype=torch.int64)

    def batch(self, indices: Tensor, epoch: int | None = None) -> dict[str, Any]:
        return {"input": self.points[indices], "target": self.targets[indices], "index": indices}

    def subset(self, indices: Tensor) -> Split:
        return _Points(self.points[indices])

    def digest(self) -> str:
        return ""
