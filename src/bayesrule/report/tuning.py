"""A search's outcome for the terminal, from its summary alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bayesrule.report.text import columns_text, format_number, format_spread

__all__ = ["tuning_report"]


def tuning_report(summary: Mapping[str, Any], rows: int = 5) -> str:
    """Return the best settings, what each dimension matters, and the words to copy.

    Args:
        summary: The content of a search's ``study.json``.
        rows: How many settings are shown.
    """
    keys = [each["key"] for each in summary["dimensions"]]
    best: Sequence[Mapping[str, Any]] = summary["best"]
    parts = [_counts(summary["counts"])]
    if best:
        header = ["trial", summary["metric"], *keys, "runs"]
        table = [
            [
                str(trial["number"]),
                format_spread([float(value) for value in trial["values"]]),
                *(_cell(trial["params"][key]) for key in keys),
                " ".join(str(run)[:8] for run in trial["runs"]),
            ]
            for trial in best[:rows]
        ]
        parts.append(columns_text(header, table, left=(len(header) - 1,)))
    if summary["importances"]:
        found = ", ".join(f"{key} {value:.0%}" for key, value in summary["importances"].items())
        parts.append(f"importance (share of the variance over all settings): {found}")
    if best:
        seeds = ",".join(str(seed) for seed in summary["seeds"])
        sweep = "-m " if len(summary["seeds"]) > 1 else ""
        words = shlex.join([*best[0]["overrides"], f"seed={seeds}"])
        parts.append(f"the best again: bayesrule train {sweep}{words}")
    return "\n\n".join(parts)


def _counts(counts: Mapping[str, int]) -> str:
    order = ("complete", "pruned", "diverged", "fail", "running")
    names = {"fail": "failed", "running": "still running"}
    told = [f"{counts[key]} {names.get(key, key)}" for key in order if counts.get(key)]
    return f"trials: {', '.join(told) or 'none'}"


def _cell(value: Any) -> str:
    return format_number(value) if isinstance(value, (int, float)) else str(value)
