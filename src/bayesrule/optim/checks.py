"""Range checks of optimiser options, with the option's name and group in the message."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

__all__ = ["check", "check_groups"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def check(*bounds: str) -> tuple[str, ...]:
    """Return bounds such as ``check(">= 0", "< 1")`` for `check_groups`."""
    return bounds


def check_groups(groups: list[dict[str, Any]], **bounds: tuple[str, ...]) -> None:
    """Raise `ValueError` when an option of a parameter group is missing or out of range.

    Args:
        groups: The optimiser's parameter groups.
        **bounds: Per option, what `check` returned.
    """
    for index, group in enumerate(groups):
        for name, conditions in bounds.items():
            value = group[name]
            number = float(value)
            for condition in conditions:
                symbol, limit = condition.split()
                if math.isnan(number) or not _OPERATORS[symbol](number, float(limit)):
                    where = f" (parameter group {index})" if len(groups) > 1 else ""
                    rule = " and ".join(conditions)
                    raise ValueError(f"{name} must be {rule}, got {value}{where}")
