"""Figures of continual learning, from records: matrices, curves, boundaries, memory.

Every function writes `<name>.svg`, `<name>.png` and `<name>.csv` into a folder and returns their
paths. Arms without a finished run are left out; where nothing is left, nothing is written.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.report.drawing import (
    DASHES,
    MARKERS,
    PALETTE,
    Style,
    band,
    canvas,
    draw_band,
    legend_above,
    metric_label,
    note_below,
    plain_axes,
    save,
    seeds_note,
)
from bayesrule.report.records import Records

if TYPE_CHECKING:
    import numpy as np

__all__ = ["boundaries", "chosen_memory", "memory_curve", "stream_curves", "stream_matrix"]

_Row = tuple[object, ...]


def _stream(records: Records, study: str, arm: str, seed: int) -> Mapping[str, Any]:
    """Return what a run of task=continual left for figures; empty for another task's."""
    found: Mapping[str, Any] = records.record(study, arm, seed).details.get("continual", {})
    return found


def _matrix(records: Records, study: str, arm: str, metric: str) -> tuple[np.ndarray, int] | None:
    """Return the mean over seeds of a matrix, NaN where it was not measured, and their number."""
    import numpy as np

    found = [
        np.array(rows, dtype=np.float64)  # None becomes NaN
        for seed in records.seeds(study, arm)
        if (rows := _stream(records, study, arm, seed).get("matrices", {}).get(metric))
    ]
    return (np.stack(found).mean(0), len(found)) if found else None


def stream_matrix(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    metric: str = "acc@mean",
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw a[t, j], the score on task j after task t, as a heat map per arm (mean over seeds).

    Args:
        records: The runs.
        study: The study.
        out: Folder.
        arms: Only these, in this order.
        metric: ``<metric>@<rule>`` of a matrix in the record.
        labels: Names of arms for people.
        name: File name without ending (default: ``<study>-matrix``).
    """
    import numpy as np

    found = {
        arm: one
        for arm in records.arms(study, arms)
        if (one := _matrix(records, study, arm, metric)) is not None
    }
    if not found:
        return []
    style, rows = Style(records, study, labels), []
    columns = min(len(found), 4)
    lines = -(-len(found) // columns)
    low = min(float(np.nanmin(a)) for a, _ in found.values())
    high = max(float(np.nanmax(a)) for a, _ in found.values())
    with canvas(2.1 * columns + 0.6, 2.2 * lines) as figure:
        axes = figure.subplots(lines, columns, squeeze=False)
        image: Any = None
        for place, axis in enumerate(axes.flat):
            axis.grid(visible=False)
            if place >= len(found):
                axis.set_axis_off()
                continue
            arm = list(found)[place]
            a, n_seeds = found[arm]
            image = axis.imshow(a, vmin=low, vmax=high, cmap="viridis")
            for (t, j), value in np.ndenumerate(a):
                if np.isfinite(value):
                    dark = value < low + 0.6 * (high - low)
                    text = f"{value:.2f}".removeprefix("0").replace("1.00", "1")
                    style_of: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5}
                    axis.text(j, t, text, color="white" if dark else "black", **style_of)
                    rows.append((arm, t + 1, j + 1, float(value), n_seeds))
            axis.set_title(style.label(arm))
            axis.set_xticks(range(len(a)), [str(j + 1) for j in range(len(a))])
            axis.set_yticks(range(len(a)), [str(t + 1) for t in range(len(a))])
            plain_axes(axis, "task", "after task" if place % columns == 0 else None)
        figure.colorbar(image, ax=axes, label=metric_label(f"test/{metric}"), shrink=0.8)
        header = ("arm", "after", "task", metric, "seeds")
        return save(figure, out, name or f"{study}-matrix", header, rows)


def stream_curves(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    metric: str = "acc",
    rule: str = "mean",
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw the mean accuracy on the tasks seen so far after each experience, with seed bands.

    Args:
        records: The runs.
        study: The study.
        out: Folder.
        arms: Only these, in this order.
        metric: Of ``after<t>/<metric>@<rule>``.
        rule: A rule; ``mc`` is each arm's largest.
        labels: Names of arms for people.
        name: File name without ending (default: ``<study>-stream``).
    """
    style = Style(records, study, labels)
    rows: list[_Row] = []
    numbers: list[int] = []
    with canvas(4.6, 3.2) as figure:
        axis = figure.subplots()
        handles = []
        for arm in records.arms(study, arms):
            own = records.rule(study, arm, f"test/{metric}", rule)
            values: dict[float, list[float]] = {}
            t = 1
            while found := records.values(study, arm, f"after{t}/{metric}@{own}"):
                values[float(t)] = list(found.values())
                t += 1
            if not values:
                continue
            points = band(values)
            look = {"linestyle": style.dashes(arm), "marker": style.marker(arm), "markersize": 4}
            own_label = style.label(arm)
            handles.append(draw_band(axis, points, style.color(arm), label=own_label, **look))
            rows += [(arm, int(t), *rest) for t, *rest in points]
            numbers += [len(each) for each in values.values()]
        if not handles:
            return []
        last = max(int(row[1]) for row in rows)  # type: ignore[call-overload]
        axis.set_xticks(range(1, last + 1))
        plain_axes(axis, "tasks seen", f"mean {metric_label(f'test/{metric}')} on them")
        legend_above(figure, handles, [str(handle.get_label()) for handle in handles])
        note_below(figure, seeds_note(numbers))
        header = ("arm", "tasks", "mean", "low", "high")
        return save(figure, out, name or f"{study}-stream", header, rows)


def memory_curve(
    records: Records,
    study: str,
    out: Path,
    *,
    series: Mapping[str, Mapping[float, str]],
    lines: Mapping[str, str] | None = None,
    metric: str = "test/acc@mean",
    x: str = "stored items per task",
    name: str | None = None,
) -> list[Path]:
    """Draw a score against the size of the memory, a line per method with a band over seeds.

    Args:
        records: The runs.
        study: The study.
        out: Folder.
        series: Method for people -> size -> arm.
        lines: Methods without a memory, for people -> arm, as level lines.
        metric: A metric of the record.
        x: Label of the size.
        name: File name without ending (default: ``<study>-memory``).
    """
    rows: list[_Row] = []
    numbers: list[int] = []
    there = set(records.arms(study))
    with canvas(4.6, 3.2) as figure:
        axis = figure.subplots()
        handles = []
        for place, (label, sizes) in enumerate(series.items()):
            values = {
                size: list(records.values(study, arm, metric).values())
                for size, arm in sizes.items()
                if arm in there
            }
            points = band(values)
            if not points:
                continue
            dashes, marker = DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]
            look = {"linestyle": dashes, "marker": marker, "markersize": 4, "label": label}
            handles.append(draw_band(axis, points, PALETTE[place % len(PALETTE)], **look))
            rows += [(label, *point) for point in points]
            numbers += [len(each) for each in values.values()]
        for label, arm in (lines or {}).items():
            level = list(records.values(study, arm, metric).values()) if arm in there else []
            if level:
                (_, mean_level, low_level, high_level) = band({0.0: level})[0]
                handles.append(axis.axhline(mean_level, color="#555555", lw=1, ls=":", label=label))
                rows.append((label, "", mean_level, low_level, high_level))
        if not numbers:
            return []
        axis.set_xscale("log")
        ticks = sorted({size for sizes in series.values() for size in sizes})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        plain_axes(axis, x, metric_label(metric))
        legend_above(figure, handles, [str(handle.get_label()) for handle in handles])
        note_below(figure, seeds_note(numbers))
        header = ("method", "size", "mean", "low", "high")
        return save(figure, out, name or f"{study}-memory", header, rows)


def boundaries(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    seed: int | None = None,
    rule: str = "mean",
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw p(y = 1) over the plane after each task, a row per arm, with test items seen so far.

    Args:
        records: The runs of a stream with inputs in the plane and two outputs.
        study: The study.
        out: Folder.
        arms: Only these, in this order.
        seed: Whose run (default: the first).
        rule: The prediction rule.
        labels: Names of arms for people.
        name: File name without ending (default: ``<study>-boundaries``).
    """
    import numpy as np

    found = {}
    for arm in records.arms(study, arms):
        own = records.seeds(study, arm)
        chosen = own[0] if seed is None else seed
        grid = _stream(records, study, arm, chosen).get("grid") if chosen in own else None
        if grid and rule in grid["p"]:
            found[arm] = grid
    if not found:
        return []
    style, rows = Style(records, study, labels), []
    n_tasks = max(len(grid["p"][rule]) for grid in found.values())
    with canvas(1.7 * n_tasks, 1.5 * len(found) + 0.3) as figure:
        axes = figure.subplots(len(found), n_tasks, squeeze=False, sharex=True, sharey=True)
        for number, (arm, grid) in enumerate(found.items()):
            line = axes[number]
            for t, (axis, p) in enumerate(zip(line, grid["p"][rule], strict=False)):
                axis.grid(visible=False)
                axis.contourf(grid["x"], grid["y"], p, levels=np.linspace(0, 1, 11), cmap="RdBu_r",
                              alpha=0.75)  # fmt: skip
                axis.contour(grid["x"], grid["y"], p, levels=[0.5], colors="black", linewidths=0.8)
                for task in grid["points"][: t + 1]:
                    for label, color in ((0, "#08306b"), (1, "#67000d")):
                        points = np.array([point[:2] for point in task if point[2] == label])
                        axis.plot(points[:, 0], points[:, 1], ".", ms=1.5, color=color)
                axis.set_title(f"after task {t + 1}" if number == 0 else "")
                plain_axes(axis, None, style.label(arm) if t == 0 else None)
                for y, line_of_p in zip(grid["y"], p, strict=True):
                    at = zip(grid["x"], line_of_p, strict=True)
                    rows += [(arm, t + 1, _four(x), _four(y), _four(p1)) for x, p1 in at]
        header = ("arm", "after", "x", "y", "p1")
        return save(figure, out, name or f"{study}-boundaries", header, rows)


def _four(value: float) -> float:
    return float(f"{value:.4g}")  # digits: more cannot be seen, and make a table of megabytes


def chosen_memory(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    seed: int | None = None,
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Draw the stored images that runs with ``task.pictures`` kept, a row per arm and memory.

    Args:
        records: The runs of a stream of images.
        study: The study.
        out: Folder.
        arms: Only these, in this order.
        seed: Whose run (default: the first).
        labels: Names of arms for people.
        name: File name without ending (default: ``<study>-chosen``).
    """
    import numpy as np

    style = Style(records, study, labels)
    lines: list[tuple[str, int, np.ndarray, list[int]]] = []
    for arm in records.arms(study, arms):
        own = records.seeds(study, arm)
        chosen = own[0] if seed is None else seed
        stored = _stream(records, study, arm, chosen).get("pictures", []) if chosen in own else []
        for place, one in enumerate(stored):
            pixels = np.frombuffer(base64.b64decode(one["pixels"]), dtype=np.uint8)
            lines.append((arm, place, pixels.reshape(-1, *one["shape"]), one["targets"]))
    if not lines:
        return []
    wide = max(len(pixels) for _, _, pixels, _ in lines)
    rows: list[_Row] = []
    with canvas(0.42 * wide + 1.2, 0.46 * len(lines) + 0.2) as figure:
        axes = figure.subplots(len(lines), wide, squeeze=False)
        for line, (arm, place, pixels, targets) in zip(axes, lines, strict=True):
            for axis, one, target in zip(line, pixels, targets, strict=False):
                picture = one[0] if one.shape[0] == 1 else np.moveaxis(one, 0, -1)
                axis.imshow(picture, cmap="gray_r", vmin=0, vmax=255)
                rows.append((arm, place + 1, target))
            for axis in line:
                axis.set_axis_off()
            line[0].text(-0.25, 0.5, f"{style.label(arm)}, {place + 1}", ha="right", va="center",
                         fontsize=7, transform=line[0].transAxes)  # fmt: skip
        return save(figure, out, name or f"{study}-chosen", ("arm", "memory", "target"), rows)
