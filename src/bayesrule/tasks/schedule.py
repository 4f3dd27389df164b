"""Learning-rate factors as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["learning_rate_factor"]


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
