"""The table of algorithms with deviations, and the paper's illustrations, drawn from records."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bayesrule.report import Records, comparison
from bayesrule.report.drawing import (
    PALETTE,
    Style,
    band,
    canvas,
    legend_above,
    note_below,
    plain_axes,
    save,
    seeds_note,
)

__all__ = ["figures"]

FLOOR = 1e-18
MODES = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])


def figures(records: Records, out: Path) -> None:
    """Draw the table, the fixed point, the flat minimum, the mixtures and the curvature.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    draw = {
        "table": _table,
        "fixed-point": _fixed_point,
        "flat": _flat,
        "modes": _modes,
        "curvature": _curvature,
    }
    studies = records.studies()
    for study, function in draw.items():
        if study in studies:
            function(records, out)
    if "digits" in studies:
        comparison(records, "digits", out)


def _table(records: Records, out: Path) -> None:
    """Draw the largest deviation of every recipe beside its tolerance; the data are the table."""
    seeds = records.seeds("table", "rule")
    recipes = records.record("table", "rule", seeds[0]).details["recipes"]
    rows = []
    for recipe in recipes:
        values = records.values("table", "rule", f"table/{recipe['id']}")
        worst = max(values.values()) if len(values) == len(seeds) else math.inf
        made = ", ".join(
            name if value is True else f"{name}={value}"
            for name, value in recipe["approximations"].items()
        )
        passed = "pass" if worst <= recipe["tolerance"] else "FAIL"
        cells = [recipe[name] for name in ("id", "group", "algorithm", "family")]
        rows.append([*cells, made or "none", recipe["oracle"], worst, recipe["tolerance"], passed])
    groups = list(dict.fromkeys(row[1] for row in rows))
    with canvas(10.5, 0.26 * len(rows) + 1.1) as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            color = PALETTE[groups.index(row[1])]
            axes.plot([FLOOR, max(row[6], FLOOR)], [place, place], color=color, linewidth=1.2)
            shape = "o" if row[8] == "pass" else "X"
            axes.plot(max(row[6], FLOOR), place, marker=shape, color=color, markersize=5)
            axes.plot(row[7], place, marker="|", color="#333333", markersize=9)
            axes.text(3e-5, place, f"{row[8]}   {row[3]}; {row[4]}", va="center", fontsize=6.5)
        axes.set_xscale("log")
        axes.set_xlim(FLOOR, 1e22)
        axes.set_xticks([1e-18, 1e-14, 1e-10, 1e-5])
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_bounds(FLOOR, 1e-5)
        axes.set_yticks(range(len(rows)), [str(row[2]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        plain_axes(axes, "largest deviation from the oracle (bar: tolerance)")
        axes.xaxis.set_label_coords(0.17, -0.045)
        lines = [axes.plot([], [], marker="o", color=PALETTE[k])[0] for k in range(len(groups))]
        legend_above(figure, lines, groups)
        starts = f"{len(seeds)} start{'s' if len(seeds) > 1 else ''}"
        note_below(figure, f"largest over {starts}; right: posterior family; approximations")
        header = [
            *("recipe", "group", "algorithm", "family", "approximations", "oracle"),
            *("max_deviation", "tolerance", "pass"),
        ]
        save(figure, out, "rule-table", header, rows)


def _fixed_point(records: Records, out: Path) -> None:
    """Draw both residuals against steps, largest over seeds."""
    style = Style(records, "fixed-point", {"s1": "S = I", "s10": "S = 10 I", "s100": "S = 100 I"})
    data: list[tuple[object, ...]] = []
    with canvas(6.6, 2.9) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        handles = {}
        for axes, name in zip(panels, ("grad", "hess"), strict=True):
            for arm in records.arms("fixed-point"):
                curves = records.curves("fixed-point", arm, "residual").values()
                steps = next(iter(curves))["step"]
                worst = [max(values) for values in zip(*(c[name] for c in curves), strict=True)]
                handles[arm] = axes.plot(
                    steps, worst, color=style.color(arm), linestyle=style.dashes(arm)
                )[0]
                data += [(name, arm, x, y) for x, y in zip(steps, worst, strict=True)]
            axes.axhline(1e-8, color="#333333", linewidth=0.8, linestyle=":")
            axes.set_yscale("log")
            titles = {"grad": "max |E grad lbar|", "hess": "max |S - E hess lbar|"}
            axes.set_title(titles[name])
            plain_axes(axes, "step", "residual" if name == "grad" else None)
        legend_above(figure, list(handles.values()), [style.label(arm) for arm in handles])
        note_below(figure, "largest over seeds; dotted: tolerance 1e-8")
        save(figure, out, "fixed-point", ["residual", "arm", "step", "largest"], data)


def _flat(records: Records, out: Path) -> None:
    """Draw the loss, its expectation, and where both descents go."""
    arms = records.arms("flat", ["point", "bayes"])
    data: list[tuple[object, ...]] = []
    with canvas(6.4, 3.0) as figure:
        axes = figure.subplots()
        handles = {}
        for place, arm in enumerate(arms):
            seed = records.seeds("flat", arm)[0]
            objective = records.curve("flat", arm, seed, "objective") or {}
            path = (records.curve("flat", arm, seed, "path") or {})["theta"]
            name = "expected" if arm == "bayes" else "loss"
            label = "E under N(m, 1), the rule" if arm == "bayes" else "loss, gradient descent"
            color = PALETTE[place]
            handles[label] = axes.plot(objective["theta"], objective[name], color=color)[0]
            heights = np.interp(path, objective["theta"], objective[name])
            axes.plot(path, heights, "o", color=color, markersize=2.5)
            axes.plot(path[-1], heights[-1], "*", color=color, markersize=11)
            data += [(arm, x, y) for x, y in zip(objective["theta"], objective[name], strict=True)]
        plain_axes(axes, "theta (m for the expectation)", "objective")
        legend_above(figure, list(handles.values()), list(handles))
        note_below(figure, "dots: iterates from -2.1; star: the last")
        save(figure, out, "flat-minimum", ["arm", "theta", "objective"], data)


def _modes(records: Records, out: Path) -> None:
    """Draw one run of every arm: the density, and the components' means and ellipses."""
    style = Style(records, "modes")
    arms = records.arms("modes")
    grid = np.linspace(-7.0, 7.0, 141)
    x, y = np.meshgrid(grid, grid)
    square = sum(np.exp(-0.5 * ((x - a) ** 2 + (y - b) ** 2)) for a, b in MODES)
    seed = records.seeds("modes", arms[0])[0]
    data: list[tuple[object, ...]] = []
    with canvas(2.1 * len(arms), 2.7) as figure:
        panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
        for axes, arm in zip(panels, arms, strict=True):
            axes.contour(x, y, square, levels=6, colors="#bbbbbb", linewidths=0.7)
            found = records.curve("modes", arm, seed, "components") or {}
            for k, (start, mean) in enumerate(zip(found["start"], found["means"], strict=True)):
                axes.plot(*start, "x", color="#888888", markersize=5)
                axes.plot(*mean, "o", color=style.color(arm), markersize=5)
                data.append((arm, seed, k, *start, *mean))
                if "precisions" in found:
                    _ellipse(axes, mean, np.array(found["precisions"][k]), style.color(arm))
            values = records.values("modes", arm, "modes/found").values()
            axes.set_title(f"{arm}: {sum(values) / len(values):.2f} of 3")
            axes.set_aspect("equal")
            plain_axes(axes)
        note_below(
            figure,
            f"seed {seed}; crosses: starts; ellipses: one standard deviation; titles: modes found, "
            f"mean over {len(records.seeds('modes', arms[0]))} seeds",
        )
        header = ["arm", "seed", "component", "start_1", "start_2", "mean_1", "mean_2"]
        save(figure, out, "modes", header, data)


def _ellipse(axes: object, mean: list[float], precision: np.ndarray, color: str) -> None:
    angle = np.linspace(0.0, 2.0 * np.pi, 80)
    root = np.linalg.cholesky(np.linalg.inv(precision))
    points = root @ np.stack([np.cos(angle), np.sin(angle)]) + np.array(mean)[:, None]
    axes.plot(*points, color=color, linewidth=1.0)  # type: ignore[attr-defined]


def _curvature(records: Records, out: Path) -> None:
    """Draw the ratio of both estimates to the full-batch sum of squares, against batch size."""
    arms = records.arms("curvature")
    names = {"sqgrad": "squared minibatch gradient", "gn": "squares of single items"}
    data: list[tuple[object, ...]] = []
    with canvas(3.2 * len(arms), 2.9) as figure:
        panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
        handles = {}
        for axes, arm in zip(panels, arms, strict=True):
            for place, name in enumerate(names):
                values = {
                    float(M): list(
                        records.values("curvature", arm, f"curvature/{name}_ratio_M{M}").values()
                    )
                    for M in (8, 32, 128)
                }
                M, mean, low, high = zip(*band(values), strict=True)
                axes.fill_between(M, low, high, color=PALETTE[place], alpha=0.2, linewidth=0)
                handles[names[name]] = axes.plot(M, mean, "o-", color=PALETTE[place])[0]
                data += [(arm, name, *row) for row in zip(M, mean, low, high, strict=True)]
            axes.axhline(1.0, color="#333333", linewidth=0.8, linestyle=":")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks([8, 32, 128], ["8", "32", "128"])
            axes.set_title({"init": "at initialisation", "trained": "after 5 epochs"}[arm])
            plain_axes(axes, "batch size M", "estimate / full-batch" if arm == arms[0] else None)
        legend_above(figure, list(handles.values()), list(handles))
        note_below(figure, seeds_note([len(records.seeds("curvature", arm)) for arm in arms]))
        header = ["arm", "estimate", "M", "mean", "low", "high"]
        save(figure, out, "curvature", header, data)
