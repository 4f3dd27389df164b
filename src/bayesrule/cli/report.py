"""`bayesrule report`: the scoreboard and the papers as files, and pictures of the dashboard."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bayesrule.config import experiments_dir, results_dir, runs_dir
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import find_papers

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule report --html public            then open public/index.html, or host the folder
  bayesrule report --screenshots shots      pages of the dashboard as PNG, light and dark

The export has no script, loads nothing from outside and has relative links only. A folder that is
not an earlier export is left alone. Screenshots need playwright and a Chromium.
"""


def main(words: Sequence[str]) -> int:
    """Write an export or screenshots; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="bayesrule report",
        description="The scoreboard and the papers' pages as files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--html", type=Path, metavar="DIR", help="write a static export")
    what.add_argument("--screenshots", type=Path, metavar="DIR", help="photograph the dashboard")
    parser.add_argument("--paper", metavar="KEY", help="the paper that is photographed")
    parser.add_argument("--run", metavar="ID", help="the run that is photographed")
    args = parser.parse_args(words)
    try:
        if args.html:
            return _html(args.html)
        return _screenshots(args.screenshots, args.paper, args.run)
    except ModuleNotFoundError as missing:
        raise BayesruleError(
            f"reports need {missing.name}: pip install 'bayesrule[dashboard]'"
        ) from None


def _html(out: Path) -> int:
    from bayesrule.report.dashboard.export import export
    from bayesrule.report.dashboard.paper_views import Shelf

    problems: list[str] = []
    pages = export(Shelf(experiments_dir(), results_dir()), out, problems.append)
    for problem in problems:
        print(f"bayesrule report: {problem}", file=sys.stderr)
    print(f"{pages} pages in {out}; open {out / 'index.html'}")
    return 1 if problems else 0


def _screenshots(out: Path, paper: str | None, run: str | None) -> int:
    from bayesrule.report.dashboard.screenshots import take_screenshots
    from bayesrule.report.dashboard.site import Site

    with tempfile.TemporaryDirectory() as scratch:
        site = Site(runs_dir().resolve(), results_dir(), experiments_dir(), Path(scratch))
        if paper is not None and paper not in find_papers(site.experiments):
            raise ConfigError(
                f"--paper {paper}: there is no such paper; `bayesrule papers` lists all"
            )
        if run is not None:
            run = site.store.get(run).id
        site.index.refresh()
        shots = take_screenshots(site, out, paper=paper, run=run)
    for path in shots.files:
        print(path)
    for complaint in shots.complaints:
        print(f"bayesrule report: {complaint}", file=sys.stderr)
    return 1 if shots.complaints else 0
