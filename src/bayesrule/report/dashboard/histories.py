"""The history of a run (`metrics.jsonl`) as points of curves, read from a byte offset on.

A file that still grows ends in a part of a line: it is left for the next reading. Only the last
32 MB of a very long file are read, and less of each where many are. A link or special file is not
followed, nor is a run's folder that is a link.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayesrule.report.dashboard.plots import Plot, finite, lines
from bayesrule.report.drawing import metric_label, rule_label
from bayesrule.report.names import is_part, parse_name, sort_names

__all__ = ["History", "curve_slug", "history_plots", "read_history", "slug_of"]

MAX_BYTES = 32_000_000
MAX_PLOTS = 12
_PLACES = ("phase", "step", "epoch")
_FIRST = ("train/elbo", "train/return", "train/epoch_loss", "train/loss")
_UNITS = {
    "lr": "learning rate",
    "comm/up": "bytes from clients in a round",
    "comm/down": "bytes to clients in a round",
    "comm/replies": "clients that answered",
    "memory/bytes": "bytes kept of the past",
    "memory/items": "items kept of the past",
}
_WITHOUT_PHASE = ("train", "rounds", "")
_BY_PHASE = ("train", "test", "val", "ood", "")
"""Splits whose curves start again in every phase; others go on through all of them."""


@dataclass
class History:
    """A part of a history.

    Attributes:
        rows: Rows of the file, as they were written.
        after: Offset of the byte after the last whole row.
        size: Bytes in the file.
        reset: Whether the file is shorter than the offset asked for: the run went back to a
            checkpoint.
        cut: Whether the beginning was left out.
        bad: Lines that are no rows.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    after: int = 0
    size: int = 0
    reset: bool = False
    cut: bool = False
    bad: int = 0

    def measured(self) -> list[str]:
        """Return the names of what was measured, the best known first."""
        names = {key for row in self.rows for key in row if key not in _PLACES}
        ordered = [name for name in _FIRST if name in names]
        return ordered + [name for name in sort_names(names) if name not in ordered]

    def points(self, keys: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return (k, s, x, y) of everything measured that is finite.

        Args:
            keys: Only these names; None: all.
        """
        found = []
        for row in self.rows:
            phase, step = str(row.get("phase", "")), finite(row.get("step"))
            for key, value in row.items():
                if key in _PLACES or step is None or (keys is not None and key not in keys):
                    continue
                y = None if isinstance(value, bool | list | Mapping) else finite(value)
                if y is not None:
                    found.append({"k": key, "s": _series(key, phase), "x": step, "y": y})
        return found

    def note(self) -> str:
        """Say how far the run is."""
        for row in reversed(self.rows):
            if "step" in row:
                epoch = f", epoch {row['epoch']}" if "epoch" in row else ""
                return f"at step {row['step']}{epoch} of phase {row.get('phase', '?')}"
        return "nothing was measured yet"


def read_history(path: Path, after: int = 0, *, share: int = 1) -> History:
    """Read the whole rows of a history behind byte `after`; no file counts as an empty one.

    Args:
        path: The file.
        after: Where to start.
        share: Only so small a part (1/share) of what is read of a single file.
    """
    most = MAX_BYTES // share
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or path.parent.is_symlink():
            return History()
        if after > found.st_size:
            return History(size=found.st_size, reset=True)
        start = max(after, found.st_size - most)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(most)
    except OSError:
        return History()
    cut = start > after
    if cut:
        skipped = data.find(b"\n") + 1
        start, data = start + skipped, data[skipped:]
    end = data.rfind(b"\n") + 1
    history = History(after=start + end, size=found.st_size, cut=cut)
    for line in data[:end].split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            history.rows.append(row)
        else:
            history.bad += 1
    return history


def _series(key: str, phase: str) -> str:
    """Return the name of the curve that a measurement belongs to; from its own row alone."""
    split, _, rule = parse_name(key)
    if is_part(split):
        return split
    through = phase in _WITHOUT_PHASE or split not in _BY_PHASE
    parts = [rule_label(rule) if rule else "", "" if through else phase]
    return ", ".join(part for part in parts if part) or "run"


def _chart(key: str) -> str:
    """Return what plot a key is drawn in: all rules of a metric share one, so do all tasks."""
    split, metric, rule = parse_name(key)
    if is_part(split):
        return f"{'tasks' if split.startswith('task') else 'after tasks'}/{metric}@{rule}"
    return f"{split}/{metric}" if split else metric


def history_plots(
    history: History, wanted: Collection[str] = (), *, live: bool = False
) -> tuple[list[Plot], list[str]]:
    """Return the plots of a history, and the names of charts that were left out.

    Args:
        history: The history.
        wanted: Charts to draw (names as returned); empty: the best known, at most twelve.
        live: Whether also charts of a single point are drawn, which will grow.
    """
    charts: dict[str, list[str]] = {}
    for key in history.measured():
        charts.setdefault(_chart(key), []).append(key)
    places: dict[str, set[float]] = {}
    by_key: dict[str, list[dict[str, Any]]] = {}
    for point in history.points():
        by_key.setdefault(point["k"], []).append(point)
        places.setdefault(_chart(point["k"]), set()).add(point["x"])
    drawable = [name for name in charts if len(places.get(name, ())) > (0 if live else 1)]
    chosen = [name for name in drawable if name in wanted] if wanted else drawable[:MAX_PLOTS]
    unit = "round" if any(row.get("phase") == "rounds" for row in history.rows) else "step"
    plots = []
    for name in chosen:
        keys = charts[name]
        points = [point for key in keys for point in by_key.get(key, [])]
        tasks = name.startswith(("tasks/", "after tasks/"))
        plots.append(
            lines(
                curve_slug(name),
                f"{name} against {unit}",
                points,
                x=unit,
                y=_axis(keys[0]),
                legend="test set of" if tasks else "rule, phase",
                series=keys,
            )
        )
    drawn = set(chosen)
    return plots, [name for name in drawable if name not in drawn]


def _axis(key: str) -> str:
    split, metric, rule = parse_name(key)
    if key in _UNITS:
        return _UNITS[key]
    return metric_label(f"{metric}@{rule}" if is_part(split) else key) or key


def curve_slug(name: str) -> str:
    """Return the slug of the plot of a chart."""
    return f"curve-{slug_of(name)}"


def slug_of(name: str) -> str:
    """Return a name as part of a URL: letters, digits, dashes; different names stay different."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:60].strip("-")
    return f"{plain}-{zlib.crc32(name.encode('utf-8', 'replace')):08x}"
