"""Figures of predictive distributions: reliability diagrams, and entropy in and out of domain.

As in `figures`, every function writes SVG, PNG and CSV and returns the paths. Bins come from the
records' curves and are pooled over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.errors import BayesruleError
from bayesrule.report.drawing import (
    Style,
    canvas,
    legend_above,
    metric_label,
    note_below,
    plain_axes,
    rule_label,
    save,
)
from bayesrule.report.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ood_entropy", "pooled_bins", "reliability"]

_PER_ROW = 4
_PLATE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


@dataclass(frozen=True)
class _Bins:
    """Reliability bins pooled over seeds: sums add, so every item counts once."""

    counts: list[float]
    sum_conf: list[float]
    sum_acc: list[float]

    def rows(self) -> list[tuple[float, float, float, float, float]]:
        """Return (low, high, count, mean confidence, accuracy) of the bins that are not empty."""
        m = len(self.counts)
        return [
            (b / m, (b + 1) / m, n, self.sum_conf[b] / n, self.sum_acc[b] / n)
            for b, n in enumerate(self.counts)
            if n > 0
        ]

    def ece(self) -> float:
        """Return sum_b (n_b / N) |acc_b - conf_b| of the pooled bins."""
        total = sum(self.counts)
        gaps = zip(self.sum_acc, self.sum_conf, strict=True)
        return sum(abs(acc - conf) for acc, conf in gaps) / total if total else math.nan


@dataclass(frozen=True)
class _Panel:
    """One arm under one prediction rule: its title, and its curves by seed."""

    arm: str
    rule: str
    title: str
    curves: dict[int, Mapping[str, Any]]


def pooled_bins(curves: Sequence[Mapping[str, Any]]) -> _Bins:
    """Add reliability bins of several runs.

    Args:
        curves: Each with `counts`, `sum_conf` and `sum_acc`, lists over the same number of bins.

    Raises:
        BayesruleError: If runs differ in their number of bins.
    """
    if len({len(curve["counts"]) for curve in curves}) != 1:
        raise BayesruleError("runs with different numbers of bins cannot be pooled in one diagram")

    def total(field: str) -> list[float]:
        return [math.fsum(column) for column in zip(*(c[field] for c in curves), strict=True)]

    return _Bins(total("counts"), total("sum_conf"), total("sum_acc"))


def _panels(n: int) -> tuple[int, int]:
    """Return rows and columns of a grid for n panels."""
    columns = min(n, _PER_ROW)
    return math.ceil(n / columns), columns


def _expand(
    records: Records,
    study: str,
    arms: Sequence[str] | None,
    rules: Sequence[str],
    curve: str,
    stem: str,
    style: Style,
) -> list[_Panel]:
    """Return all panels that have a curve, arm by arm.

    The title says the rule, except where the mean gives the same curves (at a point mass): there
    one panel stands for all rules.
    """
    found = []
    for arm in records.arms(study, arms):
        at_mean = records.curves(study, arm, f"{curve}@mean")
        drawn: list[Any] = []
        for rule in dict.fromkeys(records.rule(study, arm, stem, rule) for rule in rules):
            curves = records.curves(study, arm, f"{curve}@{rule}")
            if curves and curves not in drawn:
                plain = rule != "mean" and curves == at_mean
                title = style.label(arm) + ("" if plain else f" ({rule_label(rule)})")
                found.append(_Panel(arm, rule, title, curves))
                drawn.append(curves)
    return found


def reliability(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    rules: Sequence[str] = ("mc",),
    split: str = "test",
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw a reliability diagram per arm: accuracy against confidence, with the share of items.

    Bars are the accuracy of a bin, the hatched part is its gap to the bin's mean confidence. The
    ECE stated is that of single runs, averaged over seeds (pooled bins would hide errors of
    opposite sign).

    Args:
        records: The runs.
        study: The study.
        out: Folder for the files.
        arms: Which arms; None: all.
        rules: Prediction rules, a panel each; `mc` stands for the largest `mc<K>`.
        split: The split.
        labels: Names of arms for people.
        name: File name without ending; None: `<study>-reliability`.
    """
    style = Style(records, study, labels)
    panels = _expand(records, study, arms, rules, f"{split}/reliability", f"{split}/nll", style)
    if not panels:
        return []
    n_rows, n_columns = _panels(len(panels))
    data: list[tuple[object, ...]] = []
    handles: list[Any] = []
    with canvas(max(2.35 * n_columns + 0.6, 3.1), 3.4 * n_rows + 0.5) as figure:
        grid = figure.add_gridspec(2 * n_rows, n_columns, height_ratios=[3.2, 1] * n_rows)
        lowest: Axes | None = None
        for place, panel in enumerate(panels):
            row, column = divmod(place, n_columns)
            top = figure.add_subplot(grid[2 * row, column])
            bottom = figure.add_subplot(grid[2 * row + 1, column], sharex=top, sharey=lowest)
            lowest = lowest or bottom
            bins = pooled_bins(list(panel.curves.values()))
            handles = _diagram(top, bottom, bins, style.color(panel.arm))
            singles = [pooled_bins([curve]).ece() for curve in panel.curves.values()]
            ece = math.fsum(singles) / len(singles)
            text = f"ECE {ece:.3f}\n({len(bins.counts)} bins)"
            top.text(0.04, 0.96, text, transform=top.transAxes, va="top", fontsize=8, bbox=_PLATE)
            top.set_title(panel.title, color=style.color(panel.arm))
            if column == 0:
                top.set_ylabel("accuracy")
                bottom.set_ylabel("share of\nitems")
            else:
                top.tick_params(labelleft=False)
                bottom.tick_params(labelleft=False)
            bottom.set_xlabel("confidence")
            data += [(panel.arm, panel.rule, *values) for values in bins.rows()]
        legend_above(figure, handles, ["perfect calibration", "accuracy", "gap to confidence"])
        numbers = sorted({len(panel.curves) for panel in panels})
        seeds = " to ".join(str(number) for number in {numbers[0], numbers[-1]})
        plural = "" if numbers[-1] == 1 else "s pooled; ECE: mean over seeds"
        note_below(figure, f"{seeds} seed{plural}")
        header = ["arm", "rule", "bin_low", "bin_high", "count", "confidence", "accuracy"]
        return save(figure, out, name or f"{study}-reliability", header, data)


def _diagram(top: Axes, bottom: Axes, bins: _Bins, color: str) -> list[Any]:
    """Draw the diagram and the share of items below; return handles for the legend."""
    rows = bins.rows()
    width = 1.0 / len(bins.counts)
    middles = [low + width / 2 for low, *_ in rows]
    (line,) = top.plot([0, 1], [0, 1], color="#555555", linestyle=(0, (4, 2)), linewidth=1.0)
    bars = top.bar(
        middles, [acc for *_, acc in rows], width, color=color, alpha=0.75, ec="white", lw=0.5
    )
    gaps = top.bar(
        middles,
        [abs(conf - acc) for *_, conf, acc in rows],
        width,
        bottom=[min(conf, acc) for *_, conf, acc in rows],
        facecolor="none",
        edgecolor="#333333",
        hatch="/////",
        linewidth=0.4,
        alpha=0.55,
    )
    top.set(xlim=(0, 1), ylim=(0, 1))
    top.tick_params(labelbottom=False)
    total = sum(bins.counts)
    bottom.bar(
        middles, [n / total for _, _, n, *_ in rows], width, color="#999999", ec="white", lw=0.5
    )
    bottom.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    plain_axes(top)
    plain_axes(bottom)
    return [line, bars, gaps]


def ood_entropy(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    rules: Sequence[str] = ("mc",),
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw histograms of the predictive entropy, in domain and on each OOD set, a panel per arm.

    Fractions are averaged over seeds; the AUROC stated (entropy, over all OOD sets) also.

    Args:
        records: The runs.
        study: The study.
        out: Folder for the files.
        arms: Which arms; None: all.
        rules: Prediction rules, a panel each; `mc` stands for the largest `mc<K>`.
        labels: Names of arms for people.
        name: File name without ending; None: `<study>-ood_entropy`.
    """
    style = Style(records, study, labels)
    panels = _expand(records, study, arms, rules, "ood/entropy", "ood/auroc", style)
    if not panels:
        return []
    n_rows, n_columns = _panels(len(panels))
    data: list[tuple[object, ...]] = []
    handles: dict[str, Any] = {}
    with canvas(max(2.6 * n_columns + 0.4, 3.6), 2.5 * n_rows + 0.6) as figure:
        grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes, panel in zip(grid.flat, panels, strict=False):
            edges, means = _mean_histograms(list(panel.curves.values()))
            handles |= _histograms(axes, edges, means)
            values = list(records.values(study, panel.arm, f"ood/auroc@{panel.rule}").values())
            if values:
                text = f"AUROC {math.fsum(values) / len(values):.3f}"
                where = {"transform": axes.transAxes, "ha": "right", "va": "top"}
                axes.text(0.97, 0.95, text, fontsize=8, bbox=_PLATE, **where)
            axes.set_title(panel.title, color=style.color(panel.arm))
            for which, heights in means.items():
                bins = zip(edges[:-1], edges[1:], heights, strict=True)
                data += [(panel.arm, panel.rule, which, *values) for values in bins]
        for axes in grid[:, 0]:
            axes.set_ylabel("fraction of inputs")
        for column in range(n_columns):
            lowest = max(p for p in range(len(panels)) if p % n_columns == column)
            grid[lowest // n_columns, column].set_xlabel(metric_label("entropy"))
            grid[lowest // n_columns, column].tick_params(labelbottom=True)
        legend_above(figure, list(handles.values()), list(handles))
        count = max(len(panel.curves) for panel in panels)
        note_below(figure, "one seed" if count == 1 else f"mean over {count} seeds")
        return save(
            figure,
            out,
            name or f"{study}-ood_entropy",
            ["arm", "rule", "set", "low", "high", "fraction"],
            data,
        )


def _mean_histograms(
    curves: Sequence[Mapping[str, Any]],
) -> tuple[list[float], dict[str, list[float]]]:
    """Return the common edges, and the mean fractions by set (`id` first)."""
    edges = [float(edge) for edge in curves[0]["edges"]]
    if any(list(curve["edges"]) != list(curves[0]["edges"]) for curve in curves):
        raise BayesruleError("runs with different entropy bins cannot be averaged in one histogram")
    sets = [which for which in curves[0] if which != "edges"]
    means = {}
    for which in sorted(sets, key=lambda one: (one != "id", one)):
        columns = zip(*(curve[which] for curve in curves), strict=True)
        means[which] = [math.fsum(column) / len(curves) for column in columns]
    return edges, means


def _histograms(
    axes: Axes, edges: Sequence[float], means: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Draw the in-domain histogram filled and the others as lines; return legend handles."""
    handles: dict[str, Any] = {}
    colors = ("#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00")
    dashes = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
    for place, (which, heights) in enumerate(means.items()):
        if which == "id":
            options: dict[str, Any] = {"fill": True, "color": "#0072B2", "alpha": 0.35, "lw": 0}
        else:
            color, line = colors[(place - 1) % 5], dashes[(place - 1) % 4]
            options = {"color": color, "linestyle": line, "lw": 1.5}
        label = "in domain" if which == "id" else f"OOD: {which}"
        handles[label] = axes.stairs(heights, edges, **options)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    plain_axes(axes)
    return handles
