"""Templates to HTML: one Jinja2 environment for the running dashboard and the static export.

Everything that a template shows is escaped; a test holds the templates to it (no `safe`, no script
but files and JSON). Undefined names are errors.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response

from bayesrule import __version__
from bayesrule.report.dashboard.links import Links
from bayesrule.report.results import VERDICT_WORDS
from bayesrule.report.text import format_number, shorten

__all__ = ["Renderer", "csv_answer", "csv_text"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; floats in full, and no text that a spreadsheet would run as a formula.

    A text that starts with `= + - @`, a tab or a carriage return gets an apostrophe in front.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def csv_answer(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    """Return rows as a file to be saved; `name` is ours, never text of a user."""
    return Response(
        csv_text(header, rows),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}.csv"'},
    )


def _cell(value: object) -> object:
    if isinstance(value, str):
        plain = value.encode("utf-8", "replace").decode()
        return "'" + plain if plain.startswith(_FORMULA) else plain
    if isinstance(value, float):
        return repr(value)
    return "" if value is None else value


def _number(value: Any) -> str:
    """Return a number for a cell, an en dash for none, any other value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return format_number(value)


def _moment(value: Any) -> str:
    """Return `YYYY-MM-DD hh:mm` of an ISO date."""
    return str(value or "")[:16].replace("T", " ")


def _duration(seconds: Any) -> str:
    """Return seconds as `41 s`, `3 min 10 s` or `2 h 5 min`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _bytes(size: Any) -> str:
    """Return a size as `12 B`, `3.4 kB`, `5.6 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


class Renderer:
    """Renders templates with the links of one place."""

    def __init__(self, links: Links) -> None:
        """Make the environment; templates are read from the package."""
        self.env = Environment(
            loader=PackageLoader("bayesrule.report.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.env.filters |= {
            "number": _number,
            "moment": _moment,
            "duration": _duration,
            "bytes": _bytes,
            "shorten": shorten,
            "verdict": lambda verdict: VERDICT_WORDS.get(verdict, verdict),
        }
        self.env.globals |= {"links": links, "version": __version__, "here": ""}

    def page(self, template: str, **context: Any) -> str:
        """Render one template.

        Args:
            template: File name in `templates/`.
            context: Its names; `here` is the entry of the navigation that is marked.
        """
        text = self.env.get_template(template).render(**context)
        return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no UTF-8
