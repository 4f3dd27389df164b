"""What the templates of the scoreboard and of a paper's page are given, live or exported.

URLs come from `links`, so that the running dashboard and the static export share every line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError
from bayesrule.report.dashboard.intervals import interval_rows, interval_spec, interval_svg
from bayesrule.report.dashboard.links import Links
from bayesrule.report.dashboard.markdown import render_markdown
from bayesrule.report.dashboard.paper_views import (
    VERDICT_SYMBOLS,
    ClaimView,
    Filter,
    PaperView,
    ScaleView,
    Shelf,
    choices,
    claim_rows,
    interval_groups,
    paper_rows,
)
from bayesrule.report.drawing import metric_label, rule_label
from bayesrule.report.names import parse_name
from bayesrule.report.results import ResultCell, read_table
from bayesrule.report.text import format_number
from bayesrule.runs import SCALES, Paper, read_json

__all__ = [
    "PAGE_SIZE",
    "VIEWS",
    "FigureFiles",
    "claims_csv",
    "figure_files",
    "intervals_csv",
    "paper_context",
    "papers_csv",
    "scoreboard_context",
    "table_csv",
]

PAGE_SIZE = {"papers": 60, "claims": 80}
"""Rows on a page of the scoreboard."""

VIEWS = {"papers": "Papers", "claims": "Claims"}
"""Views of the scoreboard, with their titles."""

_ENDINGS = ("svg", "png", "csv")
_NAME = re.compile(r"[\w.+@=-]+", re.ASCII)
_README_LIMIT = 400_000

Rows = tuple[Sequence[str], list[Sequence[object]]]
"""A header and rows, for CSV."""


# ---------------------------------------------------------------- scoreboard


def scoreboard_context(
    shelf: Shelf,
    wanted: Filter,
    view: str,
    page: int,
    links: Links,
) -> dict[str, Any]:
    """Return what `scoreboard.html` shows: one page of rows of a view.

    Args:
        shelf: The papers.
        wanted: The filter.
        view: One of `VIEWS`.
        page: Number of the page, from 1; one beyond the last shows the last.
        links: Where pages lie.
    """
    papers = shelf.papers()
    tables: dict[str, Sequence[Any]] = {
        "papers": paper_rows(papers, wanted),
        "claims": claim_rows(papers, wanted),
    }
    rows, size = tables[view], PAGE_SIZE[view]
    count = max(1, -(-len(rows) // size))
    page = min(max(page, 1), count)
    start = (page - 1) * size
    shown = rows[start : start + size]
    return {
        "title": VIEWS[view],
        "here": "papers",
        "view": view,
        "rows": shown,
        "first": start + 1 if shown else 0,
        "last": start + len(shown),
        "total": len(rows),
        "wanted": vars(wanted),
        "filtered": bool(wanted.query()),
        "options": choices(papers),
        "tabs": [
            {
                "name": title,
                "url": links.scoreboard(name, 1, wanted.query()),
                "count": len(tables[name]),
                "current": name == view,
            }
            for name, title in VIEWS.items()
        ],
        "pages": [
            {
                "number": number,
                "url": links.scoreboard(view, number, wanted.query()),
                "current": number == page,
            }
            for number in range(1, count + 1)
        ],
        "csv_url": links.scoreboard_csv(view, wanted.query()),
        "problems": [],
    }


def papers_csv(shelf: Shelf, wanted: Filter) -> Rows:
    """Return the rows of papers as a table."""
    header = ["key", "title", "scale", *(v for v in VERDICT_SYMBOLS), "date", "commit", "problem"]
    rows: list[Sequence[object]] = []
    for paper, view in paper_rows(shelf.papers(), wanted):
        counts = [view.counts[verdict] for verdict in VERDICT_SYMBOLS] if view else [""] * 5
        tail = [view.date, view.commit, view.problem] if view else ["", "", "not run"]
        rows.append([paper.key, paper.title, view.scale if view else "", *counts, *tail])
    return header, rows


def claims_csv(rows: Iterable[tuple[PaperView, ScaleView, ClaimView]]) -> Rows:
    """Return claims as a table."""
    header = ["key", "scale", "claim", "statement", "verdict", "effect_is", "effect", "low", "high"]
    header += ["seeds", "p_value", "test", "ours", "paper", "source", "date", "commit"]
    found: list[Sequence[object]] = []
    for paper, view, claim in rows:
        low, high = claim.ci95 or (None, None)
        ours = "; ".join(f"{s.arm}, {s.metric}: {format_number(s.mean)}" for s in claim.sides)
        reported = "; ".join(f"{name}: {value}" for name, value in claim.reported.items())
        head = [paper.key, view.scale, claim.id, claim.statement, claim.verdict, claim.what]
        numbers = [claim.effect, low, high, claim.n, claim.p_value]
        found.append(
            [*head, *numbers, claim.test, ours, reported, claim.source, view.date, view.commit]
        )
    return header, found


# ---------------------------------------------------------------- a paper


@dataclass(frozen=True)
class FigureFiles:
    """One figure in `results/<key>/<scale>/figures/`: its name, and its files by ending."""

    name: str
    files: Mapping[str, Path]


def figure_files(folder: Path) -> list[FigureFiles]:
    """Return the figures of a results folder by name.

    Only regular files directly inside, with plain names and known endings: what a page links to and
    a server may send is looked up here, and never built from a request.
    """
    found: dict[str, dict[str, Path]] = {}
    try:
        inside = sorted((folder / "figures").iterdir())
    except OSError:
        return []
    for path in inside:
        stem, _, ending = path.name.rpartition(".")
        plain = _NAME.fullmatch(stem) is not None and not stem.startswith(".")
        if plain and ending in _ENDINGS and path.is_file() and not path.is_symlink():
            found.setdefault(stem, {})[ending] = path
    return [FigureFiles(name, files) for name, files in found.items()]


def paper_context(
    shelf: Shelf, paper: PaperView, scale: str | None, links: Links
) -> dict[str, Any]:
    """Return what `paper.html` shows.

    Args:
        shelf: Where the paper is from.
        paper: The paper.
        scale: One of its scales; None if it has no results.
        links: Where pages lie.
    """
    full = shelf.full(paper)
    arxiv = paper.paper.arxiv if paper.paper else None
    context: dict[str, Any] = {
        "here": "papers",
        "paper": paper,
        "view": None,
        "arxiv_url": f"https://arxiv.org/abs/{arxiv}"
        if arxiv and re.fullmatch(r"[\w./-]+", arxiv, re.ASCII)
        else None,
        "commands": _commands(paper.key, full, scale),
        "readme": _readme(shelf.experiments / paper.key / "README.md", paper, links),
        "symbols": VERDICT_SYMBOLS,
        "plots": [],
    }
    if scale is None:
        return context
    folder, view = shelf.folder(paper.key, scale), paper.scales[scale]

    def data(name: str) -> str:
        return links.data(paper.key, scale, name)

    return context | {
        "view": view,
        "rows": [(paper, view, claim) for claim in view.claims],
        "claims_csv": data("claims.csv") if view.claims else None,
        "plots": _plots(view, data, live=links.live),
        "table": _table(folder, full),
        "table_csv": data("table.csv"),
        "figures": _figures(folder, lambda name: links.figure(paper.key, scale, name)),
        "made": _made(folder),
    }


def _commands(key: str, paper: Paper | None, scale: str | None) -> list[str]:
    scales = paper.scales if paper else SCALES
    option = "" if scale in (None, "cpu") else f" SCALE={scale}"
    commands = [f"make reproduce-{key}{option}"]
    if scale is not None:
        commands.append(f"bayesrule reproduce {key} --scale {scale}")
    commands.append(f"bayesrule claims {key}")
    if "paper" in scales:
        commands.append(f"bayesrule plan {key} --scale paper --dry-run")
    return commands


def _readme(path: Path, paper: PaperView, links: Links) -> Any:
    """Render a README; links to the paper's own results become links to its pages."""
    try:
        text = path.read_bytes()[:_README_LIMIT].decode("utf-8", "replace")
    except OSError:
        return None

    def resolve(target: str) -> str | None:
        found = re.search(r"results/([\w.-]+)/(smoke|cpu|paper)(?:/|$)", target)
        if found and found[1] == paper.key and found[2] in paper.scales:
            return links.paper(paper.key, found[2])
        return None

    return render_markdown(text, resolve)


def _plots(view: ScaleView, data: Callable[[str], str], *, live: bool) -> list[dict[str, Any]]:
    from markupsafe import Markup

    plots = []
    for place, (axis, rows) in enumerate(interval_groups(view), start=1):
        plots.append(
            {
                "name": f"intervals-{place}",
                "title": axis[:1].upper() + axis[1:],
                "count": len(rows),
                "text": "; ".join(row.text() for row in rows),
                "spec": interval_spec(rows, axis) if live else None,
                "svg": None if live else Markup(interval_svg(rows, axis)),
                "csv": data(f"intervals-{place}.csv"),
                "svg_url": None if live else data(f"intervals-{place}.svg"),
            }
        )
    return plots


def intervals_csv(view: ScaleView, place: int) -> Rows | None:
    """Return the data of the interval plot number `place` (from 1), None if there is none."""
    groups = interval_groups(view)
    if not 1 <= place <= len(groups):
        return None
    axis, rows = groups[place - 1]
    data = interval_rows(rows)
    header = [*data[0], "unit"]
    return header, [[*row.values(), axis] for row in data]


def _table(folder: Path, paper: Paper | None) -> dict[str, Any]:
    """Return the results by study: arms as rows, metrics as columns."""
    try:
        cells = read_table(folder)
    except (BayesruleError, OSError, UnicodeDecodeError) as error:
        return {"problem": str(error), "studies": []}
    studies = paper.studies if paper else {}
    found = []
    for name in dict.fromkeys(cell.study for cell in cells):
        own = [cell for cell in cells if cell.study == name]
        study = studies.get(name)
        found.append(
            {
                "name": name,
                "title": study.title if study else name,
                "source": study.source if study else None,
                **_study_table(own),
            }
        )
    return {"problem": "", "studies": found}


def _study_table(own: Sequence[ResultCell]) -> dict[str, Any]:
    by_place = {(cell.arm, cell.metric): cell for cell in own}
    metrics = [
        metric
        for metric in dict.fromkeys(cell.metric for cell in own)
        if any(cell.n or cell.failed for cell in own if cell.metric == metric)
    ]

    complete = {cell.arm for cell in own if cell.n == cell.planned}

    def cell(arm: str, metric: str) -> dict[str, str]:
        found = by_place.get((arm, metric))
        if found is None:
            return {"ours": "", "paper": ""}
        absent = found.n == 0 and not found.failed and arm in complete  # it does not measure this
        return {"ours": "" if absent else found.text(), "paper": format_number(found.paper)}

    seeds = max(cell.planned for cell in own)
    return {
        "metrics": [{"name": metric, "label": _column_label(metric)} for metric in metrics],
        "arms": [
            {"name": arm, "cells": [cell(arm, metric) for metric in metrics]}
            for arm in dict.fromkeys(one.arm for one in own)
        ],
        "seeds": "One seed."
        if seeds == 1
        else f"Mean ± half-width of the 95 % interval over {seeds} seeds.",
    }


def _column_label(metric: str) -> str:
    rule = parse_name(metric).rule
    return metric_label(metric) + (f", {rule_label(rule)}" if rule else "")


def table_csv(folder: Path) -> Rows:
    """Return table.csv as it is stored.

    Raises:
        BayesruleError: If there is none, or it is damaged.
    """
    header = ["study", "arm", "metric", "mean", "half_width", "n", "planned", "failed", "paper"]
    return header, [
        [c.study, c.arm, c.metric, c.mean, c.half, c.n, c.planned, c.failed, c.paper]
        for c in read_table(folder)
    ]


def _figures(folder: Path, url: Callable[[str], str]) -> list[dict[str, Any]]:
    found = []
    for figure in figure_files(folder):
        kinds = [ending for ending in _ENDINGS if ending in figure.files]
        pictures = [kind for kind in kinds if kind != "csv"]
        found.append(
            {
                "name": figure.name,
                "picture": url(f"{figure.name}.{pictures[0]}") if pictures else None,
                "files": [
                    {"kind": kind.upper(), "url": url(f"{figure.name}.{kind}")} for kind in kinds
                ],
            }
        )
    return found


def _made(folder: Path) -> dict[str, Any]:
    """Return provenance.json in a few lines."""
    try:
        facts = read_json(folder / "provenance.json", checksum=False)
        return {"problem": "", "facts": _made_facts(facts)}
    except FileNotFoundError:
        return {"problem": "there is no provenance.json", "facts": []}
    except (BayesruleError, OSError) as error:
        return {"problem": str(error), "facts": []}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return {"problem": f"{folder / 'provenance.json'} is damaged: {error!r}", "facts": []}


def _made_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    def several(value: Any) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        return [one for one in values if one is not None]

    commits = [str(commit)[:12] for commit in several(facts.get("commit"))]
    machines = {
        f"{one.get('cpu')}, {one.get('cores')} cores, {one.get('platform')}"
        for one in several(facts.get("machine"))
    }
    data = {
        f"{one.get('name')} ({(one.get('source') or {}).get('served_by', 'unknown source')})"
        for one in several(facts.get("data"))
    }
    versions = dict(facts.get("versions") or {})
    wanted = ("python", "bayesrule", "torch", "lightning", "numpy")
    seconds = facts.get("wall_seconds")
    rows = [
        ("runs", str(facts.get("runs", ""))),
        ("date", str(facts.get("date") or "").replace("T", " ")[:19]),
        ("commit", ", ".join(commits) + (" (with changes)" if facts.get("dirty") else "")),
        ("time of all runs", "" if seconds is None else f"{float(seconds) / 60:.1f} min"),
        ("machine", "; ".join(sorted(machines))),
        ("threads", ", ".join(str(one) for one in several(facts.get("threads")))),
        ("data", ", ".join(sorted(data))),
        ("versions", ", ".join(f"{n} {versions[n]}" for n in wanted if n in versions)),
    ]
    return [(name, value) for name, value in rows if value]
