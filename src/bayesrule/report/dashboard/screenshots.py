"""Pictures of the dashboard's pages, in a real browser without a window, light and dark.

Needs the package `playwright` and a Chromium on the machine (`CHROMIUM`, or one of the usual names
on the path). Pages load nothing from outside; a request that leaves the dashboard is an error here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from bayesrule.errors import BayesruleError
from bayesrule.report.dashboard.site import Site

__all__ = [
    "FLAGS",
    "Shots",
    "find_chromium",
    "listen",
    "photograph",
    "serve",
    "take_screenshots",
    "wait_for_plots",
]

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PAGES = {"scoreboard": "/", "claims": "/?view=claims", "runs": "/runs"}


@dataclass
class Shots:
    """What was taken: the files, and what the browser complained of."""

    files: list[Path] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def find_chromium() -> str | None:
    """Return the path of a Chromium on this machine, or None."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def serve(site: Site) -> Iterator[str]:
    """Run the dashboard on a free port of this machine while the block lasts; give its address."""
    import uvicorn

    from bayesrule.report.dashboard.app import create_app

    settings = uvicorn.Config(create_app(site), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise BayesruleError("the dashboard did not start")
            thread.join(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def take_screenshots(
    site: Site,
    out: Path,
    *,
    paper: str | None = None,
    run: str | None = None,
    schemes: Sequence[Literal["light", "dark"]] = ("light", "dark"),
) -> Shots:
    """Photograph the scoreboard, its claims, a paper's page, the run table and a run's page.

    Args:
        site: What the dashboard shows.
        out: Folder for `<page>-<light|dark>.png`.
        paper: Whose page; None: the first paper with results.
        run: Whose page, by id; None: the first run of the table.
        schemes: Colour schemes of the system.

    Raises:
        BayesruleError: If playwright or a Chromium is not there.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise BayesruleError("screenshots need the package playwright (pip install it)") from None
    chromium = find_chromium()
    if chromium is None:
        raise BayesruleError(
            "screenshots need a Chromium on this machine (apt-get install chromium, or set "
            "CHROMIUM to its path)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            return photograph(browser, site, out, paper=paper, run=run, schemes=schemes)
        finally:
            browser.close()


def photograph(
    browser: Any,
    site: Site,
    out: Path,
    *,
    paper: str | None = None,
    run: str | None = None,
    schemes: Sequence[Literal["light", "dark"]] = ("light", "dark"),
) -> Shots:
    """Do the work of `take_screenshots` in a browser that runs already."""
    out.mkdir(parents=True, exist_ok=True)
    shots = Shots()
    with serve(site) as base:
        for scheme in schemes:
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1360, "height": 900})
            listen(page, base, shots)
            for name, url in _addresses(page, base, {"paper": paper, "run": run}).items():
                answer = page.goto(base + url, wait_until="networkidle")
                if answer is None or not answer.ok:
                    shots.complaints.append(f"{url}: status {answer and answer.status}")
                wait_for_plots(page)
                path = out / f"{name}-{scheme}.png"
                page.screenshot(path=str(path), full_page=True)
                shots.files.append(path)
            page.close()
    return shots


def listen(page: Any, base: str, shots: Shots) -> None:
    """Note console errors, dialogs and requests that leave the dashboard."""

    def asked(request: Any) -> None:
        if not request.url.startswith((base, "data:", "blob:")):
            shots.complaints.append(f"request to {request.url}")

    def said(message: Any) -> None:
        if message.type == "error":
            shots.complaints.append(f"console: {message.text}")

    def dialog(one: Any) -> None:
        shots.complaints.append(f"dialog: {one.message}")
        one.dismiss()

    page.on("request", asked)
    page.on("console", said)
    page.on("dialog", dialog)
    page.on("pageerror", lambda error: shots.complaints.append(f"script error: {error}"))


def _addresses(page: Any, base: str, named: Mapping[str, str | None]) -> dict[str, str]:
    """Return the pages by name; a paper and a run not named are the first of their tables."""
    found = dict(_PAGES)
    for name, url, start in (("paper", "/", "/papers/"), ("run", "/runs", "/runs/")):
        if named[name] is not None:
            found[name] = start + quote(str(named[name]), safe="")
            continue
        page.goto(base + url, wait_until="networkidle")
        link = page.query_selector(f"main table a[href^='{start}']")
        if link is not None:
            found[name] = str(link.get_attribute("href"))
    return found


def wait_for_plots(page: Any) -> None:
    """Wait until every plot of the page is drawn or has failed."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('.draw')]"
        ".every(e => e.dataset.drawn || e.classList.contains('failed'))",
        timeout=30_000,
    )
