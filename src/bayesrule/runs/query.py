"""What is asked of the index: filters and an order as data, and the SQL that they become.

    posterior=ivon           a key equals a pattern (`*`, `?`, `[...]`; case does not count)
    status!=done             or does not
    test/nll@mean<0.5        a number compared: < <= > >=
    digits                   any other word: contained in id, study, names or error

A key is a column of a run (`id`, `status`, `paper`, `arm`, ...), a metric, or a dotted
configuration key.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from bayesrule.errors import ConfigError

__all__ = ["COLUMNS", "Filter", "Query", "Sql", "build_query"]

COLUMNS = {
    name: f"run.{name}"
    for name in ("id", "status", "date", "study", "paper", "part", "arm", "wall", "error")
}
"""Columns of a run that may be filtered and sorted by; the only names that enter SQL as text."""

_WORD = re.compile(r"([^=<>!]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """One condition: a key, an operator, a value."""

    key: str
    operator: str
    value: str

    @classmethod
    def parse(cls, word: str) -> Filter | None:
        """Return the filter that a word spells; None if it has no operator."""
        match = _WORD.fullmatch(word)
        return None if match is None else cls(match[1].strip(), match[2], match[3].strip())


@dataclass(frozen=True)
class Query:
    """Which runs, in which order.

    Attributes:
        filters: All must hold.
        words: Each must be contained in what a run is called.
        sort: Column, configuration key or metric.
        descending: The largest, or newest, first. Runs without the key come last.
    """

    filters: tuple[Filter, ...] = ()
    words: tuple[str, ...] = ()
    sort: str = "date"
    descending: bool = True

    @classmethod
    def parse(cls, text: str = "", **options: str | bool) -> Query:
        """Return the query that a line of words spells (quotes hold blanks together)."""
        try:
            words = shlex.split(text)
        except ValueError:
            words = text.split()
        parsed = [(word, Filter.parse(word)) for word in words]
        filters = tuple(found for _, found in parsed if found is not None)
        plain = tuple(word for word, found in parsed if found is None and word)
        return replace(cls(filters, plain), **options)  # type: ignore[arg-type]

    @classmethod
    def of_filters(cls, words: Iterable[str]) -> Query:
        """Return the query of command-line words `KEY=PATTERN`.

        Raises:
            ConfigError: If a word has no operator.
        """
        filters = []
        for word in words:
            found = Filter.parse(word)
            if found is None:
                raise ConfigError(f"filter {word!r} has no '=': write key=pattern")
            filters.append(found)
        return cls(tuple(filters))


@dataclass
class Sql:
    """A query as SQL: tables and conditions, order, and the values bound to its marks."""

    joins: list[str] = field(default_factory=list)
    join_values: list[object] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    values: list[object] = field(default_factory=list)
    order: str = ""

    @property
    def source(self) -> str:
        """FROM and WHERE."""
        where = f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""
        return f"FROM run{''.join(self.joins)}{where}"

    @property
    def parameters(self) -> tuple[object, ...]:
        """The values for the marks of `source`."""
        return (*self.join_values, *self.values)

    def _join(self, table: str, key: int) -> str:
        alias = f"j{len(self.joins)}"
        self.joins.append(f" LEFT JOIN {table} {alias} ON {alias}.key = ? AND {alias}.run = run.n")
        self.join_values.append(key)
        return alias

    def column(self, db: sqlite3.Connection, key: str) -> str:
        """Return the SQL of a run's column or configuration value.

        Raises:
            ConfigError: If no run has it.
        """
        if key in COLUMNS:
            return COLUMNS[key]
        found = _find(db, key, ("config",))
        if found is None:
            if key == "seed":
                return "NULL"
            raise _unknown(db, key)
        return f"{self._join('config', found[1])}.value"

    def metric(self, db: sqlite3.Connection, name: str) -> str:
        """Return the SQL of a metric; NULL if no run has it."""
        found = _find(db, name, ("metric",))
        return "NULL" if found is None else f"{self._join('metric', found[1])}.value"


def _find(
    db: sqlite3.Connection, name: str, kinds: Iterable[str] = ("metric", "config")
) -> tuple[str, int] | None:
    for kind in kinds:
        row = db.execute("SELECT n FROM key WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        if row is not None:
            return kind, int(row[0])
    return None


def _unknown(db: sqlite3.Connection, key: str) -> ConfigError:
    names = [name for (name,) in db.execute("SELECT name FROM key")]
    close = difflib.get_close_matches(key, [*COLUMNS, *names], 3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return ConfigError(f"no run has the key {key!r}{hint}")


def _glob(pattern: str) -> str:
    """Return a shell pattern for SQLite's GLOB, which spells "not in" as `[^...]`."""
    return pattern.lower().replace("[!", "[^")


def _like(text: str) -> str:
    """Return a pattern of LIKE that means "contains `text`", with a backslash as ESCAPE."""
    escaped = text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def build_query(db: sqlite3.Connection, query: Query) -> Sql:
    """Return the SQL of a query.

    Raises:
        ConfigError: If it names a key that no run has, or compares with what is no number.
    """
    sql = Sql()
    empty = db.execute("SELECT 1 FROM run LIMIT 1").fetchone() is None
    for condition in query.filters:
        if not empty:
            _add_filter(db, sql, condition)
    for word in query.words:
        sql.conditions.append("run.words LIKE ? ESCAPE '\\'")
        sql.values.append(_like(word))
    direction = "DESC" if query.descending else "ASC"
    if query.sort in COLUMNS or empty:
        column = COLUMNS.get(query.sort, "run.date")
        first = f"{column} IS NULL" if column != "run.date" else "run.date <> ''"
        sql.order = f"ORDER BY {first}, {column} {direction}, run.id"
        return sql
    found = _find(db, query.sort)
    if found is None:
        raise _unknown(db, query.sort)
    alias = sql._join(*found)
    by = [f"{alias}.value"] if found[0] == "metric" else [f"{alias}.number", f"{alias}.value"]
    ordered = ", ".join(f"{one} {direction}" for one in by)
    sql.order = f"ORDER BY {alias}.value IS NULL, {ordered}, run.id"
    return sql


def _add_filter(db: sqlite3.Connection, sql: Sql, condition: Filter) -> None:
    key, operator, value = condition.key, condition.operator, condition.value
    compared = operator in ("<", "<=", ">", ">=")
    number: object = value
    if compared:
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"{key}{operator}{value}: {value!r} is no number") from None
    if key in COLUMNS:
        text, numeric, inside = f"COALESCE({COLUMNS[key]}, '')", COLUMNS[key], ""
        if key == "date" and compared:
            raise ConfigError("dates are matched by pattern, e.g. date=2026-11-*")
        kind = 0
    else:
        found = _find(db, key)
        if found is None:
            raise _unknown(db, key)
        inside, kind = found
        text, numeric = "f.value", "f.value" if inside == "metric" else "f.number"
    test = f"{numeric} {operator} ?" if compared else f"LOWER(CAST({text} AS TEXT)) GLOB ?"
    if inside:
        test = f"EXISTS (SELECT 1 FROM {inside} f WHERE f.key = ? AND f.run = run.n AND {test})"
        sql.values.append(kind)
    sql.values.append(number if compared else _glob(value))
    sql.conditions.append(f"NOT {test}" if operator == "!=" else test)
