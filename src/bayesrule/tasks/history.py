"""The history of a run: rows to metrics.jsonl and to whoever else is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from bayesrule.runs import JsonlWriter, RunFolder

__all__ = ["History", "Sink"]


class Sink(Protocol):
    """A logger beside the run store (wandb, TensorBoard)."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row: ``phase``, ``step``, ``epoch`` and metrics."""

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Take the final metrics."""

    def close(self) -> None:
        """Finish; called in a ``finally``."""


class History:
    """Rows of one run, in the order of steps; a resumed run continues as if never stopped.

    Args:
        folder: The run's folder; None on ranks that write nothing.
        sinks: Other loggers; their failures are warned of once and never stop training.
        enabled: Whether rows are kept (``logger=none`` keeps the record only).
    """

    def __init__(
        self, folder: RunFolder | None, sinks: list[Sink] | None = None, enabled: bool = True
    ) -> None:
        self._path = folder.metrics_path if folder is not None and enabled else None
        self._writer: JsonlWriter | None = None
        self._sinks = list(sinks or [])

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        if self._path is not None:
            self._open().append(row)
        self._tell(lambda sink: sink.log(row))

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Tell the other loggers the final metrics (the record has them)."""
        self._tell(lambda sink: sink.summary(metrics))

    def sync(self) -> int:
        """Make all rows durable and return the file's length."""
        return self._open().sync() if self._path is not None else 0

    def rewind(self, n_bytes: int) -> None:
        """Cut the file back to where a checkpoint was made."""
        if self._path is not None:
            if self._writer is not None:
                self._writer.close()
            self._writer = JsonlWriter(self._path, resume_at=n_bytes)

    def close(self) -> None:
        """Close the file and finish the other loggers."""
        if self._writer is not None:
            self._writer.close()
        self._tell(lambda sink: sink.close())

    def _open(self) -> JsonlWriter:
        if self._writer is None:
            assert self._path is not None
            # without a checkpoint to continue from, rows of an earlier attempt do not count
            self._writer = JsonlWriter(self._path, resume_at=0 if self._path.exists() else None)
        return self._writer

    def _tell(self, what: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                what(sink)
            except Exception as error:  # an outside logger must never end a run
                self._sinks.remove(sink)
                text = f"{type(sink).__name__} failed and is left out: {error}"
                warnings.warn(text, stacklevel=3)
