"""The scoreboard and the pages of papers as files that can be hosted anywhere.

The same templates as the running dashboard, relative links, no script, nothing from outside::

    index.html  index-2.html ..  claims.html ..  papers.csv  claims.csv
    papers/<key>/<scale>.html             a paper at a scale (index.html: one without results)
    papers/<key>/<scale>/*.csv *.svg      its data and interval plots
    papers/<key>/<scale>/figures/         copies of its figures
    static/                               the style sheet and the icon
    export.json                           says that the folder is an export, and what is in it

An export is built beside its place and moved there whole, so that a host never sees half of one. An
earlier export there is replaced; a folder that is anything else is left alone.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from bayesrule.errors import BayesruleError, ConfigError, CorruptFile
from bayesrule.report.dashboard.intervals import interval_svg
from bayesrule.report.dashboard.links import FileLinks, scoreboard_file
from bayesrule.report.dashboard.paper_pages import (
    PAGE_SIZE,
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
from bayesrule.report.dashboard.paper_views import (
    Filter,
    PaperView,
    ScaleView,
    Shelf,
    claim_rows,
    interval_groups,
    paper_rows,
)
from bayesrule.report.dashboard.rendering import Renderer, csv_text
from bayesrule.runs import read_json, write_json

__all__ = ["MARK", "export"]

MARK = "export.json"
_KIND = "bayesrule static export"
_STATIC = Path(__file__).parent / "static"
_STATIC_FILES = ("app.css", "icon.svg")


def export(shelf: Shelf, out: Path, tell: Callable[[str], None] = lambda text: None) -> int:
    """Write the export and return the number of its pages.

    Args:
        shelf: The papers.
        out: The folder; made, or replaced if it holds an earlier export.
        tell: Receives one line per paper that has a problem.

    Raises:
        ConfigError: If `out` is a file, or a folder that is no export of ours.
        BayesruleError: If it can't be written.
    """
    out = out.absolute()
    _check_place(out)
    fresh = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
    old = fresh.with_name(f"{fresh.name}-old")
    try:
        fresh.mkdir(parents=True)
        pages = _Export(shelf, fresh, tell).write()
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    except OSError as cause:
        if old.exists() and not out.exists():
            old.rename(out)
        raise BayesruleError(f"the export to {out} failed: {cause}") from cause
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return pages


def _check_place(out: Path) -> None:
    """Refuse to replace what is not an earlier export."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"{out} is there and is no folder; name another one")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        ours = read_json(out / MARK, checksum=False).get("kind") == _KIND
    except (FileNotFoundError, CorruptFile):
        ours = False
    if not ours:
        raise ConfigError(
            f"{out} is not empty and no earlier export (it has no {MARK} of ours), so it is left "
            "as it is; name another folder"
        )


class _Export:
    """Writes one export into an empty folder."""

    def __init__(self, shelf: Shelf, out: Path, tell: Callable[[str], None]) -> None:
        self.shelf, self.out, self.tell = shelf, out, tell
        self.pages = 0

    def write(self) -> int:
        (self.out / "static").mkdir()
        for name in _STATIC_FILES:
            shutil.copyfile(_STATIC / name, self.out / "static" / name)
        papers = self.shelf.papers()
        for paper in papers:
            self._paper(paper)
        self._scoreboard(papers)
        write_json(self.out / MARK, {"kind": _KIND, "papers": len(papers)}, checksum=False)
        return self.pages

    def _page(
        self, where: str, renderer: Renderer, template: str, context: dict[str, object]
    ) -> None:
        path = self.out / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(renderer.page(template, **context), encoding="utf-8")
        self.pages += 1

    def _csv(self, where: str, rows: Rows) -> None:
        path = self.out / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(csv_text(*rows), encoding="utf-8")

    def _scoreboard(self, papers: list[PaperView]) -> None:
        links, everything = FileLinks(), Filter()
        renderer = Renderer(links)
        claims = claim_rows(papers, everything)
        counts = {"papers": len(paper_rows(papers, everything)), "claims": len(claims)}
        for view in VIEWS:
            for page in range(1, max(1, -(-counts[view] // PAGE_SIZE[view])) + 1):
                context = scoreboard_context(self.shelf, everything, view, page, links)
                self._page(scoreboard_file(view, page), renderer, "scoreboard.html", context)
        self._csv("papers.csv", papers_csv(self.shelf, everything))
        self._csv("claims.csv", claims_csv(claims))

    def _paper(self, paper: PaperView) -> None:
        links = FileLinks("../../")
        renderer, folder = Renderer(links), f"papers/{paper.key}"
        for scale in paper.scales or [None]:
            context = paper_context(self.shelf, paper, scale, links)
            self._page(f"{folder}/{scale or 'index'}.html", renderer, "paper.html", context)
        for scale, view in paper.scales.items():
            if view.problem:
                self.tell(f"{paper.key}, {scale}: {view.problem}")
            self._data(paper, view)
        if paper.problem:
            self.tell(f"{paper.key}: {paper.problem}")

    def _data(self, paper: PaperView, view: ScaleView) -> None:
        """Write what the page of a paper at a scale links to."""
        source, where = self.shelf.folder(paper.key, view.scale), f"papers/{paper.key}/{view.scale}"
        if view.claims:
            self._csv(f"{where}/claims.csv", claims_csv((paper, view, c) for c in view.claims))
        for place, (axis, rows) in enumerate(interval_groups(view), start=1):
            data = intervals_csv(view, place)
            assert data is not None
            self._csv(f"{where}/intervals-{place}.csv", data)
            svg = self.out / where / f"intervals-{place}.svg"
            svg.write_text(interval_svg(rows, axis), encoding="utf-8")
        try:
            self._csv(f"{where}/table.csv", table_csv(source))
        except BayesruleError as error:  # the page says so too, and does not link to it
            self.tell(f"{paper.key}, {view.scale}: {error}")
        target = self.out / where / "figures"
        for figure in figure_files(source):
            target.mkdir(parents=True, exist_ok=True)
            for ending, path in figure.files.items():
                shutil.copyfile(path, target / f"{figure.name}.{ending}")
