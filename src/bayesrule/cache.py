"""Prepared files, made once and shared by every process that needs them.

A prepared set is a folder named by the hash of what it was made from. It is built under a
temporary name and renamed when complete, so a reader sees all of it or nothing; of two writers at
once, the first to finish wins and the other drops its copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["prepared"]

_VERSION = 1  # raise when the prepared files change their layout or meaning
_META = "meta.json"


def prepared(
    cache_dir: Path,
    name: str,
    content: Mapping[str, Any],
    build: Callable[[Path], dict[str, Any]],
    *,
    room: str = "data",
) -> tuple[Path, dict[str, Any]]:
    """Return a prepared folder and its metadata, building it first when it is not there.

    Args:
        cache_dir: The cache; prepared sets lie in its folder `room`.
        name: The set's name, for people who look into the cache.
        content: Everything that the files depend on, JSON-able: source hash and decode options.
        build: Writes the files into the (temporary) folder it is given and returns metadata.
        room: Folder of the cache: ``data``, or ``pretrained`` for checkpoints.

    Returns:
        The complete folder and the metadata that `build` returned when it was made.
    """
    text = json.dumps({"version": _VERSION, **content}, sort_keys=True)
    root = Path(cache_dir) / room
    folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if not (folder / _META).is_file():
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            meta = build(temporary)
            with (temporary / _META).open("w", encoding="utf-8") as handle:
                json.dump({"content": dict(content), "meta": meta}, handle)
                handle.flush()
                os.fsync(handle.fileno())
            with contextlib.suppress(OSError):  # another process was first: use its folder
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))["meta"]
    return folder, meta
