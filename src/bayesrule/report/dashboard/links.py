"""Where pages lie: URLs of the running dashboard, or of files in a static export.

Templates shared by both ask `links`; pages that only the running dashboard has (runs) spell their
own URLs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote, urlencode

__all__ = ["FileLinks", "Links", "LiveLinks", "scoreboard_file"]


class Links(Protocol):
    """URLs of the pages that the dashboard and its export share."""

    live: bool
    """Whether a server answers: run pages, scripts and plots are there."""

    def static(self, name: str) -> str:
        """Return the URL of a file of `static/`."""
        ...

    def scoreboard(
        self, view: str = "papers", page: int = 1, query: Mapping[str, str] | None = None
    ) -> str:
        """Return the URL of a page of a view of the scoreboard."""
        ...

    def scoreboard_csv(self, view: str, query: Mapping[str, str]) -> str:
        """Return the URL of all rows of a view as CSV."""
        ...

    def paper(self, key: str, scale: str | None = None) -> str:
        """Return the URL of a paper's page."""
        ...

    def figure(self, key: str, scale: str, name: str) -> str:
        """Return the URL of a file of a paper's figures."""
        ...

    def data(self, key: str, scale: str, name: str) -> str:
        """Return the URL of a paper's data: `claims.csv`, `table.csv`, `intervals-<n>.csv`."""
        ...


class LiveLinks:
    """URLs of the running dashboard."""

    live = True

    def static(self, name: str) -> str:
        """Return the URL of a file of `static/`."""
        return f"/static/{name}"

    def scoreboard(
        self, view: str = "papers", page: int = 1, query: Mapping[str, str] | None = None
    ) -> str:
        """Return the URL of a page of a view of the scoreboard."""
        values = dict(query or {})
        if view != "papers":
            values["view"] = view
        if page > 1:
            values["page"] = str(page)
        return f"/?{urlencode(values)}" if values else "/"

    def scoreboard_csv(self, view: str, query: Mapping[str, str]) -> str:
        """Return the URL of all rows of a view as CSV."""
        return f"/scoreboard.csv?{urlencode({**query, 'view': view})}"

    def paper(self, key: str, scale: str | None = None) -> str:
        """Return the URL of a paper's page."""
        query = f"?{urlencode({'scale': scale})}" if scale else ""
        return f"/papers/{quote(key, safe='')}{query}"

    def figure(self, key: str, scale: str, name: str) -> str:
        """Return the URL of a file of a paper's figures."""
        return f"/papers/{quote(key, safe='')}/{quote(scale)}/figures/{quote(name, safe='')}"

    def data(self, key: str, scale: str, name: str) -> str:
        """Return the URL of a paper's data."""
        return f"/papers/{quote(key, safe='')}/{quote(scale)}/{quote(name)}"


def scoreboard_file(view: str, page: int) -> str:
    """Return the name of the file that a page of the scoreboard is exported to."""
    number = "" if page == 1 else f"-{page}"
    return f"{'index' if view == 'papers' else view}{number}.html"


class FileLinks:
    """Relative URLs between the files of a static export.

    Args:
        up: What leads from the page to the folder of the export: empty, or `../../`.
    """

    live = False

    def __init__(self, up: str = "") -> None:
        self.up = up

    def static(self, name: str) -> str:
        """Return the URL of a file of `static/`."""
        return f"{self.up}static/{name}"

    def scoreboard(
        self, view: str = "papers", page: int = 1, query: Mapping[str, str] | None = None
    ) -> str:
        """Return the URL of a page of the scoreboard; files have no filter."""
        return self.up + scoreboard_file(view, page)

    def scoreboard_csv(self, view: str, query: Mapping[str, str]) -> str:
        """Return the URL of all rows of a view as CSV."""
        return f"{self.up}{view}.csv"

    def paper(self, key: str, scale: str | None = None) -> str:
        """Return the URL of a paper's page."""
        return f"{self.up}papers/{quote(key, safe='')}/{quote(scale or 'index')}.html"

    def figure(self, key: str, scale: str, name: str) -> str:
        """Return the URL of a copied figure."""
        return f"{self.up}papers/{quote(key, safe='')}/{quote(scale)}/figures/{quote(name)}"

    def data(self, key: str, scale: str, name: str) -> str:
        """Return the URL of a paper's data."""
        return f"{self.up}papers/{quote(key, safe='')}/{quote(scale)}/{quote(name)}"
