"""Pages of runs: `/runs` (the table) and its CSV; `/runs/<id>` is in `page_run`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from bayesrule.errors import ConfigError
from bayesrule.report.dashboard import page_compare, page_parallel, page_run, page_searches
from bayesrule.report.dashboard.rendering import csv_answer
from bayesrule.report.dashboard.run_query import RunQuery
from bayesrule.report.dashboard.site import Site
from bayesrule.report.names import headline_columns
from bayesrule.runs import Interval, mean_interval
from bayesrule.runs.group import Group
from bayesrule.runs.tables import format_interval

__all__ = ["routes"]

PAGE = 50
FIXED = ("posterior", "model", "data")
"""Configuration keys that every table of runs shows."""

_MOST_ROWS = 100_000


@dataclass(frozen=True)
class GroupRow:
    """One line of a grouped table."""

    group: Group
    intervals: Sequence[Interval | None]
    url: str | None

    def text(self, place: int) -> str:
        """Return the mean over seeds and half the width of its interval."""
        interval = self.intervals[place]
        return "–" if interval is None else format_interval(interval)


def over_seeds(group: Group, metric: str) -> Interval | None:
    """Return the mean over seeds; several runs of one seed count once, by their mean."""
    by_seed = group.values.get(metric, {})
    means = [math.fsum(values) / len(values) for values in by_seed.values() if values]
    return mean_interval(means) if means else None


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of this group of pages."""
    table = _Table(site)
    return [
        Route("/runs", table.page),
        Route("/runs.csv", table.csv),
        *page_run.routes(site),
        *page_compare.routes(site),
        *page_parallel.routes(site),
        *page_searches.routes(site),
    ]


class _Table:
    """The table of runs."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.index = site.index

    def page(self, request: Request) -> Response:
        """Answer `/runs`: the whole page, or for htmx the table alone."""
        self.site.refresh()
        asked = RunQuery.of(request.query_params)
        context: dict[str, Any] = {"asked": asked, "problem": "", "per_page": PAGE}
        status = 200
        try:
            context |= self._grouped(asked) if asked.groups else self._rows(asked)
        except ConfigError as problem:
            context |= {"problem": str(problem), "rows": [], "total": 0, "pages": 1}
            context |= {"metrics": (), "columns": ()}
            status = 400
        headers = {"vary": "HX-Request"}
        if "hx-request" in request.headers:
            page = self.site.renderer.page("_run_table.html", **context)
            headers["hx-push-url"] = asked.url(page=asked.page)
        else:
            page = self.site.renderer.page(
                "runs.html",
                here="runs",
                papers=self.index.distinct("paper"),
                arms=self.index.distinct("arm"),
                statuses=self.index.distinct("status"),
                keys=self.index.keys("config")[:1000],
                names=self.index.keys("metric")[:1000],
                all_runs=self.index.count(),
                root=str(self.site.runs),
                **context,
            )
        return HTMLResponse(page, status, headers=headers)

    def _metrics(self, asked: RunQuery) -> tuple[str, ...]:
        """Return the metrics shown: those asked for, else the best known of the runs that fit."""
        known = set(self.index.keys("metric"))
        wanted = tuple(name for name in asked.columns if name in known)
        return wanted or tuple(headline_columns(self.index.metric_names(asked.query()), 3))

    def _rows(self, asked: RunQuery) -> dict[str, Any]:
        metrics = self._metrics(asked)
        columns = (*FIXED, *(name for name in asked.columns if name not in metrics))
        wanted = (*columns, *metrics, "seed")
        rows, total = self.index.find(
            asked.query(), wanted, limit=PAGE, offset=(asked.page - 1) * PAGE
        )
        pages = max(1, math.ceil(total / PAGE))
        return {
            "rows": rows, "total": total, "pages": pages, "metrics": metrics, "columns": columns,
        }  # fmt: skip

    def _grouped(self, asked: RunQuery) -> dict[str, Any]:
        metrics = self._metrics(asked)
        groups = self.index.group(asked.query(), asked.groups, metrics)
        start = (asked.page - 1) * PAGE
        return {
            "rows": [
                GroupRow(
                    group,
                    [over_seeds(group, metric) for metric in metrics],
                    asked.within(asked.groups, group.labels),
                )
                for group in groups[start : start + PAGE]
            ],
            "total": len(groups),
            "pages": max(1, math.ceil(len(groups) / PAGE)),
            "metrics": metrics,
            "columns": asked.groups,
        }

    def csv(self, request: Request) -> Response:
        """Answer `/runs.csv`: all rows that fit, grouped or not."""
        asked = RunQuery.of(request.query_params)
        try:
            metrics = self._metrics(asked)
            if asked.groups:
                return csv_answer("runs-grouped", *self._grouped_csv(asked, metrics))
            columns = (*FIXED, *(name for name in asked.columns if name not in metrics))
            wanted = (*columns, *metrics, "seed")
            rows, _ = self.index.find(asked.query(), wanted, limit=_MOST_ROWS)
        except ConfigError as problem:
            return PlainTextResponse(str(problem), 400)
        fixed = ("id", "status", "date", "paper", "part", "arm", "seed", "wall")
        names = ["id", "status", "date", "paper", "study", "arm", "seed", "seconds"]
        header = [*names, *columns, *metrics]
        values = [[run.field(name) for name in (*fixed, *columns, *metrics)] for run in rows]
        return csv_answer("runs", header, values)

    def _grouped_csv(
        self, asked: RunQuery, metrics: Sequence[str]
    ) -> tuple[list[str], list[list[object]]]:
        header = [*asked.groups, "runs", "done", "seeds"]
        for metric in metrics:
            header += [f"{metric} mean", f"{metric} low", f"{metric} high", f"{metric} n"]
        rows: list[list[object]] = []
        for group in self.index.group(asked.query(), asked.groups, metrics):
            row: list[object] = [*group.labels, group.runs, group.done, group.seeds]
            for metric in metrics:
                found = over_seeds(group, metric)
                ends = (None, None) if found is None or found.ci95 is None else found.ci95
                row += [found and found.mean, *ends, found.n if found else 0]
            rows.append(row)
        return header, rows
