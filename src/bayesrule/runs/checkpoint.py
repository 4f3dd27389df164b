"""Checkpoints that know whether they are whole.

One file holds the payload and, as its last 80 bytes, a trailer:

    payload | 8 bytes magic "BRCKPT01" | 8 bytes payload length | 64 hex digits SHA-256(payload)

The trailer is written last, so it also is the completeness marker, and payload and checksum arrive
in one rename: no moment exists in which a kill could part them. `torch.load` reads such a
file as it is (a zip archive may be followed by a few bytes). A damaged file is reported once, kept
as `*.corrupt`, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import secrets
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from bayesrule.errors import BayesruleError, CorruptFile
from bayesrule.runs.files import atomic_writer, set_aside, sync_folder

__all__ = ["CheckpointFolder", "load_verified", "save_verified", "verify_file"]

_MAGIC = b"BRCKPT01"
_TRAILER = struct.Struct(">8sQ64s")
_CHUNK = 1 << 20
_NAME = re.compile(r"step-(\d{12})\.ckpt")

Payload = bytes | Callable[[IO[bytes]], None]


class _HashingWriter:
    """A write-only file that hashes and counts what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.length = 0
        self.problem: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.length += len(view)
        try:
            self.file.write(view)
        except OSError as problem:  # torch.save would hide it behind an error of its own
            self.problem = problem
            raise
        return len(view)

    def flush(self) -> None:
        self.file.flush()

    def trailer(self) -> bytes:
        return _TRAILER.pack(_MAGIC, self.length, self.digest.hexdigest().encode())


def _write(path: Path, payload: Payload, *, before_replace: Callable[[], None]) -> None:
    with atomic_writer(path) as file:
        writer = _HashingWriter(file)
        if callable(payload):
            try:
                payload(writer)  # type: ignore[arg-type]  # write and flush is all writers need
            except RuntimeError:
                if writer.problem is not None:
                    raise writer.problem from None
                raise
        else:
            writer.write(payload)
        file.write(writer.trailer())
        file.flush()
        os.fsync(file.fileno())
        before_replace()


def verify_file(path: str | Path) -> int:
    """Check a file against its trailer and return the payload's length in bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptFile: If the trailer is missing or the payload is not what it says.
    """
    path = Path(path)
    size = path.stat().st_size
    length = size - _TRAILER.size
    with path.open("rb") as file:
        if length >= 0:
            file.seek(length)
            magic, stated, stated_digest = _TRAILER.unpack(file.read(_TRAILER.size))
        if length < 0 or magic != _MAGIC or stated != length:
            raise CorruptFile(
                f"{path} is truncated, or was not written by bayesrule: its checksum is missing"
            )
        file.seek(0)
        digest = hashlib.sha256()
        left = length
        while left and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    if left or digest.hexdigest().encode() != stated_digest:
        raise CorruptFile(f"{path} is not what its checksum says: it was altered or damaged")
    return length


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _keep_previous(path: Path) -> None:
    """Give the file at `path` the second name `<path>.previous`, in one step."""
    if not path.exists():
        return
    link = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(path, link)
    except OSError:  # no hard links here: for a moment only `.previous` exists; loading knows it
        path.replace(_previous(path))
        return
    link.replace(_previous(path))


def save_verified(obj: object, path: str | Path, *, keep_previous: bool = True) -> None:
    """Save tensors and plain data with `torch.save`, atomically and with a checksum.

    Args:
        obj: What `torch.load(weights_only=True)` can read: tensors, numbers, strings, containers.
        path: Target; replaced in one step.
        keep_previous: Keep the file that was there as `<path>.previous`, for `load_verified`.

    Raises:
        BayesruleError: If the file can't be written; the one before is unchanged.
    """
    import torch

    path = Path(path)

    def write(file: IO[bytes]) -> None:
        torch.save(obj, file)

    def before_replace() -> None:
        if keep_previous:
            _keep_previous(path)

    _write(path, write, before_replace=before_replace)


def _load_tensors(path: Path, map_location: Any) -> Any:
    import torch

    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as cause:
        first_line = str(cause).strip().splitlines()[0]
        raise CorruptFile(
            f"refused to load {path}: it holds something other than tensors and plain data, and "
            f"code from files is never run ({first_line})"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as cause:
        raise CorruptFile(f"{path} is no checkpoint that torch can read: {cause}") from None


def load_verified(path: str | Path, *, map_location: Any = "cpu") -> Any:
    """Check a checkpoint and load it with `weights_only=True`.

    If the file is missing or damaged and `<path>.previous` is whole, that one is loaded and a
    warning says so; the damaged file is kept as `<path>.corrupt`.

    Args:
        path: File written by `save_verified`.
        map_location: As in `torch.load`.

    Returns:
        The stored object.

    Raises:
        CorruptFile: If no whole file is there, or the file holds anything but tensors and plain
            data (nothing of it is executed).
        FileNotFoundError: If neither the file nor a previous one exists.
    """
    path = Path(path)
    problem: BayesruleError
    try:
        verify_file(path)
    except FileNotFoundError:
        if not _previous(path).exists():
            raise
        problem = CorruptFile(f"{path} is missing")
    except CorruptFile as error:
        problem = error
    else:
        return _load_tensors(path, map_location)
    previous = _previous(path)
    try:
        verify_file(previous)
    except (CorruptFile, FileNotFoundError):
        raise CorruptFile(f"{problem}, and no whole checkpoint before it exists") from None
    if path.exists():
        set_aside(path)
    warnings.warn(f"{problem}; going on from the checkpoint before it, {previous}", stacklevel=2)
    return _load_tensors(previous, map_location)


class CheckpointFolder:
    """The checkpoints of one run: `step-<step>.ckpt`, the newest `keep` of them.

    A new file is durable before an old one goes, so at every instant at least the one before is
    there. Damaged files are reported once, renamed to `*.corrupt` and never deleted.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        """Describe a folder; nothing is written until `save`.

        Args:
            path: The folder.
            keep: How many of the newest checkpoints stay; at least 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path = Path(path)
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps for which a file is there, oldest first, unverified."""
        if not self.path.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def file(self, step: int) -> Path:
        """Return the path of the checkpoint of `step`."""
        return self.path / f"step-{step:012d}.ckpt"

    def save(self, payload: Payload, step: int) -> Path:
        """Store a checkpoint and remove those beyond the newest `keep`.

        Args:
            payload: Bytes, or a callable that writes them to the binary file which it is given
                (only `write` and `flush` are available).
            step: Non-negative position of the run; later checkpoints have larger steps. Files of
                larger steps (from a continuation that was given up) are removed.

        Returns:
            The path written.

        Raises:
            BayesruleError: If it can't be written; earlier checkpoints are untouched.
        """
        if not 0 <= step < 10**12:
            raise ValueError(f"step must be in [0, 1e12), got {step}")
        target = self.file(step)
        _write(target, payload, before_replace=lambda: None)
        kept = [other for other in self.steps() if other <= step][-self.keep :]
        for other in self.steps():
            if other not in kept:
                with contextlib.suppress(OSError):
                    self.file(other).unlink()
        return target

    def save_object(self, obj: object, step: int) -> Path:
        """Store tensors and plain data with `torch.save`; see `save`."""
        import torch

        return self.save(lambda file: torch.save(obj, file), step)

    def _valid(self) -> Iterator[int]:
        """Yield the steps of whole checkpoints, newest first; set damaged ones aside."""
        for step in reversed(self.steps()):
            try:
                verify_file(self.file(step))
            except CorruptFile as problem:
                kept = set_aside(self.file(step))
                sync_folder(self.path)
                left = len(self.steps())
                then = "the one before is used" if left else "the run starts from its beginning"
                warnings.warn(f"{problem}; {then} (kept as {kept.name})", stacklevel=3)
            else:
                yield step

    def latest(self) -> int | None:
        """Return the step of the newest whole checkpoint, or None; damaged ones are set aside."""
        return next(self._valid(), None)

    def read(self, step: int) -> bytes:
        """Return the payload of the checkpoint of `step`, verified.

        Raises:
            CorruptFile: If it is damaged.
            FileNotFoundError: If it does not exist.
        """
        length = verify_file(self.file(step))
        with self.file(step).open("rb") as file:
            return file.read(length)

    def load_latest(self) -> tuple[int, bytes] | None:
        """Return step and payload of the newest whole checkpoint, or None if there is none."""
        step = self.latest()
        return None if step is None else (step, self.read(step))

    def load_latest_object(self, *, map_location: Any = "cpu") -> tuple[int, Any] | None:
        """Return step and object of the newest whole checkpoint saved by `save_object`.

        Raises:
            CorruptFile: If it holds anything but tensors and plain data.
        """
        step = self.latest()
        return None if step is None else (step, _load_tensors(self.file(step), map_location))

    def clear(self) -> None:
        """Remove all checkpoints (of a finished run), not those set aside as corrupt."""
        for step in self.steps():
            self.file(step).unlink()
