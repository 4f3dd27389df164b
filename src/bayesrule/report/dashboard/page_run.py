"""The page of one run: `/runs/<id>`, its plots' data, its history, and what is new while it trains.

A run is found by its full id in the index; no text of a request becomes a path. Its record is read
and checked again, so what is shown is what is stored now.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from bayesrule.errors import CorruptFile
from bayesrule.report.dashboard.histories import History, curve_slug, history_plots, read_history
from bayesrule.report.dashboard.plots import Plot
from bayesrule.report.dashboard.rendering import csv_answer
from bayesrule.report.dashboard.run_plots import record_plots
from bayesrule.report.dashboard.run_query import names
from bayesrule.report.dashboard.site import Site
from bayesrule.report.names import curated, is_part, parse_name, rule_order, sort_names
from bayesrule.runs import VOLATILE, RunFolder, RunRecord, is_run_id
from bayesrule.runs.index import IndexedRun
from bayesrule.runs.query import Filter, Query

__all__ = ["metric_rows", "routes", "siblings"]

_SIBLINGS = 300
_KINDS = ("posterior", "model", "data", "task")


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of this page."""
    run = _RunPage(site)
    return [
        Route("/runs/{id}", run.page),
        Route("/runs/{id}/metrics.json", run.news),
        Route("/runs/{id}/metrics.csv", run.metrics),
        Route("/runs/{id}/history.csv", run.history),
        Route("/runs/{id}/plots/{slug}.csv", run.plot),
    ]


def siblings(run: IndexedRun) -> tuple[Query, str]:
    """Return which runs a run is compared with, and who they are in words."""
    if run.paper:
        study = f"{run.paper}/{run.part}"
        return Query((Filter("study", "=", _literal(f"{study}/") + "*"),)), f"study {study}"
    kinds = [kind for kind in _KINDS if run.fields.get(kind)]
    filters = tuple(Filter(kind, "=", _literal(str(run.fields[kind]))) for kind in kinds)
    values = ", ".join(str(run.fields[kind]) for kind in kinds)
    return Query(filters), f"runs of {values}" if values else "all runs"


def _literal(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def metric_rows(metrics: Mapping[str, float]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Return the prediction rules, and for each metric its values under them.

    Parts of a stream (`task3`, of which are many) are left to the full list.
    """
    parts = {name: parse_name(name) for name in sort_names(metrics)}
    parts = {name: part for name, part in parts.items() if not is_part(part.split)}
    rules = sorted({part.rule for part in parts.values()}, key=rule_order)
    table: dict[str, dict[str, float]] = {}
    for split in dict.fromkeys(part.split for part in parts.values()):
        own = {name: part for name, part in parts.items() if part.split == split}
        known = curated(part.metric for part in own.values())
        for name, part in own.items():
            if part.metric in known:
                stem = f"{split}/{part.metric}" if split else part.metric
                table.setdefault(stem, {})[part.rule] = metrics[name]
    return rules, [(stem, [row.get(rule) for rule in rules]) for stem, row in table.items()]


class _RunPage:
    """One run."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.index = site.index

    def _run(self, request: Request) -> tuple[IndexedRun, RunFolder]:
        """Return the run that the path names.

        Raises:
            HTTPException: 404 if there is none.
        """
        identifier = request.path_params["id"]
        if not is_run_id(identifier):
            raise HTTPException(404, "A run is named by 16 hexadecimal digits.")
        self.site.refresh()
        run = self.index.get(identifier)
        if run is None:
            raise HTTPException(404, "There is no such run in the store; it may have been removed.")
        return run, RunFolder(self.site.runs, identifier)

    def _record(self, run: IndexedRun, folder: RunFolder) -> tuple[RunRecord | None, str]:
        """Return the record, or why there is none to show."""
        if run.status == "corrupt":
            return None, run.error
        try:
            return folder.record(), ""
        except (CorruptFile, OSError, ValueError, RecursionError) as problem:
            return None, str(problem)

    def _plots(
        self, run: IndexedRun, folder: RunFolder, record: RunRecord | None, wanted: tuple[str, ...]
    ) -> tuple[list[Plot], list[Plot], list[str], list[str], History]:
        """Return curves, plots of the record, charts and curves left out, and the history."""
        history = read_history(folder.metrics_path)
        live = run.status == "running"
        curves, more = history_plots(history, wanted, live=live)
        details = record.details if record is not None else {}
        plots, others = record_plots(details, history.measured())
        return curves, plots, more, others, history

    def page(self, request: Request) -> Response:
        """Answer `/runs/<id>`."""
        run, folder = self._run(request)
        record, problem = self._record(run, folder)
        wanted = names(request.query_params.get("curves", "")[:2000])
        curves, plots, more, others, history = self._plots(run, folder, record, wanted)
        group, group_name = siblings(run)
        rules, metrics = metric_rows(record.metrics if record is not None else {})
        page = self.site.renderer.page(
            "run.html",
            here="runs",
            run=run,
            record=record,
            problem=problem,
            live=run.status == "running",
            curves=curves,
            plots=plots,
            more=more,
            others=others,
            history=history,
            rules=rules,
            metrics=metrics,
            all_metrics=sort_names(record.metrics) if record is not None else [],
            differences=self._differences(run, group),
            config=self.index.config(run.id),
            group_name=group_name,
            group_query=" ".join(quoted_filter(one) for one in group.filters),
            folder=str(folder.path),
        )
        return HTMLResponse(page)

    def _differences(
        self, run: IndexedRun, group: Query
    ) -> list[tuple[str, str | None, list[tuple[str, int]]]]:
        """Return the keys in which the run's group varies: own value, and those of the others."""
        own = self.index.config(run.id)
        spread, count = self.index.spread(group, _SIBLINGS)
        rows = []
        for key, values in spread.items():
            if key.endswith("._target_") or any(
                key == prefix or key.startswith(f"{prefix}.") for prefix in VOLATILE
            ):
                continue
            missing = count - sum(values.values())
            if len(values) + (missing > 0) < 2:
                continue
            others = Counter(values)
            if key in own and others[own[key]]:
                others[own[key]] -= 1
            elif key not in own:
                missing -= 1
            shown = [(value, n) for value, n in others.most_common() if n > 0]
            rows.append((key, own.get(key), shown + ([("(none)", missing)] if missing > 0 else [])))
        return rows

    def news(self, request: Request) -> Response:
        """Answer what a run measured since byte `after` of its history, as points of curves."""
        run, folder = self._run(request)
        text = request.query_params.get("after", "0")
        after = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
        asked = request.query_params.get("keys", "")[:20_000]
        keys = {name for name in asked.split(",") if name} or None
        history = read_history(folder.metrics_path, after)
        answer = {
            "status": run.status,
            "final": run.status != "running",
            "after": history.after,
            "reset": history.reset,
            "points": history.points(keys)[-20_000:],
            "note": history.note(),
        }
        # escaped to ASCII: a name may hold half of a surrogate pair, which UTF-8 cannot
        return Response(json.dumps(answer, allow_nan=False), media_type="application/json")

    def metrics(self, request: Request) -> Response:
        """Answer the summary metrics as CSV."""
        run, folder = self._run(request)
        record, problem = self._record(run, folder)
        if record is None:
            raise HTTPException(404, problem or "The run has no record yet.")
        rows = [(name, float(record.metrics[name])) for name in sort_names(record.metrics)]
        return csv_answer(f"{run.id}-metrics", ["metric", "value"], rows)

    def history(self, request: Request) -> Response:
        """Answer the history as CSV: a column per key."""
        run, folder = self._run(request)
        history = read_history(folder.metrics_path)
        keys = ["phase", "step", "epoch", *history.measured()]
        rows = [[_plain(row.get(key)) for key in keys] for row in history.rows]
        return csv_answer(f"{run.id}-history", keys, rows)

    def plot(self, request: Request) -> Response:
        """Answer the data of one plot as CSV."""
        run, folder = self._run(request)
        record, _ = self._record(run, folder)
        slug = request.path_params["slug"]
        curves, plots, more, *_ = self._plots(run, folder, record, ())
        if wanted := tuple(name for name in more if curve_slug(name) == slug):
            curves += self._plots(run, folder, record, wanted)[0]
        with contextlib.suppress(StopIteration):
            plot = next(one for one in (*curves, *plots) if one.slug == slug)
            return csv_answer(f"{run.id}-plot", plot.header, plot.rows)
        raise HTTPException(404, "The run has no such plot.")


def quoted_filter(condition: Filter) -> str:
    """Return a filter as a word for the field `q`."""
    return shlex.quote(f"{condition.key}{condition.operator}{condition.value}")


def _plain(value: Any) -> object:
    return value if isinstance(value, str | int | float | None) else str(value)
