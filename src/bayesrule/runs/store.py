"""The run store: one folder per run, named by the run's id, safe for many writers.

    <root>/<id>/config.yaml          resolved configuration, before training
               metrics.jsonl         history
               checkpoints/          see checkpoint.py
               posterior.safetensors, posterior.json
               record.json           how it ended; last, atomically
    <root>/.locks/<id>.lock          held by the process that works on the run

A lock lies outside the run's folder, so removing a run never removes a lock which another process
waits for; the system frees it when its holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError, ConfigError, CorruptFile, RunLocked
from bayesrule.runs.checkpoint import CheckpointFolder, verify_file
from bayesrule.runs.files import (
    read_json,
    read_jsonl,
    remove_leftovers,
    set_aside,
    sha256_file,
    storage_reason,
    sync_folder,
    write_atomic,
    write_json,
)
from bayesrule.runs.identity import is_run_id, run_id
from bayesrule.runs.record import RunRecord
from bayesrule.runs.yaml_node import load_yaml

__all__ = ["Problem", "RunFolder", "RunStore", "RunSummary"]

_HASHED = ("config.yaml", "metrics.jsonl", "posterior.json", "posterior.safetensors")


def _read_config(path: Path) -> dict[str, Any]:
    """Read a config.yaml; CorruptFile if it is no mapping."""
    try:
        config = load_yaml(path)
    except FileNotFoundError:
        raise CorruptFile(f"{path} is missing") from None
    except ConfigError as cause:
        raise CorruptFile(f"{path} is damaged: {cause}") from None
    if not isinstance(config, dict):
        raise CorruptFile(f"{path} is damaged: it holds no mapping")
    return config


class RunFolder:
    """One run on disk. Making the object touches nothing; `lock` makes the folder.

    Usage::

        with store.folder(config).lock() as run:
            if not run.is_done():            # asked again under the lock
                ...train...
                run.write_record("done", metrics, provenance=provenance)
    """

    def __init__(
        self, root: str | Path, run_id: str, config: Mapping[str, Any] | None = None
    ) -> None:
        """Describe the folder of run `run_id` below `root`; `config` is needed to create it."""
        self.id = run_id
        self.path = Path(root) / run_id
        self._config = config
        self._lock_path = Path(root) / ".locks" / f"{run_id}.lock"
        self._holder_path = self._lock_path.with_suffix(".holder")

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        """Path of the resolved configuration."""
        return self.path / "config.yaml"

    @property
    def record_path(self) -> Path:
        """Path of the final record."""
        return self.path / "record.json"

    @property
    def metrics_path(self) -> Path:
        """Path of the history (JSON lines)."""
        return self.path / "metrics.jsonl"

    @property
    def posterior_path(self) -> Path:
        """Path of the posterior's tensors."""
        return self.path / "posterior.safetensors"

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The run's checkpoints (the newest two are kept)."""
        return CheckpointFolder(self.path / "checkpoints")

    def config(self) -> dict[str, Any]:
        """Return the stored configuration.

        Raises:
            CorruptFile: If it is missing, unreadable, or belongs to another run.
        """
        config = _read_config(self.config_path)
        found = run_id(config)
        if found != self.id:
            raise CorruptFile(
                f"{self.config_path} describes run {found}, not {self.id}: it was edited, damaged, "
                "or written by another version of bayesrule"
            )
        return config

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of the history; empty if there is none yet."""
        return read_jsonl(self.metrics_path) if self.metrics_path.exists() else []

    def record(self) -> RunRecord | None:
        """Return the final record, or None if the run has not ended.

        Raises:
            CorruptFile: If it is damaged or belongs to another run.
        """
        try:
            content = read_json(self.record_path)
        except FileNotFoundError:
            return None
        record = RunRecord.from_json(content, where=str(self.record_path))
        if record.id != self.id:
            raise CorruptFile(f"{self.record_path} belongs to run {record.id}, not {self.id}")
        return record

    def is_done(self) -> bool:
        """Return whether the run has finished; a damaged record counts as no, with a warning."""
        try:
            record = self.record()
        except CorruptFile as problem:
            warnings.warn(f"{problem}; the run counts as not finished", stacklevel=2)
            return False
        return record is not None and record.status == "done"

    @contextlib.contextmanager
    def lock(self, timeout: float = 1.0) -> Iterator[RunFolder]:
        """Hold the run exclusively; make its folder and write config.yaml if need be.

        Args:
            timeout: Seconds to wait for another process.

        Yields:
            This folder.

        Raises:
            RunLocked: If another process holds the run; says which, and where.
            BayesruleError: If the folder can't be written.
        """
        import socket

        from filelock import FileLock, Timeout

        try:
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._lock_path)
            lock.acquire(timeout=timeout)
        except Timeout:
            raise RunLocked(
                f"run {self.id} is being worked on by {self._holder()}; wait for it, or stop that "
                "process (its lock is freed when it ends, and the run goes on from its last "
                "checkpoint)"
            ) from None
        except OSError as cause:
            raise BayesruleError(
                f"cannot lock run {self.id} at {self._lock_path}: {storage_reason(cause)}; choose "
                "another folder for runs by BAYESRULE_RUNS, or make room in this one"
            ) from cause
        try:
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with contextlib.suppress(OSError):  # only for the message of others
                self._holder_path.write_text(json.dumps(holder))
            remove_leftovers(self.path)
            remove_leftovers(self.path / "checkpoints")
            self._prepare()
            yield self
        finally:
            with contextlib.suppress(OSError):
                self._holder_path.unlink()
            lock.release()

    def _holder(self) -> str:
        try:
            holder = json.loads(self._holder_path.read_text())
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def is_locked(self) -> bool:
        """Return whether some process works on the run now."""
        from filelock import FileLock, Timeout

        if not self._lock_path.exists():
            return False
        try:
            with FileLock(self._lock_path).acquire(timeout=0):
                return False
        except (Timeout, OSError):
            return True

    def _prepare(self) -> None:
        """Make the folder and, atomically, config.yaml."""
        if self._config is None:
            return
        import yaml

        if self.config_path.exists():
            try:
                self.config()
                return
            except CorruptFile as problem:
                kept = set_aside(self.config_path)
                warnings.warn(f"{problem}; written anew (kept as {kept.name})", stacklevel=4)
        text = yaml.safe_dump(dict(self._config), sort_keys=False, allow_unicode=True)
        if run_id(yaml.safe_load(text)) != self.id:
            raise ConfigError(
                f"the configuration of run {self.id} changes when it is written as YAML and read "
                "again; use plain strings, numbers, lists and mappings only"
            )
        write_atomic(self.config_path, text)

    def write_record(
        self,
        status: str,
        metrics: Mapping[str, float] | None = None,
        *,
        error: BaseException | None = None,
        provenance: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Say how the run ended; the last thing written, atomically, with a checksum.

        Args:
            status: `done`, `failed` or `stopped`.
            metrics: Summary metrics by name; non-finite values are kept as such.
            error: What ended a failed run.
            provenance: See `provenance.collect`.
            details: Further plain data worth keeping (parameter count, data description, ...).

        Returns:
            The record.

        Raises:
            BayesruleError: If it can't be written.
        """
        present = [name for name in _HASHED if (self.path / name).is_file()]
        record = RunRecord(
            id=self.id,
            status=status,
            metrics={name: float(value) for name, value in (metrics or {}).items()},
            error=None if error is None else (type(error).__name__, str(error)),
            config=dict(self._config) if self._config is not None else self.config(),
            provenance=dict(provenance or {}),
            details=dict(details or {}),
            files={name: sha256_file(self.path / name) for name in present},
        )
        try:
            self.record()
        except CorruptFile as problem:
            kept = set_aside(self.record_path)
            warnings.warn(f"{problem}; written anew (kept as {kept.name})", stacklevel=2)
        write_json(self.record_path, record.to_json())
        return record


@dataclass(frozen=True)
class RunSummary:
    """One line of `bayesrule runs ls`.

    Attributes:
        id: The run's id.
        status: `done`, `failed`, `stopped`, `running` (locked now), `unfinished` (killed: the same
            command resumes it) or `corrupt`.
        record: The record, where there is a whole one.
        folder: The run's folder.
    """

    id: str
    status: str
    record: RunRecord | None
    folder: RunFolder

    def field(self, key: str) -> Any:
        """Return `id`, `status`, a metric, or a dotted configuration key; None if unknown."""
        if key in ("id", "status"):
            return getattr(self, key)
        if self.record is None:
            return None
        if key in self.record.metrics:
            return self.record.metrics[key]
        node: Any = self.record.config
        for name in key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                return None
            node = node[name]
        return node


@dataclass(frozen=True)
class Problem:
    """Something wrong in the store: which run, which file, and what."""

    id: str
    path: Path
    message: str


def _matches(value: Any, pattern: str) -> bool:
    text = value if isinstance(value, str) else json.dumps(value)
    return fnmatchcase(text, pattern)


class RunStore:
    """All runs below one folder."""

    def __init__(self, root: str | Path) -> None:
        """Describe a store; the folder is made by the first run."""
        self.root = Path(root)

    def __repr__(self) -> str:
        return f"RunStore({str(self.root)!r})"

    def folder(self, config: Mapping[str, Any]) -> RunFolder:
        """Return the folder of the run which a resolved configuration describes.

        Nothing is written until the folder is locked.
        """
        return RunFolder(self.root, run_id(config), config)

    def ids(self) -> list[str]:
        """Return the ids of all run folders, sorted."""
        if not self.root.is_dir():
            return []
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if is_run_id(entry.name))

    def get(self, prefix: str) -> RunFolder:
        """Return the one run whose id starts with `prefix`.

        Raises:
            ConfigError: If no run or more than one matches.
        """
        matches = []
        if re.fullmatch(r"[0-9a-f]{1,16}", prefix):
            matches = [name for name in self.ids() if name.startswith(prefix)]
        if len(matches) == 1:
            return RunFolder(self.root, matches[0])
        if matches:
            shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
            raise ConfigError(f"{prefix} fits {len(matches)} runs ({shown}); give more digits")
        raise ConfigError(
            f"no run {prefix!r} in {self.root} ({len(self.ids())} runs there); "
            "`bayesrule runs ls` lists them"
        )

    def summary(self, identifier: str) -> RunSummary:
        """Return the summary of the run with exactly this id."""
        folder = RunFolder(self.root, identifier)
        try:
            record = folder.record()
        except CorruptFile:
            return RunSummary(identifier, "corrupt", None, folder)
        if record is not None and record.status == "done":
            return RunSummary(identifier, "done", record, folder)
        if folder.is_locked():
            return RunSummary(identifier, "running", record, folder)
        return RunSummary(
            identifier, "unfinished" if record is None else record.status, record, folder
        )

    def ls(self, filters: Mapping[str, str] | Sequence[str] = ()) -> list[RunSummary]:
        """List runs; of each only record.json is read.

        Args:
            filters: `{key: pattern}` or `["key=pattern", ...]`; the key is `id`, `status`, a metric
                or a dotted configuration key, the pattern may have `*`, `?` and `[...]`. All must
                match. A run without a record matches on `id` and `status` only.

        Returns:
            Summaries by id.

        Raises:
            ConfigError: If a filter has no `=`.
        """
        if not isinstance(filters, Mapping):
            pairs = {}
            for text in filters:
                key, equals, pattern = text.partition("=")
                if not equals:
                    raise ConfigError(f"filter {text!r} has no '=': write key=pattern")
                pairs[key] = pattern
            filters = pairs
        wanted = filters.items()
        return [
            run
            for run in map(self.summary, self.ids())
            if all(_matches(run.field(key), pattern) for key, pattern in wanted)
        ]

    def rm(self, prefix: str) -> str:
        """Remove one run, in one step, and return its id.

        Raises:
            ConfigError: If no run or more than one matches.
            RunLocked: If a process works on it.
        """
        folder = self.get(prefix)
        with folder.lock():
            trash = self.root / f".removed-{folder.id}-{secrets.token_hex(4)}"
            folder.path.rename(trash)
            sync_folder(self.root)
        for removed in self.root.glob(".removed-*"):  # also what a killed `rm` left behind
            if removed.is_symlink():  # a run that lies elsewhere stays there
                removed.unlink(missing_ok=True)
            else:
                shutil.rmtree(removed, ignore_errors=True)
        return folder.id

    def verify(self, prefix: str | None = None) -> list[Problem]:
        """Check records, configurations, histories, posteriors and checkpoints.

        Args:
            prefix: One run, or None for all.

        Returns:
            What is wrong; empty if all is well. Nothing is changed.
        """
        chosen = self.ids() if prefix is None else [self.get(prefix).id]
        return [problem for identifier in chosen for problem in self._verify(identifier)]

    def _verify(self, identifier: str) -> Iterator[Problem]:
        run = RunFolder(self.root, identifier)
        record = None
        checks = {run.config_path: run.config, run.record_path: run.record}
        for path, check in checks.items():
            try:
                result = check()
            except BayesruleError as problem:
                yield Problem(identifier, path, str(problem))
            else:
                record = result if isinstance(result, RunRecord) else record
        if record is not None:
            for name, digest in record.files.items():
                path = run.path / name
                if not path.is_file():
                    yield Problem(identifier, path, f"{path} is missing")
                elif sha256_file(path) != digest:
                    yield Problem(identifier, path, f"{path} was altered after the run ended")
            if run_id(record.config) != identifier:
                message = f"{run.record_path} holds the configuration of another run"
                yield Problem(identifier, run.record_path, message)
        for step in run.checkpoints.steps():
            path = run.checkpoints.file(step)
            try:
                verify_file(path)
            except CorruptFile as problem:
                yield Problem(identifier, path, str(problem))
