"""Many runs at once: `/parallel`: parallel coordinates, and curves with a band over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from bayesrule.errors import ConfigError
from bayesrule.report.dashboard.histories import read_history
from bayesrule.report.dashboard.plots import Plot, base_spec, curves, finite
from bayesrule.report.dashboard.rendering import csv_answer
from bayesrule.report.dashboard.run_query import RunQuery, names
from bayesrule.report.dashboard.site import Site
from bayesrule.report.drawing import band, metric_label
from bayesrule.report.names import headline_columns
from bayesrule.runs import RunFolder
from bayesrule.runs.index import IndexedRun
from bayesrule.runs.query import Filter, Query

__all__ = ["routes"]

MOST_RUNS = 1000
"""More lines than this take a browser seconds to draw and show nothing."""

_MOST_AXES = 8
_MOST_GROUPS = 8
_MOST_HISTORIES = 80
_SHARE = 16
_GROUPS = ("posterior", "model", "correction", "federated", "merge", "trainer", "task", "data")
_LEFT_OUT = ("id", "study", "note", "tags", "scale", "seed", "logger", "paths")


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of this page."""
    view = _Parallel(site)
    return [
        Route("/parallel", view.page),
        Route("/parallel/plots/{slug}.csv", view.csv),
    ]


class _Parallel:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.index = site.index

    def page(self, request: Request) -> Response:
        """Answer `/parallel`."""
        self.site.refresh()
        asked = RunQuery.of(request.query_params)
        status, problem, found = 200, "", _Nothing
        try:
            found = self._view(request, asked)
        except ConfigError as error:
            status, problem = 400, str(error)
        page = self.site.renderer.page(
            "parallel.html",
            here="parallel",
            asked=asked,
            problem=problem,
            papers=self.index.distinct("paper"),
            arms=self.index.distinct("arm"),
            keys=self.index.keys("config")[:1000],
            names=self.index.keys("metric")[:1000],
            most=MOST_RUNS,
            query=str(request.url.query),
            **found,
        )
        return HTMLResponse(page, status)

    def csv(self, request: Request) -> Response:
        """Answer the data of one of the two plots as CSV."""
        try:
            found = self._view(request, RunQuery.of(request.query_params))
        except ConfigError as error:
            raise HTTPException(400, str(error)) from None
        for plot in found["plots"]:
            if plot.slug == request.path_params["slug"]:
                return csv_answer(f"runs-{plot.slug}", plot.header, plot.rows)
        raise HTTPException(404, "There is no such plot of these runs.")

    def _view(self, request: Request, asked: RunQuery) -> dict[str, Any]:
        query = RunQuery(
            asked.q, asked.paper, asked.arm, asked.status, sort="id", dir="asc"
        ).query()
        axes = names(request.query_params.get("axes", "")[:2000])[:_MOST_AXES]
        curve = request.query_params.get("curve", "")[:200].strip()
        metric = headline_columns(self.index.metric_names(query), 1)
        if not axes:
            measured = replace(
                query, filters=(*query.filters, *(Filter(m, "=", "*") for m in metric))
            )
            axes = (*self._varied(measured)[: _MOST_AXES - 2], *metric)
        # ids are hashes: the first of them are a random sample that stays the same
        rows, total = self.index.find(query, axes, limit=MOST_RUNS)
        plots = [plot] if (plot := parallel_coordinates(rows, axes)) is not None else []
        bands, note = self._bands(asked, curve)
        return {
            "plots": plots + ([bands] if bands is not None else []),
            "total": total,
            "drawn": len(rows),
            "axes": ",".join(axes),
            "curve": curve,
            "note": note,
        }

    def _varied(self, query: Query) -> list[str]:
        """Return the configuration keys that vary: those that all runs have, methods first."""
        spread, count = self.index.spread(query, MOST_RUNS)
        varied = []
        for key, values in spread.items():
            head = key.partition(".")[0]
            parent = key.rpartition(".")[0]
            if head in _LEFT_OUT or key.endswith("._target_") or len(values) < 2:
                continue
            if key.endswith(".name") and parent in spread:  # the group's own name says it
                continue
            partial = sum(values.values()) < count
            place = _GROUPS.index(head) if head in _GROUPS else len(_GROUPS)
            detail = head in ("data", "metrics") and head != key
            varied.append((partial, detail, place, len(values), key))
        return [key for *_, key in sorted(varied)]

    def _bands(self, asked: RunQuery, curve: str) -> tuple[Plot | None, str]:
        """Return curves of groups, with a band over their runs, and what was left out."""
        by = asked.groups or ("study",)
        query = RunQuery(
            asked.q, asked.paper, asked.arm, asked.status, sort="id", dir="asc"
        ).query()
        rows, total = self.index.find(query, by, limit=MOST_RUNS)
        groups: dict[str, list[IndexedRun]] = {}
        for run in rows:
            label = ", ".join(str(run.field(key) or "–") for key in by)
            groups.setdefault(label, []).append(run)
        largest = sorted(groups, key=lambda label: (-len(groups[label]), label))[:_MOST_GROUPS]
        each = max(1, _MOST_HISTORIES // max(1, len(largest)))
        histories = {
            label: [
                read_history(RunFolder(self.site.runs, run.id).metrics_path, share=_SHARE)
                for run in groups[label][:each]
            ]
            for label in largest
        }
        if not curve:
            found = next((h for some in histories.values() for h in some if h.measured()), None)
            curve = found.measured()[0] if found is not None else ""
        bands = {}
        for label, some in histories.items():
            values: dict[float, list[float]] = {}
            for history in some:
                points = history.points({curve})
                for point in points:
                    if point["s"] == points[0]["s"]:
                        values.setdefault(point["x"], []).append(point["y"])
            if values:
                bands[label] = band(values)
        if not bands:
            return None, f"none of these runs has the curve {curve!r}" if curve else ""
        used = sum(len(histories[label]) for label in bands)
        note = (
            f"{curve} of {used} of {total} runs: the {len(bands)} largest of {len(groups)} groups "
            f"by {', '.join(by)}, at most {each} runs each. Lines are means over runs, bands 95 % "
            "t intervals."
        )
        if any(history.cut for label in bands for history in histories[label]):
            note += " Of long histories only the last part is read."
        title = f"{curve} against step, by {', '.join(by)}"
        plot = curves(
            "bands", title, bands, x="step", y=metric_label(curve), legend=", ".join(by), wide=True
        )
        return plot, note


_Nothing: dict[str, Any] = {
    "plots": [], "total": 0, "drawn": 0, "axes": "", "curve": "", "note": "",
}  # fmt: skip


class _Axis:
    """One axis: where a value lies on it, between 0 and 1, and the marks beside it."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        there = [value for value in values if value is not None]
        numbers = [finite(value) for value in there]
        self.numeric = bool(there) and all(number is not None for number in numbers)
        self.label = name
        self.places: dict[str, float] = {}
        self.low = self.high = 0.0
        self.log = False
        if self.numeric:
            known = [float(number) for number in numbers if number is not None]
            self.low, self.high = min(known), max(known)
            self.log = self.low > 0 and self.high / self.low > 30
        else:
            kinds = sorted({str(value) for value in there})
            last = max(1, len(kinds) - 1)
            self.places = {
                kind: (i / last if len(kinds) > 1 else 0.5) for i, kind in enumerate(kinds)
            }
        self.label = f"{name} (log)" if self.log else name

    def place(self, value: Any) -> float | None:
        """Return the height of a value."""
        if value is None:
            return None
        if not self.numeric:
            return self.places.get(str(value))
        number = float(value)
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def marks(self) -> list[tuple[float, str]]:
        """Return (height, text) of the marks."""
        if not self.numeric:
            shown = list(self.places.items())
            step = math.ceil(len(shown) / 8)
            return [(place, kind[:24]) for kind, place in shown[::step]]
        if self.low == self.high:
            return [(0.5, f"{self.low:.4g}")]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(0.0, f"{self.low:.4g}"), (0.5, f"{middle:.4g}"), (1.0, f"{self.high:.4g}")]


def parallel_coordinates(rows: Sequence[IndexedRun], axes: Sequence[str]) -> Plot | None:
    """Return one line per run over several keys; runs that lack one of them are left out.

    Args:
        rows: Runs with the keys among their fields.
        axes: Columns, configuration keys or metrics; the last one colours the lines.
    """
    values = {run.id: [run.field(key) for key in axes] for run in rows}
    whole = {one: row for one, row in values.items() if None not in row}
    if len(axes) < 2 or len(whole) < 2:
        return None
    scales = [_Axis(key, column) for key, column in zip(axes, zip(*whole.values()), strict=True)]
    labels = [scale.label for scale in scales]
    last = scales[-1]
    points: list[Mapping[str, Any]] = [
        {
            "r": one,
            "a": scale.label,
            "p": scale.place(value),
            "t": f"{value:.5g}" if isinstance(value, float) else str(value)[:60],
            "c": float(row[-1]) if last.numeric else str(row[-1])[:40],
        }
        for one, row in whole.items()
        for scale, value in zip(scales, row, strict=True)
    ]
    marks = [{"a": s.label, "p": place, "t": text} for s in scales for place, text in s.marks()]
    across = {
        "field": "a", "type": "nominal", "sort": labels, "title": None,
        "scale": {"type": "point", "padding": 0.35},
        "axis": {"labelAngle": 0, "labelLimit": 150, "orient": "top", "grid": True, "ticks": False,
                 "domain": False, "labelFontWeight": "bold"},
    }  # fmt: skip
    height = {
        "field": "p", "type": "quantitative", "title": None, "axis": None,
        "scale": {"domain": [-0.03, 1.03]},
    }  # fmt: skip
    color: dict[str, Any] = {"field": "c", "title": last.label}
    if last.numeric:
        kind = "log" if last.log else "linear"
        color |= {"type": "quantitative", "scale": {"scheme": "viridis", "type": kind}}
        color["legend"] = {"orient": "bottom", "gradientLength": 240, "columns": 1}
    else:
        color |= {"type": "nominal", "legend": {"orient": "bottom"}}
    spec = base_spec(380) | {
        "encoding": {"x": across, "y": height},
        "layer": [
            {
                "data": {"values": points},
                "mark": {"type": "line", "opacity": max(0.2, min(0.9, 40 / len(whole))),
                         "strokeWidth": 1.4},
                "encoding": {
                    "color": color,
                    "detail": {"field": "r", "type": "nominal"},
                    "tooltip": [
                        {"field": "r", "type": "nominal", "title": "run"},
                        {"field": "a", "type": "nominal", "title": "key"},
                        {"field": "t", "type": "nominal", "title": "value"},
                    ],
                },
            },
            {
                "data": {"values": marks},
                "mark": {"type": "text", "align": "left", "dx": 5, "style": "words"},
                "encoding": {"text": {"field": "t", "type": "nominal"}},
            },
        ],
    }  # fmt: skip
    left = len(rows) - len(whole)
    summary = (
        f"{len(whole)} runs, one line each, over {len(axes)} keys; coloured by {last.label}."
        + (f" {left} runs lack one of the keys and are left out." if left else "")
    )
    table = [(one, *row) for one, row in whole.items()]
    title = "Runs over their settings and results"
    return Plot("parallel", title, summary, spec, ["run", *axes], table, wide=True)
