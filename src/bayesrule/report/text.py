"""Plain-text tables and numbers for terminals and logs: the same records give the same bytes."""

from __future__ import annotations

import math
import shutil
import unicodedata
from collections.abc import Sequence

__all__ = [
    "columns_text",
    "format_number",
    "format_spread",
    "one_line",
    "shorten",
    "terminal_width",
]


def format_number(value: float | None) -> str:
    """Return a number with about four significant digits; an empty string for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if value == int(value) and size < 1e6:
        return str(int(value))
    if size >= 1e5 or size < 1e-3:
        return f"{value:.2e}"
    places = 4 if size < 10 else 2 if size < 1000 else 1
    return f"{value:.{places}f}"


def format_spread(values: Sequence[float]) -> str:
    """Return `mean ± sd` (divisor n - 1) of values; one value stands alone, none is empty.

    The standard deviation has two significant digits, the mean as many decimals.
    """
    if not values:
        return ""
    if len(values) == 1 or not all(math.isfinite(value) for value in values):
        return format_number(sum(values) / len(values))
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    if sd == 0 or not math.isfinite(sd):
        return f"{format_number(mean)} ± {format_number(sd)}"
    places = 1 - math.floor(math.log10(sd))
    if places > 6 or max(abs(mean), sd) >= 1e6:
        return f"{mean:.4g} ± {sd:.2g}"
    places = max(places, 0)
    return f"{mean:.{places}f} ± {sd:.{places}f}"


def _width(text: str) -> int:
    """Return the number of terminal cells that a text takes."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def columns_text(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """Return aligned columns under a ruled header.

    Args:
        header: Titles.
        rows: Cells, as many per row as titles; an empty row becomes a blank line.
        left: Columns aligned to the left; the others to the right.

    Raises:
        ValueError: If a row has another number of cells.
    """
    full = [row for row in rows if row]
    if any(len(row) != len(header) for row in full):
        raise ValueError(f"every row needs {len(header)} cells")
    table = [header, *full]
    widths = [max(_width(row[place]) for row in table) for place in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blank = " " * (width - _width(cell))
            cells.append(cell + blank if place in left else blank + cell)
        return "  ".join(cells).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([line(header), rule, *(line(row) if row else "" for row in rows)])


def one_line(text: str) -> str:
    """Return a text with every run of blanks and control characters as one blank."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shorten(text: str, width: int) -> str:
    """Return a text of at most `width` characters; what is cut is marked by `…`."""
    return text if len(text) <= width else text[: max(0, width - 1)].rstrip() + "…"


def terminal_width(default: int = 110) -> int:
    """Return the width that tables may take: the terminal's, within bounds, else `default`."""
    return max(80, min(160, shutil.get_terminal_size((default, 24)).columns))
