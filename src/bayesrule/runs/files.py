"""Files that survive a kill, a full disk and a flipped bit.

- A file is replaced in one step: written beside its target, flushed, synced, renamed; then its
  folder is synced.
- A JSON record carries the SHA-256 of its own content under `"sha256"`.
- A history (JSON lines) is appended to, one whole line per write; a line cut short by a kill is
  dropped by the reader with a warning and by the writer when it opens the file again.

JSON has no NaN: non-finite floats are stored as the strings `"nan"`, `"inf"` and `"-inf"`, which
`float()` reads back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bayesrule.errors import BayesruleError, CorruptFile
from bayesrule.runs.identity import canonical_json

__all__ = [
    "JsonlWriter",
    "atomic_writer",
    "content_sha256",
    "is_gone",
    "jsonable",
    "read_file",
    "read_json",
    "read_jsonl",
    "remove_leftovers",
    "set_aside",
    "sha256_file",
    "storage_reason",
    "sync_folder",
    "truncate_to",
    "write_atomic",
    "write_json",
]

_CHUNK = 1 << 20
_TMP_SUFFIX = ".tmp"


_REASONS = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows (see `ulimit -f`)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "its name is longer than the file system allows",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.ELOOP: "its symbolic links go round in a circle",
}


def storage_reason(cause: OSError) -> str:
    """Say in a few words why a file could not be read or written."""
    return _REASONS.get(cause.errno or 0, cause.strerror or str(cause))


def _storage_error(path: Path, cause: OSError) -> BayesruleError:
    """Say in one sentence why `path` could not be written, with the space left."""
    folder = path.parent
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110 (never raises)
        folder = folder.parent
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    except OSError:
        free = "free space unknown"
    reason = storage_reason(cause)
    return BayesruleError(
        f"cannot write {path}: {reason} ({free} there); nothing was lost: the file that was there "
        "before is unchanged. Free space or choose another folder, then run the command again"
    )


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (where the file system can sync folders)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file which replaces `path` in one step when the block ends without error.

    A reader sees the old content or the new, never a part. If the block raises, or the disk is
    full, the temporary file is removed and `path` stays as it was.

    Args:
        path: Target; its folder is made if needed.

    Yields:
        The open temporary file, on the same file system as the target.

    Raises:
        BayesruleError: If the file can't be written; says why and how much space is left.
    """
    path = Path(path)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_TMP_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = tmp.open("xb")
    except OSError as cause:
        raise _storage_error(path, cause) from cause
    try:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        finally:
            # A failing close would try to write the same buffer again and hide the first error.
            with contextlib.suppress(OSError):
                file.close()
        tmp.replace(path)
    except BaseException as cause:
        with contextlib.suppress(OSError):
            tmp.unlink()
        if isinstance(cause, OSError):
            raise _storage_error(path, cause) from cause
        raise
    sync_folder(path.parent)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replace the content of `path` in one step (text as UTF-8); see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def is_gone(pid: str) -> bool:
    """Return whether no process of this number is there (text that is no number: none is)."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # somebody else's process
        return False
    except (ValueError, OverflowError, OSError):
        return True
    return False


def remove_leftovers(folder: str | Path, *, locked: bool = True) -> int:
    """Remove temporary files that killed writers left in `folder`; return how many.

    Args:
        folder: The folder.
        locked: Whether the caller holds the lock on it, so that nobody else can be writing. Else
            only files of processes that are gone are removed.
    """
    removed = 0
    for tmp in Path(folder).glob(f".*{_TMP_SUFFIX}"):
        parts = tmp.name.split(".")  # see `atomic_writer`
        if locked or (len(parts) > 4 and parts[-3].isdigit() and is_gone(parts[-3])):
            with contextlib.suppress(OSError):
                tmp.unlink()
                removed += 1
    return removed


def set_aside(path: str | Path) -> Path:
    """Rename a damaged file to `<name>.corrupt` (numbered if taken) and return its new path."""
    path = Path(path)
    target = path.with_name(path.name + ".corrupt")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt{number}")
    path.rename(target)
    return target


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def jsonable(value: Any) -> Any:
    """Return a copy of `value` that JSON can hold.

    Non-finite floats are `"nan"`, `"inf"` or `"-inf"`. Bytes of a file name that are no UTF-8
    (surrogates in Python) are written out.
    """
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    return value


def content_sha256(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's canonical JSON, its own `"sha256"` field left out."""
    content = {key: inner for key, inner in value.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(jsonable(content)).encode()).hexdigest()


def read_file(path: str | Path) -> bytes:
    """Return the content of a file that is part of a run, a paper or a result.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptFile: If something else than a file is in its place.
        BayesruleError: If it can't be read; says why.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as cause:
        text = f"cannot read {path}: {storage_reason(cause)}"
        damaged = cause.errno in (errno.EISDIR, errno.ELOOP)
        raise (CorruptFile(text) if damaged else BayesruleError(text)) from None


def write_json(path: str | Path, value: Mapping[str, Any], *, checksum: bool = True) -> None:
    """Write a JSON object atomically, with its own checksum as last field.

    Args:
        path: Target.
        value: Plain data with string keys; non-finite floats become strings (see the module).
        checksum: Whether to add `"sha256"`; committed result files, which git guards, have none.

    Raises:
        ConfigError: If a value is not plain data; names its key.
        BayesruleError: If the file can't be written.
    """
    content = jsonable({key: inner for key, inner in value.items() if key != "sha256"})
    digest = content_sha256(content)  # also refuses what JSON cannot hold
    if checksum:
        content["sha256"] = digest
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def read_json(path: str | Path, *, checksum: bool = True) -> dict[str, Any]:
    """Read a JSON object and check it against its own checksum.

    Args:
        path: File written by `write_json`.
        checksum: Whether a checksum must be there and hold.

    Returns:
        The object, without the `"sha256"` field.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptFile: If it is truncated, no JSON object, or not what its checksum says.
    """
    path = Path(path)
    data = read_file(path)
    try:
        value = json.loads(data.decode())
    except ValueError as cause:  # also a number of too many digits
        raise CorruptFile(
            f"{path} is truncated or damaged: it is no valid JSON ({cause})"
        ) from None
    except RecursionError:
        raise CorruptFile(f"{path} is damaged: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} is damaged: it holds no JSON object")
    found = value.pop("sha256", None)
    if checksum:
        if found is None:
            raise CorruptFile(
                f"{path} has no checksum: it was not written by bayesrule, or altered"
            )
        try:
            expected = content_sha256(value)
        except BayesruleError as cause:
            raise CorruptFile(f"{path} was altered after it was written: {cause}") from None
        except RecursionError:
            raise CorruptFile(f"{path} is damaged: it is nested too deeply") from None
        if found != expected:
            raise CorruptFile(
                f"{path} is not what its checksum says: it was altered or damaged after it was "
                "written"
            )
    return value


def _whole_length(file: IO[bytes]) -> int:
    """Return the length up to and with the last newline of an open file."""
    end = file.seek(0, os.SEEK_END)
    position = end
    while position > 0:
        start = max(0, position - _CHUNK)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def truncate_to(path: str | Path, n_bytes: int) -> None:
    """Cut a history back to the length which a checkpoint recorded.

    Args:
        path: The file; a missing file counts as empty.
        n_bytes: Length to cut to.

    Raises:
        CorruptFile: If the file is shorter than that: history was lost.
        BayesruleError: If the file can't be written.
    """
    path = Path(path)
    length = path.stat().st_size if path.exists() else 0
    if length < n_bytes:
        raise CorruptFile(
            f"{path} has {length} bytes, but the checkpoint was written when it had {n_bytes}: a "
            "part of the history was lost. Remove the run (`bayesrule runs rm`) to start it again"
        )
    if length > n_bytes:
        try:
            with path.open("r+b") as file:
                file.truncate(n_bytes)
                os.fsync(file.fileno())
        except OSError as cause:
            raise _storage_error(path, cause) from cause


class JsonlWriter:
    """Appends rows to a JSON-lines file, one whole line per system call.

    A killed process loses no line that `append` returned for; a machine that loses power may lose
    the lines since the last `sync`. Call `sync` before a checkpoint and store the length that it
    returns: `JsonlWriter(path, resume_at=length)` then continues as if the rest never happened.
    """

    def __init__(self, path: str | Path, *, resume_at: int | None = None) -> None:
        """Open for appending.

        Args:
            path: The file; made if needed.
            resume_at: Length in bytes to cut the file back to. None: keep all whole lines; a line
                cut short by a kill is dropped.

        Raises:
            CorruptFile: If the file is shorter than `resume_at`.
            BayesruleError: If the file can't be opened.
        """
        self.path = Path(path)
        if resume_at is not None:
            truncate_to(self.path, resume_at)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
            self._length = _whole_length(self._file)
            self._file.truncate(self._length)
        except OSError as cause:
            raise _storage_error(self.path, cause) from cause

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row; on a full disk the part written is taken back and the error says so."""
        text = json.dumps(jsonable(row), separators=(",", ":"), ensure_ascii=False)
        line = text.encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as cause:
            with contextlib.suppress(OSError):
                self._file.truncate(self._length)
            raise _storage_error(self.path, cause) from cause
        self._length += len(line)

    def sync(self) -> int:
        """Make all rows durable and return the file's length in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as cause:
            raise _storage_error(self.path, cause) from cause
        return self._length

    def close(self) -> None:
        """Sync and close; safe to call twice."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read all whole rows of a JSON-lines file.

    A last line without its newline, or one that is no JSON, was cut short by a kill: it is dropped
    with a warning. A bad line before the last is damage.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptFile: If a line other than the last is no JSON object; names the line.
    """
    path = Path(path)
    lines = read_file(path).split(b"\n")
    unfinished = lines.pop()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode())
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as cause:
            if number == len(lines) and not unfinished:
                unfinished = line
                break
            raise CorruptFile(f"{path}, line {number}, is damaged: {cause}") from None
        rows.append(row)
    if unfinished:
        warnings.warn(
            f"{path}: the last line was cut short and is left out ({len(rows)} whole rows)",
            stacklevel=2,
        )
    return rows
