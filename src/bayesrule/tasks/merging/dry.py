"""A merge on random data: a step of every training, curvature, the rule, one prediction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bayesrule.config import Config
from bayesrule.data import DataBundle, random_like
from bayesrule.errors import NonFiniteLoss
from bayesrule.merging import METHODS
from bayesrule.tasks.dry_run import DryProblem, dry_config
from bayesrule.tasks.merging.parts import make_parts
from bayesrule.tasks.merging.training import Workshop

if TYPE_CHECKING:
    from bayesrule.tasks.merging.task import Merging
    from bayesrule.tasks.plan import ArmPlan

__all__ = ["dry_merging"]

_ITEMS = 4


def dry_merging(task: Merging, plan: ArmPlan, memory: float) -> list[str]:
    """Do all that a run does, small; see `Task.dry_run`."""
    config, notes = dry_config(plan, memory)
    config = _small(config)

    def data(name: str) -> DataBundle:
        own = config["data"] if name == config["data"]["name"] else task.other_data(config, name)
        return random_like(own, seed=config["seed"], n_items=_rows(config))

    own = data(config["data"]["name"])
    with DryProblem.temporary(plan, config, own) as problem:
        parts = make_parts(config["task"], own, data)
        workshop = Workshop(problem, parts)
        made = workshop.make()
        if METHODS[config["merge"]["method"]].curvature == "gram":
            made.grams = workshop.grams(made)
        metrics = task.evaluate(problem, parts, made).metrics
    losses = {name: value for name, value in metrics.items() if "nll@" in name}
    if wrong := [name for name, value in losses.items() if not math.isfinite(value)]:
        raise NonFiniteLoss(f"{wrong[0]} after one step of every training is not finite")
    return notes


def _small(config: Config) -> Config:
    """Return the configuration with few items of everything."""
    task = dict(config["task"])
    task["base_size"] = min(task["base_size"], _ITEMS)
    task["bad_size"] = min(task["bad_size"], 2)
    task["curvature_items"] = 2
    for phase in ("base", "joint_training"):
        task[phase] = {**task[phase], "batch_size": None}
    return {**config, "task": task, "metrics": {**config["metrics"], "ece_null_draws": 0}}


def _rows(config: Config) -> int:
    """Return how many random rows hold a few of every class."""
    if config["task"]["parts"] == "data_sets":
        return _ITEMS
    return max(100, 2 * int(config["data"]["n_outputs"]))
