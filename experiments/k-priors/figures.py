"""The figures of the K-priors paper that the studies allow, drawn from records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bayesrule.report import Records
from bayesrule.report.drawing import (
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

_KINDS = {
    "add": "add data",
    "remove": "remove data",
    "regulariser": "change regulariser",
    "model": "change model",
}
_PANELS = {
    "digits": "digits-{}",
    "digits-network": "digits-network-{}",
    "usps": "usps-{}",
    "adult": "adult-{}",
    "usps-linear": "usps-linear-{}",
    "usps-network": "usps-network-{}",
}
_LINES = {  # arm: (label, place in the palette, dashes)
    "k-top": ("K-prior", 0, "-"),
    "k-prior": ("K-prior", 0, "-"),
    "k-random": ("K-prior, random", 0, ":"),
    "k-random-ratio": ("K-prior, random, N/M", 0, "--"),
    "replay-top": ("replay", 1, "-"),
    "replay": ("replay", 1, "-"),
    "replay-random": ("replay, random", 1, ":"),
    "replay-random-ratio": ("replay, random, N/M", 1, "--"),
}
_TICKS = (2, 5, 10, 20, 50, 100)
_PART = re.compile(r"m([\d.]+)/")


def figures(records: Records, out: Path) -> None:
    """Draw accuracy and gradient error against memory, the optimal memory, chosen examples.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for name, pattern in _PANELS.items():
        kinds = [kind for kind in _KINDS if pattern.format(kind) in studies]
        if kinds:
            _panels(records, name, {k: pattern.format(k) for k in kinds}, "acc@mean", out)
    linear = {k: f"digits-{k}" for k in ("add", "remove", "regulariser")}
    linear = {k: study for k, study in linear.items() if study in studies}
    if linear:
        _panels(records, "digits-gradient", linear, "gradient_error", out)
    if "optimal-memory" in studies:
        _optimal(records, out)
    if "digits-add" in studies:
        _examples(records, out)


def _by_part(records: Records, study: str, arm: str, metric: str) -> dict[float, list[float]]:
    """Return the values of ``m<q>/metric`` over seeds, by q in per cent."""
    names = sorted(records.metrics(study, arm))
    found = {}
    for name in names:
        match = _PART.match(name)
        if match and name == f"m{match[1]}/{metric}":
            found[100.0 * float(match[1])] = list(records.values(study, arm, name).values())
    return found


def _panels(records: Records, name: str, studies: dict[str, str], metric: str, out: Path) -> None:
    """One panel per kind of change: a metric against the memory in per cent of the past.

    Errors of the past's gradient are drawn for K-priors, which stand for the whole past; replay of
    few items has a small gradient because it has few items.
    """
    lines = [arm for arm in _LINES if metric.startswith("acc") or arm.startswith("k-")]
    rows: list[list[object]] = []
    legend: dict[str, object] = {}
    counts: list[int] = []
    with canvas(2.5 * len(studies) + 0.7, 2.9) as figure:
        every = figure.subplots(1, len(studies), squeeze=False)[0]
        for axes, (kind, study) in zip(every, studies.items(), strict=True):
            for arm in records.arms(study, lines):
                label, place, dashes = _LINES[arm]
                points = {x: v for x, v in _by_part(records, study, arm, metric).items() if x > 0}
                drawn = band(points)
                if not drawn:
                    continue
                x, mean, low, high = zip(*drawn, strict=True)
                counts += [len(values) for values in points.values()]
                color = PALETTE[place]
                (line,) = axes.plot(x, mean, dashes, marker="o", ms=3, color=color)
                axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
                legend.setdefault(label, line)
                rows += [[kind, arm, *point] for point in drawn]
            if metric.startswith("acc"):
                _references(records, study, kind, axes, legend, rows)
            else:
                axes.set_yscale("symlog", linthresh=1e-2)
            axes.set_xscale("log")
            axes.set_xticks(_TICKS, [str(tick) for tick in _TICKS], minor=False)
            axes.set_xticks([], minor=True)
            axes.set_title(_KINDS[kind], fontsize=9)
            first = kind == next(iter(studies))
            label = "test accuracy" if metric.startswith("acc") else "relative gradient error"
            plain_axes(axes, "memory (% of the past)", label if first else None)
        legend_above(figure, list(legend.values()), list(legend))
        note_below(figure, seeds_note(counts))
        header = ["kind", "arm", "memory_percent", "mean", "low", "high"]
        save(
            figure,
            out,
            f"{name}-{'accuracy' if metric.startswith('acc') else 'error'}",
            header,
            rows,
        )


def _references(
    records: Records,
    study: str,
    kind: str,
    axes: object,
    legend: dict[str, object],
    rows: list[list[object]],
) -> None:
    """Draw learning anew, the base model, and the weight part alone, as level lines."""
    arms = records.arms(study)
    levels = [("batch", arms[0], "batch/acc@mean", "#333333", "-")]
    levels.append(("base model", arms[0], "base/acc@mean", "#999999", "--"))
    if "weight" in arms:
        levels.append(("weight part alone", "weight", "m0/acc@mean", PALETTE[2], "-."))
    for label, arm, metric, color, dashes in levels:
        values: Sequence[float] = list(records.values(study, arm, metric).values())
        if values:
            mean = sum(values) / len(values)
            line = axes.axhline(mean, ls=dashes, color=color, lw=1)  # type: ignore[attr-defined]
            legend.setdefault(label, line)
            rows.append([kind, label, "", mean, "", ""])


def _optimal(records: Records, out: Path) -> None:
    """Relative gradient error against the number of vectors or points, over the rank."""
    arms = records.arms("optimal-memory")
    names = {"singular": "singular vectors", "top": "points, largest curvature",
             "random": "points, random, N/M"}  # fmt: skip
    rows: list[list[object]] = []
    with canvas(2.9 * len(arms) + 0.7, 2.8) as figure:
        every = figure.subplots(1, len(arms), squeeze=False)[0]
        lines: dict[str, object] = {}
        counts = []
        for axes, arm in zip(every, arms, strict=True):
            curves = records.curves("optimal-memory", arm, "optimal/errors")
            counts.append(len(curves))
            for place, (name, label) in enumerate(names.items()):
                points: dict[float, list[float]] = {}
                for curve in curves.values():
                    for size, error in zip(curve["size"], curve[name], strict=True):
                        points.setdefault(float(size) / max(curve["size"]), []).append(error)
                drawn = [(x, sum(v) / len(v), min(v), max(v)) for x, v in sorted(points.items())]
                x, mean, low, high = zip(*drawn, strict=True)
                (line,) = axes.plot(x, mean, marker="o", ms=3, color=PALETTE[place])
                axes.fill_between(x, low, high, color=PALETTE[place], alpha=0.15, lw=0)
                lines.setdefault(label, line)
                rows += [[arm, name, *point] for point in drawn]
            axes.set_yscale("log")
            axes.set_title(arm, fontsize=9)
            first = arm == arms[0]
            plain_axes(axes, "size / rank", "relative gradient error" if first else None)
        legend_above(figure, list(lines.values()), list(lines))
        note_below(figure, f"mean and range over {max(counts)} seed(s)")
        save(
            figure,
            out,
            "optimal-memory",
            ["features", "memory", "share", "mean", "low", "high"],
            rows,
        )


def _examples(records: Records, out: Path) -> None:
    """The first examples of each label that a memory chose, largest curvature against random."""
    arms = records.arms("digits-add", ["k-top", "k-random", "replay-random"])[:2]
    rows: list[list[object]] = []
    with canvas(6.4, 0.75 * 2 * len(arms) + 0.5) as figure:
        seed = records.seeds("digits-add", arms[0])[0]
        shown = {
            arm: records.curve("digits-add", arm, seed, "memory/examples") or {} for arm in arms
        }
        most = max(max(c["labels"].count(k) for k in (0, 1)) for c in shown.values())
        every = figure.subplots(2 * len(arms), most, squeeze=False)
        for place, (arm, curve) in enumerate(shown.items()):
            side = curve["shape"][-1]
            for label in (0, 1):
                own = [i for i, k in enumerate(curve["labels"]) if k == label]
                for column in range(most):
                    axes = every[2 * place + label][column]
                    axes.axis("off")
                    if column < len(own):
                        pixels = curve["inputs"][own[column]]
                        image = [pixels[r * side : (r + 1) * side] for r in range(side)]
                        axes.imshow(image, cmap="gray_r", vmin=0.0, vmax=1.0)
                        rows.append([arm, label, column, curve["classes"][own[column]], *pixels])
                words = ("even", "odd")[label]
                kind = "random" if "random" in arm else "largest curvature"
                every[2 * place + label][0].set_title(f"{kind}, {words}", fontsize=7, loc="left")
        header = ["arm", "label", "place", "class", *(f"x{i}" for i in range(side * side))]
        note_below(figure, f"seed {seed}")
        save(figure, out, "memory-examples", header, rows)
