"""Intervals of claims: where our 95 % interval lies, what is claimed, what the paper has.

Two drawings of the same rows: a Vega-Lite specification for the running dashboard, and a small SVG
of our own for table cells and the static export, where no script runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from bayesrule.report.results import VERDICT_WORDS
from bayesrule.report.text import format_number, shorten

__all__ = [
    "VERDICT_COLORS",
    "VERDICT_SHAPES",
    "Interval",
    "claimed_region",
    "interval_rows",
    "interval_spec",
    "interval_svg",
    "paper_effect",
    "region_text",
    "small_svg",
]

VERDICT_COLORS = {
    "shown": "#1f9d63",
    "not_shown": "#b47d00",
    "contradicted": "#d9503a",
    "not_enough_seeds": "#80868f",
    "not_at_this_scale": "#80868f",
}
"""Told apart on light and dark backgrounds and with colour blindness; shapes say the same."""

VERDICT_SHAPES = {
    "shown": "circle",
    "not_shown": "square",
    "contradicted": "diamond",
    "not_enough_seeds": "triangle-up",
    "not_at_this_scale": "triangle-down",
}

_NUMBER = r"[-+]?\d[\d.]*(?:e[-+]?\d+)?"
_CROSS = "M-1,-1L1,1M1,-1L-1,1"  # a saltire, as in the small drawings

Region = tuple[float, float]
"""Where a claim says that its number lies; ends may be infinite."""


@dataclass(frozen=True)
class Interval:
    """One row of an interval plot.

    Attributes:
        label: The claim's id.
        effect: The number that the claim is about.
        low: Lower end of its 95 % interval; None for no interval.
        high: Upper end.
        region: What is claimed, if it is known.
        paper: The paper's own number, if it is of the same kind.
        verdict: The verdict.
    """

    label: str
    effect: float
    low: float | None
    high: float | None
    region: Region | None
    paper: float | None
    verdict: str

    def text(self) -> str:
        """Return the row as a sentence, for readers who do not see the drawing."""
        ends = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}]"
        claimed = f"; claimed: {region_text(self.region)}" if self.region else ""
        paper = "" if self.paper is None else f"; paper: {format_number(self.paper)}"
        words = VERDICT_WORDS.get(self.verdict, self.verdict)
        return f"{self.label}: {self.effect:.3g}{ends}{claimed}{paper}; {words}"


def claimed_region(test: str) -> Region | None:
    """Return where a claim says that its number lies, from its test in words.

    The words are those of `runs.claims`: `... > 0`, `... < -0.01, no step back`, `... in [1, none]`
    and `... <= 1e-10` (of an absolute value).

    Args:
        test: The claim's `test` in claims.json.

    Returns:
        The region; None for words that are not understood.
    """
    if found := re.search(rf" in \[({_NUMBER}|none), ({_NUMBER}|none)\]$", test):
        low = -math.inf if found[1] == "none" else float(found[1])
        return (low, math.inf if found[2] == "none" else float(found[2]))
    found = re.search(rf" (<=|<|>) ({_NUMBER})(?:, no step back)?$", test)
    if found is None:
        return None
    end = float(found[2])
    return {"<=": (0.0, end), "<": (-math.inf, end), ">": (end, math.inf)}[found[1]]


def region_text(region: Region) -> str:
    """Return a region for people: `< 0`, `> 0.01`, `0.9 to 1.1`."""
    low, high = region
    if math.isinf(low):
        return "anything" if math.isinf(high) else f"< {high:g}"
    return f"> {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def _extent(rows: Sequence[Interval]) -> Region:
    """Return the axis: all intervals, finite ends of regions and the papers' numbers, and room.

    A paper's number or an end of a region that would squeeze our intervals below a tenth of the
    width is left out.
    """
    ours = [
        value
        for row in rows
        for value in (row.effect, row.low, row.high)
        if value is not None and math.isfinite(value)
    ] or [0.0]
    ends = [end for row in rows for end in row.region or () if math.isfinite(end)]
    low, high = min([*ours, *ends]), max([*ours, *ends])
    papers = [row.paper for row in rows if row.paper is not None and math.isfinite(row.paper)]
    wide_low, wide_high = min([low, *papers]), max([high, *papers])
    if wide_high - wide_low <= 10 * (high - low):
        low, high = wide_low, wide_high
    room = 0.06 * (high - low) or 0.06 * abs(low) or 1.0
    return low - room, high + room


def interval_rows(rows: Sequence[Interval]) -> list[dict[str, Any]]:
    """Return the rows as plain data, for CSV and for Vega-Lite (None where there is nothing)."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    return [
        {
            "claim": row.label,
            "effect": finite(row.effect),
            "low": finite(row.low),
            "high": finite(row.high),
            "claimed_from": finite(row.region[0]) if row.region else None,
            "claimed_to": finite(row.region[1]) if row.region else None,
            "paper": finite(row.paper),
            "verdict": VERDICT_WORDS.get(row.verdict, row.verdict),
        }
        for row in rows
    ]


def interval_spec(rows: Sequence[Interval], axis: str) -> dict[str, Any]:
    """Return a Vega-Lite specification: a line per claim, with what is claimed shaded.

    Args:
        rows: The claims, all in the unit of `axis`.
        axis: Title of the axis, with its unit.
    """
    low, high = _extent(rows)
    data = interval_rows(rows)
    for place, (values, row) in enumerate(zip(data, rows, strict=True)):
        region = row.region or (math.nan, math.nan)
        values["row"] = place  # ids may be equal or hostile: the axis counts, labels look up
        values["from"] = None if math.isnan(region[0]) else max(region[0], low)
        values["to"] = None if math.isnan(region[1]) else min(region[1], high)
    order = [row.label for row in rows]
    verdicts = list(dict.fromkeys(VERDICT_WORDS.get(row.verdict, row.verdict) for row in rows))
    names = {words: verdict for verdict, words in VERDICT_WORDS.items()}
    keys = [names.get(words, words) for words in verdicts]
    y = {"field": "claim", "type": "nominal", "sort": order, "title": None}
    legend = {"title": None, "offset": 6, "columns": 4}
    verdict = {"field": "verdict", "type": "nominal", "legend": legend}
    colors = [VERDICT_COLORS.get(key, "#80868f") for key in keys]
    shapes = [VERDICT_SHAPES.get(key, "circle") for key in keys]
    color = {**verdict, "scale": {"domain": verdicts, "range": colors}}
    shape = {**verdict, "scale": {"domain": verdicts, "range": shapes}}
    x = {
        "type": "quantitative",
        "title": axis,
        "scale": {"domain": [low, high], "zero": False, "nice": False},
        "axis": {"tickCount": 8},
    }
    paper = "; cross: the paper's number" if any(row.paper is not None for row in rows) else ""
    tooltip = [
        {"field": name, "type": "nominal" if name in ("claim", "verdict") else "quantitative"}
        for name in ("claim", "effect", "low", "high", "claimed_from", "claimed_to", "paper")
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": {
            "text": f"mean over seeds and its 95 % interval; shaded: claimed{paper}",
            "fontSize": 11,
            "offset": 8,
        },
        "data": {"values": data},
        "width": "container",
        "height": {"step": 26},
        "layer": [
            {
                "mark": {"type": "bar", "opacity": 0.2, "color": "#6f93c9", "height": 22},
                "transform": [{"filter": "isValid(datum.from) && isValid(datum.to)"}],
                "encoding": {"y": y, "x": {**x, "field": "from"}, "x2": {"field": "to"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "transform": [{"filter": "isValid(datum.low)"}],
                "encoding": {
                    "y": y,
                    "x": {**x, "field": "low"},
                    "x2": {"field": "high"},
                    "color": color,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    "y": y,
                    "x": {**x, "field": "effect"},
                    "color": color,
                    "shape": shape,
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {
                    "type": "point",
                    "shape": _CROSS,
                    "size": 60,
                    "stroke": "#8a93a0",
                    "strokeWidth": 2,
                    "clip": True,
                },
                "transform": [{"filter": "isValid(datum.paper)"}],
                "encoding": {"y": y, "x": {**x, "field": "paper"}, "tooltip": tooltip},
            },
        ],
        "description": "; ".join(row.text() for row in rows),
    }


class _Scale:
    """Maps numbers of an axis to pixels."""

    def __init__(self, extent: Region, left: float, right: float) -> None:
        self.low, self.high = extent
        self.left, self.right = left, right

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        share = (inside - self.low) / (self.high - self.low)
        return round(self.left + share * (self.right - self.left), 1)

    def ticks(self) -> list[float]:
        """Return about five round numbers inside the axis."""
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        for factor in (1, 2, 5, 10):
            if (self.high - self.low) / (step * factor) <= 5:
                step *= factor
                break
        first = math.ceil(self.low / step)
        return [step * i for i in range(first, math.floor(self.high / step) + 1)]


def _mark(verdict: str, x: float, y: float, size: float = 4.0) -> str:
    """Return a verdict's shape at a place."""
    shape, s = VERDICT_SHAPES.get(verdict, "circle"), size
    color = VERDICT_COLORS.get(verdict, "#80868f")
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="{s}" fill="{color}"/>'
    corners = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -s - 1), (s + 1, 0), (0, s + 1), (-s - 1, 0)],
        "triangle-up": [(0, -s), (s, s), (-s, s)],
        "triangle-down": [(0, s), (s, -s), (-s, -s)],
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{color}"/>'


def _row(row: Interval, scale: _Scale, y: float, half: float) -> list[str]:
    """Return the drawing of one row: what is claimed, our interval, the paper's number."""
    parts = []
    color = VERDICT_COLORS.get(row.verdict, "#80868f")
    if row.region is not None:
        left, right = scale(row.region[0]), scale(row.region[1])
        parts.append(
            f'<rect x="{left}" y="{y - half}" width="{max(right - left, 1.5):.1f}" '
            f'height="{2 * half}" fill="#6f93c9" fill-opacity="0.22"/>'
        )
        for end in row.region:
            if math.isfinite(end):
                x = scale(end)
                parts.append(
                    f'<line x1="{x}" x2="{x}" y1="{y - half}" y2="{y + half}" '
                    'stroke="#6f93c9" stroke-dasharray="2 2"/>'
                )
    if row.low is not None and row.high is not None:
        parts.append(
            f'<line x1="{scale(row.low)}" x2="{scale(row.high)}" y1="{y}" y2="{y}" '
            f'stroke="{color}" stroke-width="2"/>'
        )
    if math.isfinite(row.effect):
        parts.append(_mark(row.verdict, scale(row.effect), y))
    if row.paper is not None and scale.low <= row.paper <= scale.high:
        x = scale(row.paper)
        parts.append(
            f'<path d="M{x - 3.5} {y - 3.5}l7 7m0 -7l-7 7" stroke="currentColor" '
            'stroke-width="1.5" fill="none"/>'
        )
    return parts


def small_svg(row: Interval, width: int = 150, height: int = 22) -> str:
    """Return the drawing of one claim for a table cell, on an axis of its own; escaped.

    The numbers stand beside it in the table, and its title says them again.
    """
    scale = _Scale(_extent([row]), 6, width - 6)
    parts = _row(row, scale, height / 2, height / 2 - 2)
    return (
        f'<svg class="interval" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img"><title>{escape(row.text())}</title>{"".join(parts)}</svg>'
    )


def interval_svg(rows: Sequence[Interval], axis: str, width: int = 760) -> str:
    """Return the plot of claims that share a unit, with axis and legend; escaped.

    Args:
        rows: The claims.
        axis: Title of the axis, with its unit.
        width: In pixels.
    """
    step, left, top = 24, 230, 30
    bottom = top + step * len(rows)
    scale = _Scale(_extent(rows), left, width - 16)
    parts = [_legend(rows, left)]
    for tick in scale.ticks():
        x = scale(tick)
        text = f"{tick:.6g}"
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" stroke="currentColor" '
            f'stroke-opacity="0.15"/><text x="{x}" y="{bottom + 16}" '
            f'text-anchor="middle">{text}</text>'
        )
    for place, row in enumerate(rows):
        y = top + step * (place + 0.5)
        label = escape(shorten(row.label, 34))
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{label}</text>')
        parts += _row(row, scale, y, step / 2 - 2)
    middle = (left + width - 16) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(axis)}</text>')
    title = escape("; ".join(row.text() for row in rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="intervals" width="{width}" '
        f'height="{bottom + 46}" viewBox="0 0 {width} {bottom + 46}" role="img" '
        'font-family="sans-serif" font-size="12" fill="currentColor" color="#5c6370">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )


def _legend(rows: Sequence[Interval], left: float) -> str:
    """Return the legend: the verdicts that occur, what is claimed, the paper's number."""
    x, parts = float(left), []
    for verdict in dict.fromkeys(row.verdict for row in rows):
        words = escape(VERDICT_WORDS.get(verdict, verdict))
        parts.append(f'{_mark(verdict, x + 5, 12)}<text x="{x + 14}" y="16">{words}</text>')
        x += 30 + 6.6 * len(words)
    if any(row.region for row in rows):
        parts.append(
            f'<rect x="{x}" y="5" width="14" height="14" fill="#6f93c9" fill-opacity="0.35"/>'
            f'<text x="{x + 19}" y="16">claimed</text>'
        )
        x += 82
    if any(row.paper is not None for row in rows):
        parts.append(
            f'<path d="M{x + 1} 8l7 7m0 -7l-7 7" stroke="currentColor" stroke-width="1.5"/>'
            f'<text x="{x + 14}" y="16">paper</text>'
        )
    return "".join(parts)


def paper_effect(claim: Mapping[str, Any]) -> float | None:
    """Return the paper's own number of the kind that the claim is about, where it has one.

    For two arms that is left - right (or left / right) if both are reported by name, for one the
    number reported under the arm's name, or the only number.
    """
    ours = claim["ours"]
    numbers = {
        name: float(value)
        for name, value in (claim["paper"] or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    relation = ours.get("relation")
    left, right = (numbers.get((ours.get(side) or {}).get("arm")) for side in ("left", "right"))
    if relation == "left":
        return left if left is not None or len(numbers) != 1 else next(iter(numbers.values()))
    if left is None or right is None:
        return None
    if relation == "left - right":
        return left - right
    return left / right if relation == "left / right" and right else None
