"""The history of a run: rows to metrics.jsonl and to whoever else is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from bayesrule.runs import JsonlWriter, RunFolder, read_jsonl

__all__ = ["History", "Sink"]


class Sink(Protocol):
    """A logger beside the run store (wandb, TensorBoard)."""

    def log(self, number: int, row: Mapping[str, Any]) -> None:
        """Take row `number` (from 0): ``phase``, ``step``, ``epoch`` and metrics."""

    def summary(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> None:
        """Take the final metrics and the record's further data."""

    def close(self) -> None:
        """Finish; called in a ``finally``."""


class History:
    """Rows of one run, in the order of steps; a resumed run continues as if never stopped.

    Other loggers are told the rows of the file in order, each once per process: those that an
    earlier process wrote come first, so that they too can continue as if never stopped.

    Args:
        folder: The run's folder; None on ranks that write nothing.
        sinks: Other loggers; their failures are warned of once and never stop training.
        enabled: Whether rows are kept (``logger=none`` keeps the record only).
        watch: Called with each row; unlike that of a sink its failure ends the run.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        sinks: list[Sink] | None = None,
        enabled: bool = True,
        watch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._path = folder.metrics_path if folder is not None and enabled else None
        self._writer: JsonlWriter | None = None
        self._sinks = list(sinks or [])
        self._opened = list(self._sinks)  # also those left out since: all are finished
        self._told = 0  # rows that the other loggers know
        self._rows: int | None = None  # rows of the file, where somebody else is told
        self._watch = watch

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        self._write(row)
        if self._watch is not None:
            self._watch(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._path is None:
            self._tell_row(row)
            return
        writer = self._open()
        if self._sinks:
            self._catch_up()
        writer.append(row)
        if self._rows is not None:
            self._rows += 1
            if self._rows > self._told:  # else a row written again, which is the same
                self._tell_row(row)

    def summary(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> None:
        """Tell the other loggers the final metrics and further data (the record has them)."""
        if self._sinks and self._path is not None and self._path.exists():
            self._catch_up()
        self._tell(lambda sink: sink.summary(metrics, details))

    def sync(self) -> int:
        """Make all rows durable and return the file's length."""
        return self._open().sync() if self._path is not None else 0

    def rewind(self, n_bytes: int) -> None:
        """Cut the file back to where a checkpoint was made."""
        if self._path is not None:
            if self._writer is not None:
                self._writer.close()
            self._writer = JsonlWriter(self._path, resume_at=n_bytes)
            self._rows = None

    def close(self) -> None:
        """Close the file and finish the other loggers."""
        if self._writer is not None:
            self._writer.close()
        for sink in self._opened:
            try:
                sink.close()
            except Exception as error:
                if sink in self._sinks:
                    warnings.warn(f"{type(sink).__name__} did not finish: {error}", stacklevel=2)
        self._sinks, self._opened = [], []

    def _open(self) -> JsonlWriter:
        if self._writer is None:
            assert self._path is not None
            # without a checkpoint to continue from, rows of an earlier attempt do not count
            self._writer = JsonlWriter(self._path, resume_at=0 if self._path.exists() else None)
        return self._writer

    def _catch_up(self) -> None:
        """Tell the other loggers the rows of the file that this process did not write."""
        if self._rows is None:
            assert self._path is not None
            rows = read_jsonl(self._path)
            self._rows = len(rows)
            for row in rows[self._told :]:
                self._tell_row(row)

    def _tell_row(self, row: Mapping[str, Any]) -> None:
        self._tell(lambda sink: sink.log(self._told, row))
        self._told += 1

    def _tell(self, what: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                what(sink)
            except Exception as error:  # an outside logger must never end a run
                self._sinks.remove(sink)
                text = f"{type(sink).__name__} failed and is left out: {error}"
                warnings.warn(text, stacklevel=3)
