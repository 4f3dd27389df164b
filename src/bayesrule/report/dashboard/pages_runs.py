"""Pages of runs: `/runs` (the table) and `/runs/<id>` (one run)."""

from __future__ import annotations

from starlette.routing import BaseRoute

from bayesrule.report.dashboard.site import Site

__all__ = ["routes"]


def routes(site: Site) -> list[BaseRoute]:
    """Return the routes of this group of pages."""
    return []
