"""Curves and comparisons, drawn from records: training, number of samples, arms side by side.

Every function writes `<name>.svg`, `<name>.png` and `<name>.csv` into a folder and returns their
paths. Arms without a finished run are left out; where nothing is left, nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.report.drawing import (
    Band,
    Style,
    band,
    canvas,
    draw_band,
    legend_above,
    metric_label,
    note_below,
    plain_axes,
    rule_label,
    save,
    seeds_note,
)
from bayesrule.report.names import mc_samples, parse_name
from bayesrule.report.records import Records
from bayesrule.runs import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison", "samples", "training"]

_Row = tuple[object, ...]


def _draw_band(axes: Axes, rows: Band, style: Style, arm: str, **line: Any) -> Any:
    """Draw mean and interval in an arm's style; return the line for a legend."""
    options = {"linestyle": style.dashes(arm), **line}
    if len(rows) == 1:  # a line of one point is invisible
        options |= {"marker": style.marker(arm), "markersize": 5}
    return draw_band(axes, rows, style.color(arm), **options)


def _epoch_values(
    records: Records, study: str, arm: str, metric: str, phase: str | None
) -> dict[float, list[float]]:
    """Return a metric's finite values over seeds by epoch (1 is the first)."""
    values: dict[float, list[float]] = {}
    for seed in records.seeds(study, arm):
        rows = [row for row in records.history(study, arm, seed) if metric in row]
        first = rows[0].get("phase") if rows else None
        for row in rows:
            if row.get("phase") == (phase or first):
                value = float(row[metric])
                if math.isfinite(value):
                    values.setdefault(float(row["epoch"]) + 1.0, []).append(value)
    return values


def training(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    metrics: Sequence[str] = ("train/epoch_loss", "test/nll@mean", "test/acc@mean"),
    phase: str | None = None,
    labels: Mapping[str, str] | None = None,
    log: Sequence[str] = (),
    x: str = "epoch",
    name: str | None = None,
) -> list[Path]:
    """Draw metrics against epochs, one panel per metric, a line per arm with a band over seeds.

    Args:
        records: The runs.
        study: The study.
        out: Folder for the files.
        arms: Which arms; None: all.
        metrics: Names in metrics.jsonl; a rule `mc` stands for each arm's largest `mc<K>`.
        phase: Which training of the run; None: the first (of an ensemble, its first member).
        labels: Names of arms for people.
        log: Metrics with a logarithmic axis.
        x: What the rows of the history count, for people.
        name: File name without ending; None: `<study>-training`.
    """
    style = Style(records, study, labels)
    curves: dict[tuple[str, str], Band] = {}
    for metric in metrics:
        for arm in records.arms(study, arms):
            stem, at, rule = metric.partition("@")
            full = stem + at + records.rule(study, arm, stem, rule)
            if rows := band(_epoch_values(records, study, arm, full, phase)):
                curves[metric, arm] = rows
    shown = [metric for metric in metrics if any(metric == one for one, _ in curves)]
    if not shown:
        return []
    data: list[_Row] = []
    with canvas(max(3.4 * len(shown), 4.2), 3.0) as figure:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, metric in zip(panels, shown, strict=True):
            for (one, arm), rows in curves.items():
                if one == metric:
                    handles[arm] = _draw_band(axes, rows, style, arm)
                    data += [(metric, arm, int(x), *values) for x, *values in rows]
            plain_axes(axes, x, metric_label(metric))
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            if rule := parse_name(metric).rule:
                axes.set_title("largest number of samples" if rule == "mc" else _at(rule))
            if metric in log:
                axes.set_yscale("log")
        legend_above(figure, list(handles.values()), [style.label(arm) for arm in handles])
        note_below(figure, seeds_note([len(records.seeds(study, arm)) for arm in handles]))
        return save(
            figure,
            out,
            name or f"{study}-training",
            ["metric", "arm", x, "mean", "low", "high"],
            data,
        )


def _at(rule: str) -> str:
    return f"at the {rule}" if rule == "mean" else rule_label(rule)


def samples(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    metrics: Sequence[str] = ("test/nll", "test/acc"),
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw metrics against the number K of posterior samples, with the mean's level as a line.

    Arms whose metric is the same for every K at every seed (a point mass) are left out.

    Args:
        records: The runs.
        study: The study.
        out: Folder for the files.
        arms: Which arms; None: all.
        metrics: `<split>/<metric>`, one panel each.
        labels: Names of arms for people.
        name: File name without ending; None: `<study>-samples`.
    """
    style = Style(records, study, labels)
    curves: dict[tuple[str, str], tuple[Band, Band]] = {}
    for stem in metrics:
        for arm in records.arms(study, arms):
            by_k = _values_by_k(records, study, arm, stem)
            level = list(records.values(study, arm, f"{stem}@mean").values())
            same = all(sorted(values) == sorted(level) for values in by_k.values())
            if len(by_k) > 1 and not same:
                curves[stem, arm] = (band(by_k), band({0.0: level}))
    shown = [stem for stem in metrics if any(stem == one for one, _ in curves)]
    if not shown:
        return []
    data: list[_Row] = []
    with canvas(max(3.6 * len(shown), 4.2), 3.1) as figure:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, stem in zip(panels, shown, strict=True):
            ticks: set[float] = set()
            for (one, arm), (rows, levels) in curves.items():
                if one != stem:
                    continue
                label = style.label(arm)
                handles[f"{label}, K samples"] = _draw_band(
                    axes, rows, style, arm, linestyle="-", marker=style.marker(arm), markersize=4
                )
                data += [(stem, arm, int(x), *values) for x, *values in rows]
                for _, mean, low, high in levels:
                    axes.axhspan(low, high, color=style.color(arm), alpha=0.08, linewidth=0)
                    handles[f"{label} at the mean"] = axes.axhline(
                        mean, color=style.color(arm), linestyle=(0, (4, 2)), linewidth=1.2
                    )
                    data.append((stem, arm, "mean", mean, low, high))
                ticks.update(x for x, *_ in rows)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(ticks), [f"{x:g}" for x in sorted(ticks)])
            axes.minorticks_off()
            plain_axes(axes, "number K of posterior samples", metric_label(stem))
        legend_above(figure, list(handles.values()), list(handles))
        note_below(figure, seeds_note([len(records.seeds(study, arm)) for _, arm in curves]))
        return save(
            figure,
            out,
            name or f"{study}-samples",
            ["metric", "arm", "K", "mean", "low", "high"],
            data,
        )


def _values_by_k(records: Records, study: str, arm: str, stem: str) -> dict[float, list[float]]:
    """Return a metric's values over seeds by the K of the rule `mc<K>`."""
    values = {}
    for metric in records.metrics(study, arm):
        head, _, rule = metric.partition("@")
        number = mc_samples(rule)
        if head == stem and number is not None:
            values[float(number)] = list(records.values(study, arm, metric).values())
    return values


def comparison(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    metrics: Sequence[str] = ("test/acc", "test/nll", "test/ece"),
    rules: Sequence[str] = ("mean", "mc"),
    reported: Mapping[str, Mapping[str, float]] | None = None,
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw arms as rows and one panel per metric: mean, 95 % interval, and each seed as a dot.

    Args:
        records: The runs.
        study: The study.
        out: Folder for the files.
        arms: Which arms; None: all.
        metrics: `<split>/<metric>`, one panel each; a name with a rule is taken as it is.
        rules: Prediction rules, each a line in the arm's row; `mc` stands for the largest `mc<K>`.
            A rule that gives the same values as the one before is drawn once.
        reported: The paper's own numbers by arm and full metric name (`Study.reported`), drawn as
            crosses; of use where the setting is the paper's.
        labels: Names of arms for people.
        name: File name without ending; None: `<study>-comparison`.
    """
    style = Style(records, study, labels)
    there = records.arms(study, arms)
    lines = [
        (arm, rule) for arm in there for rule in _distinct(records, study, arm, metrics, rules)
    ]
    shown = [m for m in metrics if any(_values(records, study, *line, m)[1] for line in lines)]
    if not shown:
        return []
    names = [style.label(arm) + _suffix(records, study, arm, rule, shown) for arm, rule in lines]
    data: list[_Row] = []
    height = 1.25 + 0.30 * len(lines)
    with canvas(1.4 + 2.5 * len(shown), height) as figure:
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, shown, strict=True):
            for place, (arm, rule) in enumerate(lines):
                full, values = _values(records, study, arm, rule, metric)
                theirs = (reported or {}).get(arm, {}).get(full)
                data += _dot(axes, place, style, (arm, rule), full, values, theirs)
            plain_axes(axes, metric_label(metric))
            axes.locator_params(axis="x", nbins=5)
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(lines)), names)
        panels[0].set_ylim(len(lines) - 0.5, -0.5)
        marks = "; small dots: seeds" + ("; crosses: the paper" if reported else "")
        numbers = [len(records.seeds(study, arm)) for arm in there]
        note_below(figure, seeds_note(numbers, "bar") + (marks if max(numbers) > 1 else ""))
        header = ["metric", "arm", "seed", "value", "low", "high"]
        return save(figure, out, name or f"{study}-comparison", header, data)


def _values(
    records: Records, study: str, arm: str, rule: str, metric: str
) -> tuple[str, dict[int, float]]:
    """Return a metric's full name under a rule, and its values by seed."""
    stem, at, own = metric.partition("@")
    full = metric if at else f"{stem}@{records.rule(study, arm, stem, rule)}"
    if not at and not own and full not in records.metrics(study, arm):
        full = stem if stem in records.metrics(study, arm) else full
    return full, records.values(study, arm, full)


def _distinct(
    records: Records, study: str, arm: str, metrics: Sequence[str], rules: Sequence[str]
) -> list[str]:
    """Return the rules of an arm that give values, without those that repeat the one before."""
    kept: list[str] = []
    before: list[dict[int, float]] = []
    for rule in rules:
        values = [_values(records, study, arm, rule, metric)[1] for metric in metrics]
        if any(values) and values != before:
            kept.append(rule)
            before = values
    return kept


def _suffix(records: Records, study: str, arm: str, rule: str, metrics: Sequence[str]) -> str:
    """Return what a row says of its rule: nothing at a point mass, where all rules agree."""
    stems = [metric for metric in metrics if "@" not in metric]
    at_mean, sampled = (
        [_values(records, study, arm, one, stem)[1] for stem in stems] for one in ("mean", "mc")
    )
    if not stems or at_mean == sampled:
        return ""
    return f" ({rule_label(records.rule(study, arm, stems[0], rule))})"


def _dot(
    axes: Axes,
    place: int,
    style: Style,
    line: tuple[str, str],
    metric: str,
    values: Mapping[int, float],
    theirs: float | None,
) -> list[_Row]:
    """Draw one line of one panel and return its data."""
    arm, rule = line
    rows: list[_Row] = []
    color = style.color(arm)
    if values:
        interval = mean_interval(list(values.values()))
        low, high = interval.ci95 or (interval.mean, interval.mean)
        if len(values) > 1:
            axes.plot(
                list(values.values()),
                [place + 0.24] * len(values),
                "o",
                ms=2.4,
                color=color,
                alpha=0.5,
            )
        axes.plot([low, high], [place, place], "-", color=color, lw=1.6)
        face = "white" if rule == "mean" else color
        axes.plot([interval.mean], [place], style.marker(arm), ms=6, color=color, mfc=face, mew=1.4)
        rows = [(metric, arm, seed, value, "", "") for seed, value in values.items()]
        rows.append((metric, arm, "mean", interval.mean, low, high))
    if theirs is not None:
        axes.plot([theirs], [place - 0.24], "x", ms=5, color="#111111", mew=1.3)
        rows.append((metric, arm, "paper", float(theirs), "", ""))
    return rows
