"""What one run's folder gives the index: how its files look, and what they hold.

Nothing here raises for what a file contains: a record that cannot be read is `corrupt`, with the
reason; links and special files are not followed; very long files are not read.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesrule.errors import CorruptFile
from bayesrule.runs.identity import is_run_id
from bayesrule.runs.store import RunFolder

__all__ = ["Content", "flatten", "number", "plain", "read_content", "stamps", "text"]

MAX_KEYS = 20_000  # of one run; a hostile file does not fill the index
_MAX_RECORD = 64_000_000  # bytes; a longer file is not read
_MAX_CONFIG = 2_000_000
_MAX_TEXT = 2_000
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


@dataclass
class Content:
    """What one run gives the index."""

    stamp: str
    recorded: str
    date: str = ""
    wall: float | None = None
    error: str = ""
    config: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] | None = None


def stamps(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, what its file looks like) of every run folder."""
    try:
        entries = list(os.scandir(root))
    except OSError:
        return
    for entry in entries:
        if not is_run_id(entry.name):
            continue
        if entry.is_symlink():
            yield entry.name, "link"
            continue
        for name in ("record.json", "config.yaml"):
            try:
                found = os.lstat(f"{entry.path}/{name}")
            except OSError:
                continue
            kind = name if stat.S_ISREG(found.st_mode) else "special"
            yield entry.name, f"{kind} {found.st_mtime_ns} {found.st_size} {found.st_ino}"
            break
        else:
            yield entry.name, "empty"


def read_content(root: Path, identifier: str, stamp: str) -> Content:
    """Return what a run's folder holds now; never raises for what a file contains."""
    kind, *numbers = stamp.split()
    folder = RunFolder(root, identifier)
    if kind in ("link", "special"):
        return Content(stamp, "corrupt", error="a link or special file; it is not followed")
    if kind == "record.json":
        if int(numbers[1]) > _MAX_RECORD:
            return Content(stamp, "corrupt", error=f"record.json has {numbers[1]} bytes")
        try:
            record = folder.record()
        except (CorruptFile, OSError, ValueError, RecursionError) as problem:
            return Content(stamp, "corrupt", error=plain(str(problem)))
        if record is not None:
            wall = record.provenance.get("wall_seconds")
            return Content(
                stamp,
                record.status,
                date=str(record.provenance.get("date") or ""),
                wall=float(wall) if isinstance(wall, int | float) else None,
                error="" if record.error is None else ": ".join(record.error),
                config=record.config,
                metrics=record.metrics,
            )
    return Content(stamp, "unfinished", config=_started_config(folder.config_path))


def _started_config(path: Path) -> Mapping[str, Any] | None:
    """Return the configuration of a run without a record, if it can be read."""
    import yaml

    try:
        if not stat.S_ISREG(os.lstat(path).st_mode) or path.stat().st_size > _MAX_CONFIG:
            return None
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load(path.read_bytes().decode(), Loader=loader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def flatten(node: Mapping[str, Any], prefix: str = "", left: list[int] | None = None) -> Iterator[
    tuple[str, Any]
]:  # fmt: skip
    """Yield (dotted key, value) of the leaves, and for a group what was chosen in it."""
    left = [MAX_KEYS] if left is None else left
    for name, value in node.items():
        key = f"{prefix}{name}"[:200]
        if left[0] <= 0:
            return
        left[0] -= 1  # whatever is looked at counts: aliases make a short file a huge tree
        if name == "_schema_" or key.count(".") > 20:
            continue
        if isinstance(value, Mapping) and value:
            chosen = value.get("name") or value.get("_target_")
            if isinstance(chosen, str):
                yield key, chosen.rpartition(".")[2] if chosen == value.get("_target_") else chosen
            yield from flatten(value, f"{key}.", left)
        else:
            yield key, value


def text(value: Any) -> str:
    """Return a configuration value as filters compare it: text as it is, else JSON."""
    if isinstance(value, str):
        return value
    try:
        if not isinstance(value, Mapping | list):
            return json.dumps(value, ensure_ascii=False, default=str)[: 4 * _MAX_TEXT]
        found = ""
        for part in _ENCODER.iterencode(value):  # a list of aliases may be huge: a part is enough
            found += part
            if len(found) > 4 * _MAX_TEXT:
                break
        return found[: 4 * _MAX_TEXT]
    except (ValueError, TypeError, RecursionError):
        return str(type(value).__name__)


def plain(value: str) -> str:
    """Return text that SQLite can hold, cut where it is very long."""
    return value.encode("utf-8", "replace").decode()[:_MAX_TEXT]


def number(value: Any) -> float | None:
    """Return a configuration value as a number; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
