"""How long a training is, and its learning-rate factor as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bayesrule.errors import ConfigError

__all__ = ["learning_rate_factor", "planned_steps", "processes"]


def processes(cfg: Mapping[str, Any]) -> int:
    """Return the number of processes of a run.

    Args:
        cfg: ``devices``, ``nodes`` and ``batch_size`` of the trainer.

    Raises:
        ConfigError: If they cannot share the global batch equally.
    """
    world = int(cfg["devices"]) * int(cfg["nodes"])
    if cfg["batch_size"] % world:
        raise ConfigError(
            f"trainer.batch_size={cfg['batch_size']} is the global batch and must be a "
            f"multiple of the {world} processes"
        )
    return world


def planned_steps(cfg: Mapping[str, Any], n_train: int) -> int:
    """Return the number of optimiser steps of one training.

    Args:
        cfg: ``epochs``, ``max_steps``, ``batch_size`` and ``drop_last`` of the trainer.
        n_train: Number of training items.
    """
    whole, rest = divmod(n_train, int(cfg["batch_size"]))
    steps = int(cfg["epochs"]) * (whole + (rest > 0 and not cfg["drop_last"]))
    return min(steps, int(cfg["max_steps"])) if cfg["max_steps"] else steps


def learning_rate_factor(cfg: Mapping[str, Any], total_steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate at step t = 0, 1, ..., total_steps - 1.

    A linear warm-up over W = round(warmup * total) steps, (t + 1) / W, is followed with
    u = (t - W) / (total - W) by

        cosine    final + (1 - final) (1 + cos(pi u)) / 2
        linear    1 + (final - 1) u
        step      gamma ** (number of milestones <= t / total)
        constant  1

    Args:
        cfg: ``schedule``, ``warmup``, ``final_lr``, ``milestones`` and ``gamma`` of the trainer.
        total_steps: Number of steps of the whole training.
    """
    warm = round(cfg["warmup"] * total_steps)
    final = cfg["final_lr"]

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        u = min(1.0, (step - warm) / max(1, total_steps - warm))
        if cfg["schedule"] == "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * u))
        if cfg["schedule"] == "linear":
            return 1.0 + (final - 1.0) * u
        if cfg["schedule"] == "step":
            passed = sum(step >= m * total_steps for m in cfg["milestones"])
            return float(cfg["gamma"] ** passed)
        return 1.0

    return factor
