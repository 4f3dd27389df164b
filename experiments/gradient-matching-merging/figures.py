"""The figures of the paper that the studies allow, drawn from records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bayesrule.report import Records
from bayesrule.report.drawing import (
    Style,
    band,
    canvas,
    legend_above,
    metric_label,
    note_below,
    plain_axes,
    save,
    seeds_note,
)

__all__ = ["figures"]

LABELS = {
    "ug": "uncertainty-based",
    "ta": "task arithmetic",
    "fa": "Fisher",
    "fa-plus": "Fisher with base",
    "average": "average",
    "ties": "TIES",
    "dare": "DARE",
    "regmean": "RegMean",
}
ALPHA = re.compile(r"alpha([\d.]+)/(acc|nll)@mean")


def figures(records: Records, out: Path) -> None:
    """Draw scaling factors, mismatch beside gap, and removal.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for study in ("digits", "text", "sentiment", "vision"):
        if study in studies:
            scaling(records, study, out)
    if "mismatch" in studies:
        mismatch(records, out)
    for study in ("removal",):
        if study in studies:
            removal(records, study, out)


def _by_alpha(records: Records, study: str, arm: str, score: str) -> dict[float, list[float]]:
    found = {}
    for metric in records.metrics(study, arm):
        match = ALPHA.fullmatch(metric)
        if match and match[2] == score:
            found[float(match[1])] = list(records.values(study, arm, metric).values())
    return dict(sorted(found.items()))


def scaling(records: Records, study: str, out: Path) -> None:
    """Draw accuracy and NLL against the scaling factor; methods without one are level lines."""
    style, rows = Style(records, study, LABELS), []
    arms = records.arms(study)
    with canvas(8.6, 3.4) as figure:
        panels = figure.subplots(1, 2, squeeze=False)[0]
        for axes, score in zip(panels, ("acc", "nll"), strict=True):
            for arm in arms:
                lines = _by_alpha(records, study, arm, score)
                level = list(records.values(study, arm, f"tuned/{score}@mean").values())
                points = lines or dict.fromkeys((0.1, 1.0), level)
                drawn = band(points)
                x, mean, low, high = zip(*drawn, strict=True)
                look: dict[str, Any] = {"color": style.color(arm), "label": style.label(arm)}
                if lines:
                    axes.fill_between(x, low, high, alpha=0.12, linewidth=0, color=style.color(arm))
                    axes.plot(x, mean, marker=style.marker(arm), ms=4, **look)
                else:
                    axes.plot(x, mean, linestyle=":", **look)
                rows += [(score, arm, *values) for values in drawn]
            for name, dashes in (("base", "--"), ("joint", "-.")):
                values = list(records.values(study, arms[0], f"{name}/{score}@mean").values())
                if values:
                    mean = sum(values) / len(values)
                    axes.axhline(mean, color="#888888", linestyle=dashes, lw=1.0, label=name)
                    rows.append((score, name, "", mean, "", ""))
            plain_axes(axes, "scaling factor", metric_label(f"test/{score}"))
        legend_above(figure, *panels[0].get_legend_handles_labels())
        note_below(figure, seeds_note([len(records.seeds(study, arm)) for arm in arms]))
        header = ["score", "arm", "alpha", "mean", "low", "high"]
        save(figure, out, f"{study}-scaling", header, rows)


def mismatch(records: Records, out: Path) -> None:
    """Draw the distance to joint training against the gradient mismatch, as tasks are added."""
    study, arm = "mismatch", "rules"
    rules = {"ta": ("#D55E00", "s"), "ug": ("#0072B2", "o")}
    counts = sorted(
        int(match[1])
        for metric in records.metrics(study, arm)
        if (match := re.fullmatch(r"n(\d+)/gap_ug", metric))
    )
    rows = []
    with canvas(7.6, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        for rule, (color, marker) in rules.items():
            means = []
            for n in counts:
                gaps = records.values(study, arm, f"n{n}/gap_{rule}")
                norms = records.values(study, arm, f"n{n}/mismatch_{rule}")
                pairs = [(norms[seed], gaps[seed]) for seed in gaps]
                left.plot(*zip(*pairs, strict=True), marker, color=color, ms=3, alpha=0.6, lw=0)
                rows += [(rule, n, seed, norms[seed], gaps[seed]) for seed in gaps]
                means.append(tuple(sum(each) / len(pairs) for each in zip(*pairs, strict=True)))
            right.plot(
                counts, [gap for _, gap in means], marker=marker, color=color, label=LABELS[rule]
            )
            left.plot(*zip(*means, strict=True), color=color, lw=1.2)
        plain_axes(left, "gradient mismatch", "KL from joint training (nats)")
        plain_axes(right, "tasks added", "KL from joint training (nats)")
        legend_above(figure, *right.get_legend_handles_labels())
        right.set_xticks(counts)
        seeds = len(records.seeds(study, arm))
        note_below(figure, f"left: every seed, and means; right: means of {seeds} seeds; alpha = 1")
        header = ["rule", "tasks", "seed", "mismatch", "gap"]
        save(figure, out, "mismatch", header, rows)


def removal(records: Records, study: str, out: Path) -> None:
    """Draw accuracy on the mislabelled class against that on the others, over the factors."""
    style, rows = Style(records, study, LABELS), []
    arms = records.arms(study)
    with canvas(4.6, 3.4) as figure:
        axes = figure.subplots()
        for arm in arms:
            points = []
            alphas = sorted(_by_alpha(records, study, arm, "acc"))
            for alpha in alphas:
                sides = [
                    list(records.values(study, arm, f"alpha{alpha:g}/{side}/acc@mean").values())
                    for side in ("test_other", "test_bad")
                ]
                points.append(tuple(sum(each) / len(each) for each in sides))
                rows.append((arm, alpha, *points[-1]))
            look: dict[str, Any] = {"color": style.color(arm), "label": style.label(arm)}
            axes.plot(*zip(*points, strict=True), marker=style.marker(arm), ms=4, **look)
        for name, marker in (("base", "x"), ("without", "*")):
            place = []
            for side in ("test_other", "test_bad"):
                values = list(records.values(study, arms[0], f"{name}/{side}/acc@mean").values())
                place.append(sum(values) / len(values))
            label = {"base": "before", "without": "trained without them"}[name]
            axes.plot(*place, marker, color="black", ms=9, label=label, lw=0)
            rows.append((name, "", *place))
        plain_axes(axes, "accuracy on other classes", "accuracy on the mislabelled class")
        legend_above(figure, *axes.get_legend_handles_labels())
        note_below(figure, "means over seeds; along a line the scaling factor grows")
        header = ["arm", "alpha", "acc_other", "acc_bad"]
        save(figure, out, study, header, rows)
