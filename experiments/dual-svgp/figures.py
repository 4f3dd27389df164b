"""The figures of the t-SVGP paper, from records: EM curves, M-step bounds, bound against time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesrule.report import Records, training
from bayesrule.report.drawing import (
    DASHES,
    PALETTE,
    band,
    canvas,
    legend_above,
    note_below,
    plain_axes,
    save,
    seeds_note,
)

__all__ = ["figures"]

SETS = ("breast-cancer", "pima", "ionosphere", "sonar", "diabetes", "boston", "concrete", "airfoil")
LABELS = {
    "t-svgp": "t-SVGP",
    "q-svgp": "q-SVGP, natural gradients",
    "adam": "q-SVGP, Adam (tuned)",
    "adam-paper": "q-SVGP, Adam (rate of the paper)",
    "sgpr": "collapsed (SGPR)",
}
STORAGES = {
    "optimal": "q learnt again",
    "projected": "t-SVGP, projected",
    "per_datum": "t-SVGP, per datum",
    "unprojected": "t-SVGP, unprojected",
    "whitened": "q-SVGP, whitened",
    "moments": "q-SVGP",
}
LEARNERS = {
    "dual": "t-SVGP",
    "joint": "GPyTorch, one backward pass",
    "separate": "GPyTorch, E and M apart",
}


def figures(records: Records, out: Path) -> None:
    """Draw what the studies allow.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    there = [study for study in SETS if study in records.studies()]
    for study in there:
        arms = [arm for arm in LABELS if arm in records.arms(study) and arm != "adam-paper"]
        metrics = ("train/elbo", "test/nll@quad")
        training(records, study, out, arms=arms, metrics=metrics, labels=LABELS, x="iteration")
    if there:
        _gains(records, there, out)
    if "bounds" in records.studies() and "toy" in records.arms("bounds"):
        _bounds(records, out)
    if "race" in records.studies():
        _race(records, out)


def _bounds_by_iteration(records: Records, study: str, arm: str, seed: int) -> dict[int, float]:
    rows = records.history(study, arm, seed)
    return {int(row["epoch"]) + 1: float(row["train/elbo"]) for row in rows if "train/elbo" in row}


def _gains(records: Records, studies: Sequence[str], out: Path) -> None:
    """Draw the bound of t-SVGP minus that of q-SVGP against iterations, paired by seed."""
    data: list[tuple[Any, ...]] = []
    columns = min(4, len(studies))
    rows_of_panels = -(-len(studies) // columns)
    counts: list[int] = []
    with canvas(2.4 * columns + 0.4, 2.1 * rows_of_panels + 0.5) as figure:
        panels = figure.subplots(rows_of_panels, columns, squeeze=False).ravel()
        for axes in panels[len(studies) :]:
            axes.set_axis_off()
        handles: dict[str, Any] = {}
        for place, (axes, study) in enumerate(zip(panels, studies, strict=False)):
            for number, arm in enumerate(("t-svgp", "sgpr")):
                values: dict[float, list[float]] = {}
                seeds = set(records.seeds(study, arm)) & set(records.seeds(study, "q-svgp"))
                for seed in sorted(seeds):
                    ours = _bounds_by_iteration(records, study, arm, seed)
                    theirs = _bounds_by_iteration(records, study, "q-svgp", seed)
                    for iteration in sorted(ours.keys() & theirs.keys()):
                        gain = ours[iteration] - theirs[iteration]
                        values.setdefault(float(iteration), []).append(gain)
                if not values:
                    continue
                counts += [len(seeds)] if arm == "t-svgp" else []
                rows = [row for row in band(values) if row[0] > 1]  # the first is the same kernel
                if not rows:
                    continue
                x, mean, low, high = zip(*rows, strict=True)
                axes.fill_between(x, low, high, color=PALETTE[number], alpha=0.18, linewidth=0)
                line = axes.plot(x, mean, color=PALETTE[number], linestyle=DASHES[number])[0]
                handles.setdefault(LABELS[arm], line)
                data += [(study, arm, int(x), *rest) for x, *rest in rows]
            axes.axhline(0.0, color="#555555", linewidth=0.8)
            axes.set_title(study)
            label = "ELBO above q-SVGP (nats)" if place % columns == 0 else None
            plain_axes(axes, "iteration", label)
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if not handles:
            return
        legend_above(figure, list(handles.values()), list(handles))
        note_below(figure, f"from the second iteration on; {seeds_note(counts)}")
        header = ["study", "arm", "iteration", "mean", "low", "high"]
        save(figure, out, "gains", header, data)


def _over(n_seeds: int) -> str:
    return "one seed" if n_seeds == 1 else f"mean over {n_seeds} seeds"


def _bounds(records: Records, out: Path) -> None:
    """Draw the bound against the variance with sites fixed at another: the M-step figure."""
    curves = records.curves("bounds", "toy", "bound/variance")
    if not curves:
        return
    first = min(curves)
    data: list[tuple[Any, ...]] = []
    with canvas(7.6, 3.1) as figure:
        left, right = figure.subplots(1, 2)
        lines = []
        for number, name in enumerate(STORAGES):
            style = {"color": PALETTE[number], "linestyle": DASHES[number % len(DASHES)]}
            curve = curves[first]
            lines += left.plot(curve["variance"], curve[name], **style)
            if name == "optimal":
                continue
            gaps: dict[float, list[float]] = {}
            for each in curves.values():
                for x, best, value in zip(
                    each["variance"], each["optimal"], each[name], strict=True
                ):
                    gaps.setdefault(float(x), []).append(float(best) - float(value))
            rows = band(gaps)
            # where q was learnt all gaps are rounding: no point there, and no line across
            shown = [(x, mean if mean > 1e-7 else math.nan) for x, mean, *_ in rows]
            right.plot(*zip(*shown, strict=True), **style)
            data += [(name, *row) for row in rows]
        old = float(curves[first]["old"])
        for axes in (left, right):
            axes.axvline(old, color="#555555", linewidth=0.8, linestyle=":")
        low = min(min(curves[first][name]) for name in ("projected", "whitened", "unprojected"))
        high = max(curves[first]["optimal"])
        left.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        right.set_yscale("log")
        plain_axes(left, "kernel variance", f"ELBO (nats), seed {first}")
        plain_axes(right, "kernel variance", "gap to q learnt again (nats)")
        legend_above(figure, lines, list(STORAGES.values()))
        note_below(figure, f"dotted: where q was learnt; right: {_over(len(curves))}")
        header = ["storage", "variance", "mean_gap", "low", "high"]
        save(figure, out, "bounds-variance", header, data)


def _race(records: Records, out: Path) -> None:
    """Draw the bound per datum against CPU time, every seed a line."""
    found: Mapping[int, Mapping[str, Any]] = records.curves("race", "mnist5k", "race/elbo")
    if not found:
        return
    data: list[tuple[Any, ...]] = []
    with canvas(5.2, 3.2) as figure:
        axes = figure.subplots()
        handles: dict[str, Any] = {}
        for seed, curves in found.items():
            record = records.record("race", "mnist5k", seed)
            n = float(record.details["data"]["n_train"])
            for number, (name, label) in enumerate(LEARNERS.items()):
                xs, ys = curves[name]["seconds"], [value / n for value in curves[name]["elbo"]]
                style = {"color": PALETTE[number], "linestyle": DASHES[number], "linewidth": 1.1}
                handles.setdefault(label, axes.plot(xs, ys, **style)[0])
                if seed != min(found):
                    axes.plot(xs, ys, **style)
                data += [(name, seed, x, y) for x, y in zip(xs, ys, strict=True)]
        finite = [row[3] for row in data if math.isfinite(row[3])]
        axes.set_ylim(bottom=max(min(finite), -3.0))
        plain_axes(axes, "CPU seconds of steps", "ELBO per datum (nats)")
        legend_above(figure, list(handles.values()), list(handles))
        note_below(figure, f"a line per seed ({len(found)}), equal numbers of iterations")
        save(figure, out, "race", ["learner", "seed", "seconds", "elbo_per_datum"], data)
