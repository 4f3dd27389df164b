"""Searches of `bayesrule tune`: `/searches` lists them, `/searches/<name>` shows one.

Read from `<runs>/.tune/<name>/study.json` alone. A name is looked up among the folders that are
there; no text of a request becomes a path, and links are not followed.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from bayesrule.errors import CorruptFile
from bayesrule.report.dashboard.plots import Plot, finite, ranking
from bayesrule.report.dashboard.rendering import csv_answer
from bayesrule.report.dashboard.site import Site
from bayesrule.report.text import format_spread
from bayesrule.runs import is_run_id, read_json

__all__ = ["routes"]

_MOST = 500
_MAX_BYTES = 16_000_000


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of these pages."""

    def names() -> list[str]:
        """Return the names of the folders that are there."""
        try:
            with os.scandir(site.runs / ".tune") as entries:
                folders = [one.name for one in entries if one.is_dir(follow_symlinks=False)]
        except OSError:
            return []
        return sorted(folders)

    def read(name: str) -> Mapping[str, Any] | str:
        """Return the summary of a search that is there, or why it cannot be read."""
        path = site.runs / ".tune" / name / "study.json"
        try:
            facts = os.lstat(path)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_BYTES:
                return "its summary is a link, or too large"
            return _checked(read_json(path))
        except FileNotFoundError:
            return "it has no summary yet: no trial has ended"
        except (CorruptFile, OSError, ValueError, RecursionError) as problem:
            return str(problem)

    def listed(request: Request) -> Response:
        searches = {name: read(name) for name in names()[:_MOST]}
        page = site.renderer.page("searches.html", here="searches", searches=searches)
        return HTMLResponse(page)

    def one(request: Request) -> Mapping[str, Any] | str:
        name = request.path_params["name"]
        if name not in names():
            raise HTTPException(404, "There is no search of this name.")
        return read(name)

    def page(request: Request) -> Response:
        found_one = one(request)
        whole = not isinstance(found_one, str)
        summary: Mapping[str, Any] = {} if isinstance(found_one, str) else found_one
        return HTMLResponse(
            site.renderer.page(
                "search.html",
                here="searches",
                name=request.path_params["name"],
                problem="" if whole else found_one,
                search=summary if whole else None,
                keys=[each["key"] for each in summary["dimensions"]] if whole else [],
                best=_best(summary) if whole else [],
                plot=_importances(summary) if whole else None,
            )
        )

    def best_csv(request: Request) -> Response:
        summary = one(request)
        if isinstance(summary, str):
            raise HTTPException(404, summary)
        keys = [each["key"] for each in summary["dimensions"]]
        rows = [
            [trial["number"], trial["value"], *(trial["params"].get(key) for key in keys)]
            for trial in summary["best"]
        ]
        return csv_answer("search-best", ["trial", summary["metric"], *keys], rows)

    def importances_csv(request: Request) -> Response:
        summary = one(request)
        plot = None if isinstance(summary, str) else _importances(summary)
        if plot is None:
            raise HTTPException(404, "The search has no importances yet.")
        return csv_answer("search-importances", plot.header, plot.rows)

    return [
        Route("/searches", listed),
        Route("/searches/{name}", page),
        Route("/searches/{name}/best.csv", best_csv),
        Route("/searches/{name}/plots/importances.csv", importances_csv),
    ]


def _checked(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a summary that has what the pages show.

    Raises:
        ValueError: If something is missing or of another kind.
    """
    try:
        [str(each["key"]) for each in summary["dimensions"]]
        for trial in summary["best"]:
            if not isinstance(trial["params"], Mapping):
                raise TypeError("params")
            [float(value) for value in trial["values"]]
            float(trial["value"]), int(trial["number"]), list(trial["runs"])
            shlex.join(trial["overrides"])
        dict(summary["counts"]), dict(summary["importances"]), list(summary["fixed"])
        str(summary["metric"]), list(summary["seeds"]), str(summary["sampler"])
    except (KeyError, TypeError, ValueError) as cause:
        raise ValueError(f"its summary is not of a known form ({cause!r})") from None
    return summary


def _best(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the best trials as rows of a table."""
    keys = [each["key"] for each in summary["dimensions"]]
    return [
        {
            "number": trial["number"],
            "value": format_spread([float(value) for value in trial["values"]]),
            "params": [trial["params"].get(key) for key in keys],
            "runs": [run for run in trial["runs"] if isinstance(run, str) and is_run_id(run)],
            "words": shlex.join(trial["overrides"]),
        }
        for trial in summary["best"]
    ]


def _importances(summary: Mapping[str, Any]) -> Plot | None:
    """Return the importances as bars, the largest first."""
    rows = [
        (str(key), number)
        for key, value in dict(summary["importances"]).items()
        if (number := finite(value)) is not None
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: -row[1])
    shares = ", ".join(f"{key} {share:.0%}" for key, share in rows[:6])
    return ranking(
        "importances", "Which keys matter", rows, x="share of the metric's variance", y="key",
        summary=f"Share of the variance of the metric over all settings (fANOVA): {shares}.",
    )  # fmt: skip
