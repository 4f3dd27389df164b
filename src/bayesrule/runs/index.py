"""An index over a run store: ten thousand runs listed, filtered, sorted and grouped at once.

Records stay the only truth. The index is an SQLite file in a cache folder, named by the store's
path and `SCHEMA`; it may be removed at any time. `refresh` looks at every run's folder and reads
again only the records whose file changed (time, size, inode). A record that cannot be read is
listed as `corrupt`, with the reason.

    run(n, id, stamp, status, recorded, date, study, paper, part, arm, wall, error, words)
    key(n, kind, name)             names of configuration keys and metrics
    config(key, run, value, number), metric(key, run, value)

A configuration key is dotted (`posterior.lr`); a group's own name stands for what was chosen in
it (`posterior` is its name, or its class). Queries are built from allow-listed columns and keys
that are there; every value is a bound parameter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesrule.runs.group import Group, GroupBuilder
from bayesrule.runs.index_content import (
    MAX_KEYS,
    Content,
    flatten,
    number,
    plain,
    read_content,
    stamps,
    text,
)
from bayesrule.runs.query import Query, build_query
from bayesrule.runs.store import RunFolder

__all__ = ["SCHEMA", "IndexedRun", "RunIndex"]

SCHEMA = 1
_BATCH = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS run(
  n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, stamp TEXT NOT NULL, status TEXT NOT NULL,
  recorded TEXT NOT NULL, date TEXT, study TEXT, paper TEXT, part TEXT, arm TEXT, wall REAL,
  error TEXT, words TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS run_date ON run(date);
CREATE TABLE IF NOT EXISTS key(
  n INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, UNIQUE(kind, name));
CREATE TABLE IF NOT EXISTS config(
  key INTEGER, run INTEGER, value TEXT, number REAL, PRIMARY KEY(key, run)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metric(
  key INTEGER, run INTEGER, value REAL, PRIMARY KEY(key, run)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class IndexedRun:
    """One run as the index has it.

    Attributes:
        id: The run's id.
        status: As in `RunSummary`.
        date: When it ended (ISO), empty if it has not.
        study: `<paper>/<study>/<arm>`, or empty.
        paper: The first part of it.
        part: The second, a study's name.
        arm: The third.
        wall: Seconds that it took.
        error: What ended it, or why its record is not readable; empty if nothing did.
        fields: Further keys that were asked for: configuration values and metrics.
    """

    id: str
    status: str
    date: str
    study: str
    paper: str
    part: str
    arm: str
    wall: float | None
    error: str
    fields: Mapping[str, Any]

    def field(self, key: str) -> Any:
        """Return a column or one of the fields asked for; None if the run has none."""
        return getattr(self, key) if key in _COLUMNS else self.fields.get(key)


_COLUMNS = ("id", "status", "date", "study", "paper", "part", "arm", "wall", "error")


def _indexed(row: Sequence[Any], fields: Mapping[str, Any]) -> IndexedRun:
    """Return a row (n, then the columns) as a run."""
    columns: dict[str, Any] = dict(zip(_COLUMNS, row[1:], strict=True))
    return IndexedRun(**columns, fields=fields)


class RunIndex:
    """The index of one store.

    Usage::

        index = RunIndex(runs_dir(), cache_dir())
        index.refresh()
        page, total = index.find(Query.parse("posterior=ivon test/nll@mean<0.5"), limit=50)
    """

    def __init__(self, root: str | Path, cache: str | Path) -> None:
        """Describe the index of the store at `root`; nothing is read or written yet.

        Args:
            root: The run store.
            cache: Folder for the index; if it cannot be written, a temporary one is used.
        """
        self.root = Path(root)
        digest = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:16]
        self.path = Path(cache) / f"runs-{digest}-v{SCHEMA}.sqlite"
        self._guard = threading.Lock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"RunIndex({str(self.root)!r}, {str(self.path)!r})"

    # --- the file -------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Open the file for writing; a damaged one is made anew, an unwritable place replaced."""
        for attempt in range(3):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
                try:
                    db.execute("PRAGMA journal_mode=WAL")
                    db.execute("PRAGMA synchronous=NORMAL")  # whole after a kill, in this mode
                    db.executescript(_TABLES)
                    db.execute("BEGIN IMMEDIATE")
                    db.execute("COMMIT")
                    return db
                except BaseException:
                    db.close()
                    raise
            except (OSError, sqlite3.OperationalError):  # no place, or no right, to write
                if attempt == 2:
                    raise
                self._temporary = tempfile.TemporaryDirectory(prefix="bayesrule-index-")
                self.path = Path(self._temporary.name) / self.path.name
            except sqlite3.DatabaseError:
                if attempt == 2:
                    raise
                self._remove()
        raise AssertionError("unreachable")

    def _remove(self) -> None:
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{self.path}{ending}").unlink()

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one question."""
        if not self.path.exists():
            self.refresh()
        db = sqlite3.connect(self.path, timeout=30)
        try:
            db.execute("PRAGMA query_only=ON")
            yield db
        finally:
            db.close()

    # --- keeping up with the store ----------------------------------------------------------------

    def refresh(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Bring the index up to date; return how many runs were read.

        Args:
            progress: Called with (read, to be read) now and then.
        """
        with self._guard, contextlib.closing(self._open()) as db:
            try:
                return self._refresh(db, progress)
            except sqlite3.DatabaseError:  # damaged behind its first page
                db.close()
                self._remove()
        with self._guard, contextlib.closing(self._open()) as db:
            return self._refresh(db, progress)

    def _refresh(self, db: sqlite3.Connection, progress: Callable[[int, int], None] | None) -> int:
        current = dict(stamps(self.root))
        known = dict(db.execute("SELECT id, stamp FROM run"))
        gone = [one for one in known if one not in current]
        changed = [one for one, stamp in current.items() if known.get(one) != stamp]
        keys = {(kind, name): n for n, kind, name in db.execute("SELECT n, kind, name FROM key")}
        for start in range(0, len(gone), _BATCH):
            self._write(db, gone[start : start + _BATCH], {}, keys)
        for start in range(0, len(changed), _BATCH):
            batch = changed[start : start + _BATCH]
            contents = {one: read_content(self.root, one, current[one]) for one in batch}
            self._write(db, [one for one in batch if one in known], contents, keys)
            if progress is not None:
                progress(min(start + _BATCH, len(changed)), len(changed))
        self._mark_running(db)
        return len(changed)

    def _write(
        self,
        db: sqlite3.Connection,
        old: Sequence[str],
        new: Mapping[str, Content],
        keys: dict[tuple[str, str], int],
    ) -> None:
        """Remove the runs `old` and add the runs `new`, in one transaction."""
        db.execute("BEGIN IMMEDIATE")
        try:
            for identifier in old:
                row = db.execute("SELECT n FROM run WHERE id = ?", (identifier,)).fetchone()
                if row is None:
                    continue
                for table in ("config", "metric"):  # by the primary key: no index on the run
                    db.execute(
                        f"DELETE FROM {table} WHERE run = ? AND key IN "
                        "(SELECT n FROM key WHERE kind = ?)",
                        (row[0], table),
                    )
                db.execute("DELETE FROM run WHERE n = ?", row)
            for identifier, content in new.items():
                self._insert(db, identifier, content, keys)
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            keys.clear()
            raise

    def _insert(
        self,
        db: sqlite3.Connection,
        identifier: str,
        content: Content,
        keys: dict[tuple[str, str], int],
    ) -> None:
        config = dict(flatten(content.config or {}))
        study = config.get("study")
        study = study if isinstance(study, str) else ""
        parts = [*study.split("/"), "", ""] if study.count("/") == 2 else ["", "", ""]
        named = [config.get(key) for key in ("posterior", "model", "data", "task", "note", "tags")]
        words = " ".join([identifier, study, *(text(one) for one in named if one), content.error])
        row = (
            *(identifier, content.stamp, content.recorded, content.recorded),
            *(plain(content.date), plain(study), *map(plain, parts[:3])),
            *(content.wall, plain(content.error), plain(words).lower()),
        )
        cursor = db.execute(
            "INSERT OR REPLACE INTO run(id, stamp, status, recorded, date, study, paper, part, "
            "arm, wall, error, words) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        n = cursor.lastrowid
        db.executemany(
            "INSERT OR REPLACE INTO config VALUES(?, ?, ?, ?)",
            [
                (_key(db, keys, "config", key), n, plain(text(value)), number(value))
                for key, value in config.items()
            ],
        )
        metrics = list((content.metrics or {}).items())[:MAX_KEYS]
        db.executemany(
            "INSERT OR REPLACE INTO metric VALUES(?, ?, ?)",
            [(_key(db, keys, "metric", name), n, value) for name, value in metrics],
        )

    def _mark_running(self, db: sqlite3.Connection) -> None:
        """Set the status of runs that a process works on now, and of those that none does."""
        with contextlib.suppress(OSError):
            held = [
                entry.name.removesuffix(".holder")
                for entry in os.scandir(self.root / ".locks")
                if entry.name.endswith(".holder")
            ]
            open_runs = dict(
                db.execute("SELECT id, status FROM run WHERE recorded NOT IN ('done', 'corrupt')")
            )
            running = {
                one for one in held if one in open_runs and RunFolder(self.root, one).is_locked()
            }
            before = {one for one, status in open_runs.items() if status == "running"}
            if running == before:
                return
            db.execute("BEGIN IMMEDIATE")
            for one in before - running:
                db.execute("UPDATE run SET status = recorded WHERE id = ?", (one,))
            for one in running - before:
                db.execute("UPDATE run SET status = 'running' WHERE id = ?", (one,))
            db.execute("COMMIT")

    # --- questions --------------------------------------------------------------------------------

    def keys(self, kind: str) -> list[str]:
        """Return the names of all `config` keys or `metric`s that some run has, sorted."""
        with self._reader() as db:
            rows = db.execute("SELECT name FROM key WHERE kind = ? ORDER BY name", (kind,))
            return [name for (name,) in rows]

    def distinct(self, column: str, limit: int = 500) -> list[str]:
        """Return the values of `paper`, `arm` or `status` that there are, sorted."""
        if column not in ("paper", "arm", "status"):
            raise ValueError(column)
        with self._reader() as db:
            rows = db.execute(
                f"SELECT DISTINCT {column} FROM run WHERE {column} <> '' ORDER BY {column} LIMIT ?",
                (limit,),
            )
            return [name for (name,) in rows]

    def count(self) -> int:
        """Return how many runs there are."""
        with self._reader() as db:
            return int(db.execute("SELECT COUNT(*) FROM run").fetchone()[0])

    def find(
        self,
        query: Query,
        fields: Sequence[str] = (),
        *,
        limit: int | None = None,
        offset: int = 0,
    ) -> tuple[list[IndexedRun], int]:
        """Return one page of the runs that fit, and how many fit.

        Args:
            query: Filters and order.
            fields: Configuration keys and metrics to return with each run.
            limit: At most so many; None: all.
            offset: How many are left out before.

        Raises:
            ConfigError: If a filter or the order names a key that no run has.
        """
        with self._reader() as db:
            sql = build_query(db, query)
            total = int(db.execute(f"SELECT COUNT(*) {sql.source}", sql.parameters).fetchone()[0])
            text = (
                f"SELECT run.n, {', '.join(f'run.{name}' for name in _COLUMNS)} {sql.source} "
                f"{sql.order} LIMIT ? OFFSET ?"
            )
            bounds = (-1 if limit is None else limit, offset)
            rows = db.execute(text, (*sql.parameters, *bounds)).fetchall()
            extra = self._fields(db, [row[0] for row in rows], fields)
            return [_indexed(row, extra.get(row[0], {})) for row in rows], total

    def get(self, identifier: str) -> IndexedRun | None:
        """Return one run by its full id, with its whole configuration and metrics as fields."""
        with self._reader() as db:
            row = db.execute(
                f"SELECT n, {', '.join(_COLUMNS)} FROM run WHERE id = ?", (identifier,)
            ).fetchone()
            if row is None:
                return None
            fields: dict[str, Any] = {}
            for table in ("config", "metric"):
                fields |= db.execute(
                    f"SELECT key.name, {table}.value FROM key JOIN {table} ON {table}.key = key.n "
                    f"AND {table}.run = ? WHERE key.kind = ?",
                    (row[0], table),
                ).fetchall()
            return _indexed(row, fields)

    def config(self, identifier: str) -> dict[str, str]:
        """Return a run's configuration, flat, as texts."""
        with self._reader() as db:
            return dict(
                db.execute(
                    "SELECT key.name, config.value FROM run CROSS JOIN key CROSS JOIN config "
                    "ON config.key = key.n AND config.run = run.n "
                    "WHERE run.id = ? AND key.kind = 'config' ORDER BY key.name",
                    (identifier,),
                )
            )

    def spread(self, query: Query, limit: int) -> tuple[dict[str, dict[str, int]], int]:
        """Return how often each value of each configuration key occurs, and in how many runs.

        Args:
            query: Which runs.
            limit: Only the first so many of them.
        """
        with self._reader() as db:
            sql = build_query(db, query)
            some = f"WITH some AS (SELECT run.n {sql.source} {sql.order} LIMIT ?)"
            values = (*sql.parameters, limit)
            rows = db.execute(
                f"{some} SELECT key.name, config.value, COUNT(*) FROM key CROSS JOIN some "
                "CROSS JOIN config ON config.key = key.n AND config.run = some.n "
                "WHERE key.kind = 'config' GROUP BY key.name, config.value ORDER BY key.name",
                values,
            )
            found: dict[str, dict[str, int]] = {}
            for name, value, count in rows:
                found.setdefault(name, {})[value] = count
            total = int(db.execute(f"{some} SELECT COUNT(*) FROM some", values).fetchone()[0])
        return found, total

    def _fields(
        self, db: sqlite3.Connection, runs: Sequence[int], fields: Sequence[str]
    ) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for name in dict.fromkeys(fields):
            for kind in ("config", "metric"):
                key = db.execute(
                    "SELECT n FROM key WHERE kind = ? AND name = ?", (kind, name)
                ).fetchone()
                if key is None:
                    continue
                for start in range(0, len(runs), _BATCH):
                    some = runs[start : start + _BATCH]
                    marks = ",".join("?" * len(some))
                    rows = db.execute(
                        f"SELECT run, value FROM {kind} WHERE key = ? AND run IN ({marks})",
                        (key[0], *some),
                    )
                    for run, value in rows:
                        found.setdefault(run, {})[name] = value
        return found

    def metric_names(self, query: Query, limit: int = 200) -> list[str]:
        """Return the metrics that many of the first `limit` runs which fit have.

        Many is half of the number that the most frequent metric reaches.
        """
        with self._reader() as db:
            sql = build_query(db, query)
            rows = db.execute(
                f"WITH some AS (SELECT run.n {sql.source} {sql.order} LIMIT ?) "
                "SELECT name, COUNT(*) FROM key CROSS JOIN some CROSS JOIN metric "
                "ON metric.key = key.n AND metric.run = some.n WHERE kind = 'metric' GROUP BY name",
                (*sql.parameters, limit),
            ).fetchall()
            most = max((count for _, count in rows), default=0)
            return [name for name, count in rows if 2 * count >= most]

    def group(self, query: Query, by: Sequence[str], metrics: Sequence[str]) -> list[Group]:
        """Return the runs that fit, grouped by configuration keys, the largest group first.

        Args:
            query: Filters.
            by: Configuration keys, or columns of a run.
            metrics: Whose values are returned.

        Raises:
            ConfigError: If a key is unknown.
        """
        with self._reader() as db:
            sql = build_query(db, query)
            names = [sql.column(db, key) for key in (*by, "seed")]
            values = [sql.metric(db, name) for name in metrics]
            chosen = ", ".join(["run.recorded", *names, *values])
            rows = db.execute(f"SELECT {chosen} {sql.source}", sql.parameters)
            found: dict[tuple[str | None, ...], GroupBuilder] = {}
            for recorded, *rest in rows:
                labels = tuple(rest[: len(by)])
                builder = found.setdefault(labels, GroupBuilder(labels, metrics))
                builder.add(recorded, str(rest[len(by)]), rest[len(by) + 1 :])
        groups = [builder.group() for builder in found.values()]
        return sorted(groups, key=lambda group: (-group.runs, [str(x) for x in group.labels]))


def _key(db: sqlite3.Connection, keys: dict[tuple[str, str], int], kind: str, name: str) -> int:
    name = plain(name)
    if (kind, name) not in keys:
        db.execute("INSERT OR IGNORE INTO key(kind, name) VALUES(?, ?)", (kind, name))
        row = db.execute("SELECT n FROM key WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        keys[kind, name] = int(row[0])
    return keys[kind, name]
