"""Plots as data: a Vega-Lite specification, a summary in words, and the table drawn.

Fields of a specification are fixed names (`x`, `y`, `s`, ...); names of runs, metrics and
configuration values are only ever values of the data or titles, never fields, expressions or URLs.
Every plot has the same way out: SVG and PNG from its menu, CSV from the server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Plot", "bars", "curves", "heat_map", "lines", "ranking", "reliability", "thin"]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is loaded from there
MAX_POINTS = 1000
_ACROSS = {"tickCount": 6, "format": ".6~g"}


@dataclass(frozen=True)
class Plot:
    """One plot of a page.

    Attributes:
        slug: Name in URLs and files.
        title: What it shows.
        summary: The same for somebody who cannot see it, in one or two sentences.
        spec: Vega-Lite specification.
        header: Columns of the data behind it.
        rows: The data.
        wide: Whether it takes a whole row of the page.
        series: Keys of a history whose new points are added while a run trains.
    """

    slug: str
    title: str
    summary: str
    spec: Mapping[str, Any]
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    wide: bool = False
    series: Sequence[str] = ()


def base_spec(height: int = 230) -> dict[str, Any]:
    """Return what all specifications share: as wide as their box."""
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
    }


def finite(value: Any) -> float | None:
    """Return a number that a plot can show, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def thin(points: Sequence[Mapping[str, Any]], most: int = MAX_POINTS) -> list[Mapping[str, Any]]:
    """Return at most about `most` points of one series, keeping minimum and maximum per bucket."""
    if len(points) <= most:
        return list(points)
    buckets = most // 2
    kept: list[Mapping[str, Any]] = []
    for b in range(buckets):
        some = points[b * len(points) // buckets : (b + 1) * len(points) // buckets]
        if some:
            ends = {id(p): p for p in (min(some, key=_height), max(some, key=_height))}
            kept += sorted(ends.values(), key=lambda point: point["x"])
    return kept


def _height(point: Mapping[str, Any]) -> float:
    return float(point["y"])


def lines(
    slug: str,
    title: str,
    points: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    legend: str = "series",
    series: Sequence[str] = (),
    wide: bool = False,
) -> Plot:
    """Return curves of one quantity.

    Args:
        slug: Name in URLs.
        title: Title.
        points: Mappings with `x`, `y`, `s` (which curve) and perhaps `k` (key of the history).
        x: Label of the horizontal axis, with its unit.
        y: Label of the vertical axis, with its unit.
        legend: Title of the legend.
        series: Keys of the history that feed the plot while a run trains.
        wide: Whether it takes a whole row.
    """
    by_curve: dict[str, list[Mapping[str, Any]]] = {}
    points = [p for p in points if math.isfinite(p["x"]) and math.isfinite(p["y"])]
    for point in points:
        by_curve.setdefault(str(point["s"]), []).append(point)
    drawn = [point for curve in by_curve.values() for point in thin(curve)]
    single = all(len(curve) == 1 for curve in by_curve.values())
    spec = base_spec() | {
        "data": {"name": "points", "values": drawn},
        "mark": {
            "type": "line",
            "clip": True,
            "point": {"size": 32, "filled": True} if len(drawn) < 60 else False,
        },
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": x, "axis": _ACROSS},
            "y": {
                "field": "y",
                "type": "quantitative",
                "title": y,
                "scale": {"zero": False},
                "axis": {"format": ".6~g"},
            },
            "color": {
                "field": "s",
                "type": "nominal",
                "title": legend,
                "sort": None,
                "legend": {"columns": 4 if wide else 2} if len(by_curve) > 1 else None,
            },
            "tooltip": [
                {"field": "s", "type": "nominal", "title": legend},
                {"field": "x", "type": "quantitative", "title": x},
                {"field": "y", "type": "quantitative", "title": y, "format": ".5~g"},
            ],
        },
    }
    if single:
        spec["mark"] = {"type": "point", "filled": True, "size": 50}
    return Plot(
        slug,
        title,
        _curves_in_words(by_curve, x, y),
        spec,
        [legend, x, y],
        [(point["s"], point["x"], point["y"]) for point in points],
        wide,
        series,
    )


def _curves_in_words(curves: Mapping[str, Sequence[Mapping[str, Any]]], x: str, y: str) -> str:
    """Say of each curve (four at most) where it starts, ends, and is lowest."""
    parts = []
    for name, points in list(curves.items())[:4]:
        first, last = points[0], points[-1]
        lowest = min(_height(point) for point in points)
        parts.append(
            f"{name}: from {first['y']:.4g} at {first['x']:g} to {last['y']:.4g} at "
            f"{last['x']:g}, lowest {lowest:.4g}"
        )
    more = f"; {len(curves) - 4} more" if len(curves) > 4 else ""
    return f"{y} against {x}. {'; '.join(parts)}{more}."


def curves(
    slug: str,
    title: str,
    bands: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    x: str,
    y: str,
    legend: str,
    wide: bool = False,
) -> Plot:
    """Return mean curves with an interval around each.

    Args:
        slug: Name in URLs.
        title: Title.
        bands: For each curve its rows (x, mean, low, high).
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        legend: Title of the legend.
        wide: Whether it takes a whole row.
    """
    rows = [
        {"s": name, "x": at, "y": mean, "l": low, "h": high}
        for name, band in bands.items()
        for at, mean, low, high in thin_band(band)
    ]
    key = {"columns": 4, "symbolType": "stroke"}
    color = {"field": "s", "type": "nominal", "title": legend, "sort": None, "legend": key}
    across = {"field": "x", "type": "quantitative", "title": x, "axis": _ACROSS}
    spec = base_spec(300) | {
        "data": {"values": rows},
        "encoding": {"x": across, "color": color},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.2, "clip": True},
                "encoding": {
                    "y": {
                        "field": "l",
                        "type": "quantitative",
                        "title": y,
                        "scale": {"zero": False},
                    },
                    "y2": {"field": "h"},
                },
            },
            {
                "mark": {"type": "line", "clip": True},
                "encoding": {
                    "y": {
                        "field": "y",
                        "type": "quantitative",
                        "title": y,
                        "scale": {"zero": False},
                    },
                    "tooltip": [
                        {"field": "s", "type": "nominal", "title": legend},
                        {"field": "x", "type": "quantitative", "title": x},
                        {"field": "y", "type": "quantitative", "title": "mean", "format": ".5~g"},
                        {"field": "l", "type": "quantitative", "title": "low", "format": ".5~g"},
                        {"field": "h", "type": "quantitative", "title": "high", "format": ".5~g"},
                    ],
                },
            },
        ],
    }
    by_curve = {
        name: [{"x": at, "y": mean} for at, mean, _, _ in band]
        for name, band in bands.items()
        if band
    }
    return Plot(
        slug,
        title,
        _curves_in_words(by_curve, x, y),
        spec,
        [legend, x, "mean", "low", "high"],
        [(name, *row) for name, band in bands.items() for row in band],
        wide,
    )


def thin_band(
    band: Sequence[tuple[float, float, float, float]], most: int = 400
) -> Sequence[tuple[float, float, float, float]]:
    """Return every n-th row of a band, its last included."""
    step = math.ceil(len(band) / most)
    return [*band[:-1][::step], band[-1]] if step > 1 else band


def reliability(slug: str, title: str, curve: Mapping[str, Any]) -> Plot | None:
    """Return a reliability diagram from `counts`, `sum_conf` and `sum_acc`; None if malformed.

    Bars are the accuracy of a bin, the ticks its mean confidence (their distance is the gap that
    ECE averages), and the area of a point is the number of items.
    """
    try:
        columns = [[float(v) for v in curve[k]] for k in ("counts", "sum_conf", "sum_acc")]
        counts, conf, acc = columns
    except (KeyError, TypeError, ValueError):
        return None
    m = len(counts)
    if (
        not m
        or len(conf) != m
        or len(acc) != m
        or not all(math.isfinite(v) for column in columns for v in column)
    ):
        return None
    rows = [(b / m, (b + 1) / m, n, conf[b] / n, acc[b] / n) for b, n in enumerate(counts) if n > 0]
    total = sum(counts)
    if not rows:
        return None
    ece = sum(n * abs(a - c) for _, _, n, c, a in rows) / total
    values = [
        {"l": low, "h": high, "m": (low + high) / 2, "n": n, "c": c, "a": a, "g": a - c}
        for low, high, n, c, a in rows
    ]
    unit = {"scale": {"domain": [0, 1]}, "type": "quantitative"}
    colors = {
        "scale": {
            "domain": ["accuracy of the bin", "mean confidence"],
            "range": ["#0072B2", "#D55E00"],
        },
        "title": None,
    }
    tooltip = [
        {"field": "l", "type": "quantitative", "title": "confidence from", "format": ".3~f"},
        {"field": "h", "type": "quantitative", "title": "to", "format": ".3~f"},
        {"field": "n", "type": "quantitative", "title": "items"},
        {"field": "a", "type": "quantitative", "title": "accuracy", "format": ".3f"},
        {"field": "c", "type": "quantitative", "title": "mean confidence", "format": ".3f"},
    ]
    spec = base_spec(280) | {
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "bar", "opacity": 0.65, "stroke": None},
                "encoding": {
                    "x": {"field": "l", "title": "confidence", **unit},
                    "x2": {"field": "h"},
                    "y": {"field": "a", "title": "accuracy", **unit},
                    "y2": {"datum": 0},
                    "color": {"datum": "accuracy of the bin", **colors},
                    "tooltip": tooltip,
                },
            },
            {
                "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
                "mark": {"type": "line", "color": "#888888", "strokeDash": [4, 3]},
                "encoding": {"x": {"field": "x", **unit}, "y": {"field": "y", **unit}},
            },
            {
                "data": {"values": values},
                "mark": {"type": "tick", "thickness": 2, "orient": "horizontal", "size": 14},
                "encoding": {
                    "x": {"field": "m", **unit},
                    "y": {"field": "c", **unit},
                    "color": {"datum": "mean confidence", **colors},
                },
            },
            {
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "color": "#009E73", "opacity": 0.9},
                "encoding": {
                    "x": {"field": "m", **unit},
                    "y": {"field": "a", **unit},
                    "size": {
                        "field": "n",
                        "type": "quantitative",
                        "title": "items",
                        "scale": {"range": [4, 220]},
                        "legend": {"orient": "right", "tickCount": 3, "columns": 1},
                    },
                    "tooltip": tooltip,
                },
            },
        ],
    }
    bias = sum(n * (c - a) for _, _, n, c, a in rows) / total
    sign = "over-confident" if bias > 0 else "under-confident"
    summary = (
        f"ECE {ece:.4f} over {m} equal bins and {total:.0f} items; on average {sign} by "
        f"{abs(bias):.4f}. Dashed: perfect calibration."
    )
    header = ["bin_low", "bin_high", "items", "confidence", "accuracy"]
    return Plot(slug, title, summary, spec, header, rows)


def heat_map(
    slug: str,
    title: str,
    cells: Iterable[tuple[str, str, float, str]],
    *,
    x: str,
    y: str,
    value: str,
    summary: str,
    domain: tuple[float, float] | None = None,
) -> Plot:
    """Return a matrix as coloured cells with their numbers.

    Args:
        slug: Name in URLs.
        title: Title.
        cells: (column, row, number that colours, text in the cell).
        x: Label of the columns.
        y: Label of the rows.
        value: What the colour means, with its unit.
        summary: In words.
        domain: Ends of the colour scale; None: those of the data.
    """
    found = [cell for cell in cells if math.isfinite(cell[2])]
    numbers = [number for _, _, number, _ in found] or [0.0]
    low, high = domain or (min(numbers), max(numbers))
    middle = (low + high) / 2
    columns = list(dict.fromkeys(column for column, *_ in found))
    rows = list(dict.fromkeys(row for _, row, *_ in found))
    values = [
        {"x": column, "y": row, "v": number, "t": text, "d": number > middle}
        for column, row, number, text in found
    ]
    small = max(len(columns), len(rows)) > 12
    axis = {"labelAngle": 0, "labelOverlap": True, "grid": False}
    encoding = {
        "x": {"field": "x", "type": "nominal", "title": x, "sort": columns, "axis": axis},
        "y": {"field": "y", "type": "nominal", "title": y, "sort": rows, "axis": {"grid": False}},
    }
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rect"},
            "encoding": {
                "color": {
                    "field": "v",
                    "type": "quantitative",
                    "title": value,
                    "scale": {"scheme": "blues", "domain": [low, high]},
                    "legend": {"orient": "right", "gradientLength": 140, "columns": 1},
                },
                "tooltip": [
                    {"field": "x", "type": "nominal", "title": x},
                    {"field": "y", "type": "nominal", "title": y},
                    {"field": "v", "type": "quantitative", "title": value, "format": ".5~g"},
                    {"field": "t", "type": "nominal", "title": "in the cell"},
                ],
            },
        }
    ]
    if max(len(columns), len(rows)) <= 20:
        ink = {"condition": {"test": "datum.d", "value": "#ffffff"}, "value": "#1a1d21"}
        layers.append(
            {
                "mark": {"type": "text", "fontSize": 8 if small else 11},
                "encoding": {"text": {"field": "t", "type": "nominal"}, "color": ink},
            }
        )
    spec = base_spec(min(460, 80 + 30 * len(rows))) | {
        "data": {"values": values},
        "encoding": encoding,
        "layer": layers,
    }
    table = [(column, row, number, text) for column, row, number, text in found]
    return Plot(slug, title, summary, spec, [x, y, value, "text"], table, wide=small)


def bars(
    slug: str,
    title: str,
    parts: Sequence[tuple[str, str, float]],
    *,
    x: str,
    y: str,
    legend: str,
    summary: str,
) -> Plot:
    """Return stacked bars from (bar, part, height)."""
    values = [{"x": bar, "s": part, "y": height} for bar, part, height in parts]
    spec = base_spec(240) | {
        "data": {"values": values},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "x", "type": "ordinal", "title": x, "sort": None,
                  "axis": {"labelAngle": 0, "labelOverlap": True}},
            "y": {"field": "y", "type": "quantitative", "title": y, "stack": "zero"},
            "color": {"field": "s", "type": "nominal", "title": legend, "sort": None,
                      "scale": {"scheme": "tableau20"},
                      "legend": {"orient": "right", "columns": 1}},
            "tooltip": [
                {"field": "x", "type": "nominal", "title": x},
                {"field": "s", "type": "nominal", "title": legend},
                {"field": "y", "type": "quantitative", "title": y},
            ],
        },
    }  # fmt: skip
    return Plot(slug, title, summary, spec, [x, legend, y], list(parts), wide=True)


def ranking(
    slug: str,
    title: str,
    rows: Sequence[tuple[str, float]],
    *,
    x: str,
    y: str,
    summary: str,
) -> Plot:
    """Return one horizontal bar per name, in the order given."""
    names = [name for name, _ in rows]
    values = [{"y": name, "x": value} for name, value in rows]
    spec = base_spec(28 * len(rows) + 10) | {
        "data": {"values": values},
        "mark": {"type": "bar", "color": "#0072B2", "height": {"band": 0.7}},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": x, "axis": _ACROSS},
            "y": {"field": "y", "type": "nominal", "title": y, "sort": names},
            "tooltip": [
                {"field": "y", "type": "nominal", "title": y},
                {"field": "x", "type": "quantitative", "title": x, "format": ".4f"},
            ],
        },
    }
    return Plot(slug, title, summary, spec, [y, x], list(rows), wide=True)
