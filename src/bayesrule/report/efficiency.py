"""Sample-efficiency curves: returns against environment steps, with stratified bootstrap bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesrule.report.drawing import Style, canvas, legend_above, note_below, plain_axes, save
from bayesrule.report.records import Records
from bayesrule.runs.bootstrap import BootstrapCurve, stratified_bootstrap

__all__ = ["sample_efficiency"]


def sample_efficiency(
    records: Records,
    studies: Sequence[str],
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    curve: str = "train/return",
    ylabel: str = "return",
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw returns against environment steps: a panel per study, and one over all of them.

    The panel of a study shows the mean over seeds of its returns. With several studies (one
    environment each) the last panel shows the interquartile mean of scores over all runs, where
    score = (return - low) / (high - low) with the two ends of the environment's configuration.
    Bands are 95 % stratified bootstrap intervals over seeds (and environments).

    Args:
        records: The runs.
        studies: The studies, one environment each, with the same arms.
        out: Folder for the files.
        arms: Which arms; None: those that all studies have.
        curve: Name of the curve in the records.
        ylabel: What it is, for people.
        labels: Names of arms for people.
        name: File name without ending; None: `<study>-efficiency`.
    """
    there = [study for study in studies if study in records.studies()]
    if not there:
        return []
    style = Style(records, there[0], labels)
    shared = [arm for arm in records.arms(there[0], arms) if _in_all(records, there, arm)]
    curves = {
        (study, arm): found
        for study in there
        for arm in shared
        if (found := _curves(records, study, arm, curve))
    }
    if not curves:
        return []
    scored = len(there) > 1 and all(_scale(records, study, shared[0]) for study in there)
    panels = [*there, *(["score"] if scored else [])]
    rows: list[tuple[object, ...]] = []
    with canvas(max(3.5 * len(panels), 4.4), 3.1) as figure:
        axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, panel in zip(axes_of, panels, strict=True):
            of_panel = there if panel == "score" else [panel]
            for arm in shared:
                runs = [curves[study, arm] for study in of_panel if (study, arm) in curves]
                if len(runs) < len(of_panel):
                    continue
                steps, band = _band(records, of_panel, arm, runs, panel == "score")
                color = style.color(arm)
                axes.fill_between(steps, band.low, band.high, color=color, alpha=0.18, linewidth=0)
                (line,) = axes.plot(steps, band.estimate, color=color, linestyle=style.dashes(arm))
                handles[arm] = line
                ends = zip(steps, band.estimate, band.low, band.high, strict=True)
                rows += [(panel, arm, int(step), *values) for step, *values in ends]
            plain_axes(axes, "environment steps", "score" if panel == "score" else ylabel)
            axes.set_title("all environments (IQM)" if panel == "score" else panel)
        legend_above(figure, list(handles.values()), [style.label(arm) for arm in handles])
        counts = [len(found) for found in curves.values()]
        seeds = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
        note_below(figure, f"{seeds} seeds per environment; band: 95 % stratified bootstrap")
        header = ["panel", "arm", "step", "estimate", "low", "high"]
        return save(figure, out, name or f"{there[0]}-efficiency", header, rows)


def _in_all(records: Records, studies: Sequence[str], arm: str) -> bool:
    return all(arm in records.arms(study) for study in studies)


def _curves(
    records: Records, study: str, arm: str, curve: str
) -> list[tuple[list[float], list[float]]]:
    """Return steps and values of every seed that has the curve."""
    found = records.curves(study, arm, curve).values()
    return [(list(one["step"]), list(one["value"])) for one in found if one["step"]]


def _scale(records: Records, study: str, arm: str) -> tuple[float, float] | None:
    """Return the returns that are scores 0 and 1 in a study's environment."""
    seed = records.seeds(study, arm)[0]
    env = records.record(study, arm, seed).config.get("env", {})
    low, high = env.get("score_low"), env.get("score_high")
    return None if low is None or high is None else (float(low), float(high))


def _band(
    records: Records,
    studies: Sequence[str],
    arm: str,
    found: Sequence[Sequence[tuple[list[float], list[float]]]],
    scored: bool,
) -> tuple[list[float], BootstrapCurve]:
    grid = sorted({step for runs in found for steps, _ in runs for step in steps})
    strata = []
    for study, runs in zip(studies, found, strict=True):
        low, high = (_scale(records, study, arm) or (0.0, 1.0)) if scored else (0.0, 1.0)
        values = [_on_grid(steps, value, grid) for steps, value in runs]
        strata.append([[(x - low) / (high - low) for x in value] for value in values])
    statistic: Any = "iqm" if scored else "mean"
    return grid, stratified_bootstrap(strata, statistic=statistic)


def _on_grid(steps: Sequence[float], values: Sequence[float], grid: Sequence[float]) -> list[float]:
    """Return a curve at every step of the grid; where no game ended, the value before it."""
    known = {step: value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}
    first = next(iter(known.values()), math.nan)
    out, last = [], first
    for step in grid:
        last = known.get(step, last)
        out.append(last)
    return out
