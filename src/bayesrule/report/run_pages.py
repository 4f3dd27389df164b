"""Runs of the store for the terminal: a list of many, and one in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bayesrule.errors import BayesruleError
from bayesrule.report.names import headline_columns
from bayesrule.report.tables import metrics_table
from bayesrule.report.text import columns_text, format_number, one_line, shorten
from bayesrule.runs import RunSummary
from bayesrule.runs.index import IndexedRun, RunIndex
from bayesrule.runs.query import Query

__all__ = ["DEFAULT_COLUMNS", "list_columns", "run_list", "run_page"]

DEFAULT_COLUMNS = ("id", "status", "date", "posterior", "model", "data", "seed")
"""Columns of a list of runs; the best-known metrics of the runs follow."""


def _cell(run: IndexedRun, column: str) -> str:
    """Return one field of a run as text."""
    value = run.field(column)
    if column == "date":
        return str(value or "")[:16].replace("T", " ")
    if column == "error":
        return shorten(one_line(str(value or "")), 80)
    if isinstance(value, float):
        return format_number(value)
    return "" if value is None else one_line(str(value))


def list_columns(index: RunIndex, query: Query) -> list[str]:
    """Return the usual columns of a list of the runs that fit: names, and two metrics."""
    return [*DEFAULT_COLUMNS, *headline_columns(index.metric_names(query, 20), 2)]


def run_list(runs: Sequence[IndexedRun], columns: Sequence[str]) -> str:
    """Return runs as a table, in their order.

    Args:
        runs: The runs, with the columns among their fields.
        columns: Columns of a run, metrics or dotted configuration keys.
    """
    cells = [[_cell(run, title) for title in columns] for run in runs]
    text = [i for i, title in enumerate(columns) if "/" not in title and title != "seed"]
    return columns_text(list(columns), cells, left=text)


def _files(run: RunSummary) -> list[str]:
    """Return the run's files with their sizes."""
    root = run.folder.path
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [f"{path.stat().st_size:>12,}  {path.relative_to(root)}" for path in files]


def _facts(run: RunSummary) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [("folder", run.folder.path)]
    if run.record is None:
        return facts
    source, details = run.record.provenance, run.record.details
    commit = source.get("commit")
    data = details.get("data") or source.get("data") or {}
    served = data.get("source") if isinstance(data, Mapping) else None
    where = served.get("where") if isinstance(served, Mapping) else served
    seconds = source.get("wall_seconds")
    facts += [
        ("of", run.record.config.get("study")),
        ("ended", source.get("date")),
        ("took", None if seconds is None else f"{seconds:.1f} s, {source.get('threads')} threads"),
        ("commit", commit and f"{commit[:12]}{' and changes' if source.get('dirty') else ''}"),
        ("machine", (source.get("machine") or {}).get("cpu")),
        ("data", where),
        ("parameters", details.get("parameters")),
    ]
    if run.record.error is not None:
        facts.append(("error", ": ".join(run.record.error)))
    return facts


def _history(run: RunSummary, rows: int) -> str:
    try:
        history = run.folder.history()
    except BayesruleError as error:
        return f"history: {one_line(str(error))}"
    if not history or rows < 1:
        return f"history: {len(history)} rows"
    lines = []
    for row in history[-rows:]:
        head = " ".join(f"{key} {row[key]}" for key in ("phase", "step", "epoch") if key in row)
        numbers = [
            f"{key} {format_number(float(value))}"
            for key, value in row.items()
            if key not in ("phase", "step", "epoch")
        ]
        more = f", {len(numbers) - 4} more" if len(numbers) > 4 else ""
        lines.append(f"  {head}: {', '.join(numbers[:4])}{more}")
    return "\n".join([f"history: the last of {len(history)} rows", *lines])


def run_page(run: RunSummary, rows: int = 5) -> str:
    """Return one run in full: state, source, metrics, end of the history, files.

    Args:
        run: The run.
        rows: How many rows of the history.
    """
    head = [f"run {run.id}: {run.status}"]
    facts = [(name, value) for name, value in _facts(run) if value not in (None, "")]
    head += [f"  {name:10} {one_line(str(value))}" for name, value in facts]
    parts = ["\n".join(head)]
    if run.status == "corrupt":
        parts.append(
            "its record is damaged: `bayesrule runs verify` says how; running the same "
            "command again writes it anew"
        )
    if run.record is not None and run.record.metrics:
        parts.append(metrics_table(run.record.metrics))
    parts.append(_history(run, rows))
    parts.append("\n".join(["files", *_files(run)]))
    return "\n\n".join(parts)
