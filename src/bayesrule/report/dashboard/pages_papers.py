"""Pages of papers: `/` (scoreboard), `/papers/<key>?scale=`, their figures and their data.

No part of a request becomes a path: keys, scales and names of figures are looked up among what is
in the folders.
"""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from bayesrule.errors import BayesruleError
from bayesrule.report.dashboard.links import LiveLinks
from bayesrule.report.dashboard.paper_pages import (
    VIEWS,
    Rows,
    claims_csv,
    figure_files,
    intervals_csv,
    paper_context,
    papers_csv,
    scoreboard_context,
    table_csv,
)
from bayesrule.report.dashboard.paper_views import Filter, PaperView, Shelf, claim_rows
from bayesrule.report.dashboard.rendering import csv_text
from bayesrule.report.dashboard.site import Site
from bayesrule.report.results import VERDICT_WORDS
from bayesrule.runs import SCALES

__all__ = ["routes"]

_MEDIA = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv; charset=utf-8"}
_LONGEST = 200


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of this group of pages."""
    pages = _Pages(site)
    return [
        Route("/", pages.scoreboard),
        Route("/scoreboard.csv", pages.scoreboard_data),
        Route("/papers/{key}", pages.paper),
        Route("/papers/{key}/{scale}/figures/{name}", pages.figure),
        Route("/papers/{key}/{scale}/{name}", pages.data),
    ]


class _Pages:
    """The handlers, over one shelf of papers."""

    def __init__(self, site: Site) -> None:
        self.site, self.links = site, LiveLinks()
        self.shelf = Shelf(site.experiments, site.results)

    def scoreboard(self, request: Request) -> Response:
        """Answer `/`."""
        wanted, view = _filter(request), _view(request)
        number = request.query_params.get("page", "1")
        page = int(number) if re.fullmatch(r"[0-9]{1,6}", number, re.ASCII) else 1
        context = scoreboard_context(self.shelf, wanted, view, page, self.links)
        return HTMLResponse(self.site.renderer.page("scoreboard.html", **context))

    def scoreboard_data(self, request: Request) -> Response:
        """Answer `/scoreboard.csv`: all rows that fit the filter."""
        wanted, view = _filter(request), _view(request)
        if view == "papers":
            return _csv(papers_csv(self.shelf, wanted), "papers.csv")
        return _csv(claims_csv(claim_rows(self.shelf.papers(), wanted)), "claims.csv")

    def paper(self, request: Request) -> Response:
        """Answer `/papers/<key>?scale=`."""
        paper = self._paper(request)
        scale = request.query_params.get("scale") or paper.best_scale
        if scale is not None and scale not in paper.scales:
            known = ", ".join(paper.scales) or "none yet"
            raise HTTPException(
                404, f"{paper.key} has no results at scale {scale[:_LONGEST]!r}; it has: {known}"
            )
        context = paper_context(self.shelf, paper, scale, self.links)
        return HTMLResponse(self.site.renderer.page("paper.html", **context))

    def figure(self, request: Request) -> Response:
        """Answer a figure's file, looked up among the files of the folder."""
        paper, scale = self._at_scale(request)
        wanted = request.path_params["name"]
        for figure in figure_files(self.shelf.folder(paper.key, scale)):
            for ending, path in figure.files.items():
                if wanted == f"{figure.name}.{ending}":
                    return FileResponse(path, media_type=_MEDIA[ending])
        raise HTTPException(404, f"{paper.key} has no figure of this name at scale {scale}")

    def data(self, request: Request) -> Response:
        """Answer `claims.csv`, `table.csv` or `intervals-<n>.csv` of a paper at a scale."""
        paper, scale = self._at_scale(request)
        name = request.path_params["name"]
        view, rows = paper.scales[scale], None
        if name == "claims.csv":
            rows = claims_csv((paper, view, claim) for claim in view.claims)
        elif name == "table.csv":
            try:
                rows = table_csv(self.shelf.folder(paper.key, scale))
            except (BayesruleError, OSError) as error:
                raise HTTPException(404, str(error)) from None
        elif match := re.fullmatch(r"intervals-([0-9]{1,4})\.csv", name, re.ASCII):
            rows = intervals_csv(view, int(match[1]))
        if rows is None:
            raise HTTPException(404, f"{paper.key} has no such data at scale {scale}")
        return _csv(rows, f"{paper.key}-{scale}-{name}")

    def _paper(self, request: Request) -> PaperView:
        paper = self.shelf.paper(request.path_params["key"])
        if paper is None:
            raise HTTPException(404, "there is no paper of this key")
        return paper

    def _at_scale(self, request: Request) -> tuple[PaperView, str]:
        paper, scale = self._paper(request), request.path_params["scale"]
        if scale not in paper.scales:
            raise HTTPException(404, f"{paper.key} has no results at this scale")
        return paper, scale


def _view(request: Request) -> str:
    view = request.query_params.get("view", "papers")
    return view if view in VIEWS else "papers"


def _filter(request: Request) -> Filter:
    """Return the filter of a query; a scale or verdict that does not exist filters nothing."""
    values = {
        name: request.query_params.get(name, "")[:_LONGEST]
        for name in ("task", "posterior", "scale", "verdict", "q")
    }
    if values["scale"] not in SCALES:
        values["scale"] = ""
    if values["verdict"] not in VERDICT_WORDS:
        values["verdict"] = ""
    return Filter(**values)


def _csv(rows: Rows, name: str) -> Response:
    return Response(
        csv_text(*rows),
        media_type="text/csv",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )
