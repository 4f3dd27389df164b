"""The web application: routes, what every answer carries, and error pages.

Read-only (GET and HEAD), bound to this machine: the Host header must name it, which keeps pages
of other sites from reading through a rebound name. The content policy lets no script run but our
files; no user text becomes a path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bayesrule.report.dashboard import pages_papers, pages_runs
from bayesrule.report.dashboard.site import Site

__all__ = ["HOSTS", "POLICY", "create_app"]

HOSTS = ("127.0.0.1", "localhost")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""Vega's menu needs inline styles; its expressions are interpreted, so nothing needs eval."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_STATIC = Path(__file__).parent / "static"


@dataclass
class _Guard:
    """Refuses what is not GET or HEAD, and puts the headers on every answer."""

    app: ASGIApp
    headers: dict[str, str] = field(default_factory=lambda: dict(_HEADERS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-cache"
            await send(message)

        if scope["method"] not in ("GET", "HEAD"):
            refusal = PlainTextResponse(
                "this page only shows: GET and HEAD", 405, {"allow": "GET, HEAD"}
            )
            await refusal(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


def create_app(site: Site) -> Starlette:
    """Return the application over one site (see `Site`)."""
    return Starlette(
        routes=[
            *pages_papers.routes(site),
            *pages_runs.routes(site),
            Mount("/static", StaticFiles(directory=_STATIC), name="static"),
        ],
        middleware=[
            Middleware(_Guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        ],
        exception_handlers={
            HTTPException: _error_page(site),
            Exception: _error_page(site),
        },
    )


def _error_page(site: Site) -> Callable[[Request, Exception], Response]:
    titles = {400: "This address makes no sense", 404: "Not found", 503: "Not ready"}

    def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            status, text = error.status_code, str(error.detail)
            headers: Any = error.headers
        else:
            status, headers = 500, None
            text = "The server met an error; its terminal shows where."
        title = titles.get(status, "Error" if status >= 500 else f"Refused ({status})")
        page = site.renderer.page("error.html", title=title, message=text, path=request.url.path)
        return HTMLResponse(page, status, headers=headers)

    return handle
