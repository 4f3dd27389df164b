"""Prepared files, made once and shared by every process that needs them.

A prepared set is a folder named by the hash of what it was made from. It is built under a
temporary name and renamed when complete, so a reader sees all of it or nothing; of two writers at
once, the first to finish wins and the other drops its copy.

Each set carries the checksums of its files. One that was cut short, altered or lost a file is made
again from its source, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError, CorruptFile

__all__ = ["prepared"]

_VERSION = 2  # raise when the prepared files change their layout or meaning
_META = "meta.json"
_HASHED = 1 << 30  # larger files are known by their size alone: reading them takes too long


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
    text = json.dumps({**content, "layout": _VERSION}, sort_keys=True)
    root = Path(cache_dir) / room
    name = re.sub(r"[^\w.+-]", "_", name)[:100]
    folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    meta = _whole(folder)
    if meta is None:
        _build(root, folder, content, build)
        meta = _whole(folder)
    if meta is None:
        raise CorruptFile(
            f"{folder} changed while it was read; delete it, and it is made again from its source"
        )
    return folder, meta


def _build(
    root: Path, folder: Path, content: Mapping[str, Any], build: Callable[[Path], dict[str, Any]]
) -> None:
    """Make a set under a temporary name, and give it its own in one step."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
    except OSError as cause:
        raise BayesruleError(
            f"cannot keep prepared data in {root}: {(cause.strerror or str(cause)).lower()}; "
            "choose another folder by BAYESRULE_CACHE"
        ) from cause
    try:
        meta = build(temporary)
        described = {"content": dict(content), "meta": meta, "files": _files(temporary)}
        with (temporary / _META).open("w", encoding="utf-8") as handle:
            json.dump({**described, "sha256": _digest(described)}, handle)
            handle.flush()
            os.fsync(handle.fileno())
        with contextlib.suppress(OSError):  # another process was first: use its folder
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(folder: Path) -> dict[str, list[Any]]:
    """Return size and SHA-256 (null beyond a size) of every file but the description."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _META:
            size = path.stat().st_size
            with path.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256") if size <= _HASHED else None
            name = path.relative_to(folder).as_posix()
            found[name] = [size, None if digest is None else digest.hexdigest()]
    return found


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _whole(folder: Path) -> dict[str, Any] | None:
    """Return a set's metadata; None if it is not there, or was damaged and is removed now."""
    if not folder.exists() and not folder.is_symlink():
        return None
    try:
        described = json.loads((folder / _META).read_bytes().decode())
        if described.pop("sha256") != _digest(described):
            raise ValueError(f"{_META} was altered")
        found = _files(folder)
        for name, stated in described["files"].items():
            if found.get(name) != stated:
                raise ValueError(f"{name} is missing, was cut short or altered")
        meta: dict[str, Any] = described["meta"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        warnings.warn(f"{folder} is damaged ({problem}); it is made again", stacklevel=3)
        aside = folder.with_name(f".damaged-{folder.name}-{os.getpid()}")
        with contextlib.suppress(OSError):  # another process was first
            folder.rename(aside)
            if aside.is_dir() and not aside.is_symlink():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink()
        return None
    return meta
