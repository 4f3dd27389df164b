"""What a task is: an outer loop that turns a configuration into metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bayesrule.config import Config, accepted, locate, root_dir
from bayesrule.runs import RunFolder
from bayesrule.tasks.history import History
from bayesrule.tasks.schedule import planned_steps
from bayesrule.tasks.signals import StopRequest

__all__ = ["Context", "Outcome", "Task", "make_task"]


@dataclass
class Context:
    """What a task is given.

    Attributes:
        config: The run's configuration.
        folder: The run's folder; the task may leave files in it.
        history: Where rows of the history go.
        stop: The request to stop, by a signal.
        writer: Whether this process writes files (rank 0).
    """

    config: Config
    folder: RunFolder
    history: History
    stop: StopRequest
    writer: bool = True


@dataclass
class Outcome:
    """What a task gives back.

    Attributes:
        metrics: Summary metrics by name, ``<split>/<metric>@<rule>``.
        details: Further plain data for the record: data description, parameter count, curves.
    """

    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """An outer loop: what is done with q."""

    @abstractmethod
    def run(self, context: Context) -> Outcome:
        """Do the work, from the last checkpoint if there is one."""

    def planned_steps(self, trainer: Mapping[str, Any], n_train: int, trainings: int) -> int:
        """Return the optimiser steps of one run, from declared numbers alone.

        Args:
            trainer: The trainer's options.
            n_train: Number of training items.
            trainings: Trainings that the posterior takes (see `bayesrule.tasks.inference`).
        """
        return trainings * planned_steps(trainer, n_train)


def make_task(config: Config) -> Task:
    """Return the task of a configuration."""
    options = config["task"]
    target = locate(options["_target_"], "task._target_", root_dir())
    return target(**accepted(target, options))
