"""Pages of papers: `/` (scoreboard) and `/papers/<key>`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from bayesrule.report.dashboard.site import Site
from bayesrule.report.scoreboard import standings

__all__ = ["routes"]


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of this group of pages."""

    def scoreboard(request: Request) -> Response:
        found, problems = standings(site.experiments, site.results, full=True)
        page = site.renderer.page(
            "scoreboard.html", here="papers", standings=found, problems=problems
        )
        return HTMLResponse(page)

    return [Route("/", scoreboard)]
