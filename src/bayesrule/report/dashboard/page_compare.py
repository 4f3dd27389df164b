"""Runs side by side: `/compare?ids=a,b`: configuration, metrics, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from bayesrule.report.dashboard.histories import History, read_history, slug_of
from bayesrule.report.dashboard.plots import Plot, lines
from bayesrule.report.dashboard.rendering import csv_answer
from bayesrule.report.dashboard.site import Site
from bayesrule.report.drawing import metric_label
from bayesrule.report.names import curated, is_part, parse_name, sort_names
from bayesrule.runs import RunFolder, is_run_id
from bayesrule.runs.index import IndexedRun

__all__ = ["routes"]

MOST = 6
_MOST_PLOTS = 8


@dataclass(frozen=True)
class Compared:
    """One of the runs: its index row, configuration and metrics (all flat), and history."""

    run: IndexedRun
    config: dict[str, str]
    metrics: dict[str, Any]
    history: History

    @property
    def label(self) -> str:
        """A short name: arm or posterior, seed, and the first digits of the id."""
        name = self.run.arm or self.config.get("posterior") or "run"
        seed = self.config.get("seed")
        return (
            f"{name[:40]}, seed {seed} ({self.run.id[:6]})"
            if seed
            else f"{name[:40]} ({self.run.id[:6]})"
        )


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of this page."""

    def load(request: Request) -> tuple[list[Compared], list[str]]:
        asked = [part for text in request.query_params.getlist("ids") for part in text.split(",")]
        chosen = list(dict.fromkeys(part.strip() for part in asked if part.strip()))
        site.refresh()
        found, unknown = [], []
        for identifier in chosen[:MOST]:
            run = site.index.get(identifier) if is_run_id(identifier) else None
            if run is None:
                unknown.append(identifier[:40])
                continue
            metrics = {key: v for key, v in run.fields.items() if isinstance(v, float)}
            path = RunFolder(site.runs, run.id).metrics_path
            history = read_history(path, share=min(len(chosen), MOST))
            found.append(Compared(run, site.index.config(run.id), metrics, history))
        return found, unknown

    def page(request: Request) -> Response:
        runs, unknown = load(request)
        return HTMLResponse(
            site.renderer.page(
                "compare.html",
                here="runs",
                runs=runs,
                unknown=unknown,
                ids=",".join(one.run.id for one in runs),
                differences=_differences(runs),
                metrics=_metrics(runs, best=True),
                plots=_plots(runs),
                most=MOST,
            ),
            404 if unknown and not runs else 200,
        )

    def table(request: Request) -> Response:
        runs, _ = load(request)
        header = ["kind", "name", *(one.run.id for one in runs)]
        header += ["second minus first"] if len(runs) == 2 else []
        rows: list[list[object]] = []
        rows += [["config", key, *values] for key, values in _differences(runs)]
        rows += [["metric", name, *values] for name, values in _metrics(runs)]
        return csv_answer("compare", header, rows)

    def plot(request: Request) -> Response:
        slug = request.path_params["slug"]
        for one in _plots(load(request)[0]):
            if one.slug == slug:
                return csv_answer("compare-plot", one.header, one.rows)
        raise HTTPException(404, "There is no such plot of these runs.")

    return [
        Route("/compare", page),
        Route("/compare.csv", table),
        Route("/compare/plots/{slug}.csv", plot),
    ]


def _differences(runs: Sequence[Compared]) -> list[tuple[str, list[str | None]]]:
    """Return the configuration keys in which the runs differ, with each run's value."""
    keys = sorted({key for one in runs for key in one.config})
    rows = [(key, [one.config.get(key) for one in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _metrics(runs: Sequence[Compared], *, best: bool = False) -> list[tuple[str, list[Any]]]:
    """Return the metrics of the runs; for two runs the difference is last.

    Args:
        runs: The runs.
        best: Only the best known ones, and no parts of a stream.
    """
    names = sort_names({name for one in runs for name in one.metrics})
    known = set(curated(parse_name(name).metric for name in names))
    rows = []
    for name in names:
        part = parse_name(name)
        if best and (is_part(part.split) or part.metric not in known):
            continue
        values = [one.metrics.get(name) for one in runs]
        if len(runs) == 2:
            left, right = values
            values.append(None if left is None or right is None else right - left)
        rows.append((name, values))
    return rows


def _plots(runs: Sequence[Compared]) -> list[Plot]:
    """Return the curves that at least two of the runs have, laid over each other."""
    counts: dict[str, int] = {}
    for one in runs:
        for key in one.history.measured():
            counts[key] = counts.get(key, 0) + 1
    plots = []
    for key in (key for key, count in counts.items() if count > 1):
        points: list[dict[str, Any]] = []
        for one in runs:
            own = one.history.points({key})
            several = len({point["s"] for point in own}) > 1
            for point in own:
                tail = f": {point['s']}" if several else ""
                points.append({**point, "s": f"{one.label}{tail}"})
        if len({point["x"] for point in points}) > 1:
            title = f"{key} against step"
            plots.append(
                lines(slug_of(key), title, points, x="step", y=metric_label(key), legend="run")
            )
        if len(plots) == _MOST_PLOTS:
            break
    return plots
