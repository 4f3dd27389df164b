"""Where pages lie: URLs of the running dashboard, or of files in a static export.

Templates shared by both ask `links`; pages that only the running dashboard has (runs) spell their
own URLs.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import quote, urlencode

__all__ = ["Links", "LiveLinks"]


class Links(Protocol):
    """URLs of the pages that the dashboard and its export share."""

    live: bool
    """Whether a server answers: run pages, scripts and plots are there."""

    def static(self, name: str) -> str:
        """Return the URL of a file of `static/`."""
        ...

    def scoreboard(self) -> str:
        """Return the URL of the scoreboard."""
        ...

    def paper(self, key: str, scale: str | None = None) -> str:
        """Return the URL of a paper's page."""
        ...


class LiveLinks:
    """URLs of the running dashboard."""

    live = True

    def static(self, name: str) -> str:
        """Return the URL of a file of `static/`."""
        return f"/static/{name}"

    def scoreboard(self) -> str:
        """Return the URL of the scoreboard."""
        return "/"

    def paper(self, key: str, scale: str | None = None) -> str:
        """Return the URL of a paper's page."""
        query = f"?{urlencode({'scale': scale})}" if scale else ""
        return f"/papers/{quote(key, safe='')}{query}"
