"""Progress of long work: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Steps done, time left and the current metric of one phase of work.

    In a terminal the line is redrawn a few times a second; elsewhere (a log file, a CI) a plain
    line is printed at most every `every` seconds. Entering prints nothing, so short work is silent.

    Args:
        title: What is being done.
        total: Number of steps.
        done: Steps already done (a resumed run).
        enabled: Whether to print at all.
        stream: Where to print; standard error by default.
        every: Seconds between lines where the stream is no terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
        every: float = 15.0,
    ) -> None:
        self.title, self.total, self.first = title, max(1, total), done
        self.stream = stream or sys.stderr
        self.enabled = enabled
        self.terminal = self.stream.isatty()
        self.every = 0.2 if self.terminal else every
        self._start = self._shown = time.monotonic()
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def update(self, done: int, values: Mapping[str, float]) -> None:
        """Say that `done` steps are done and show a few current values."""
        now = time.monotonic()
        if not self.enabled or now - self._shown < self.every:
            return
        self._shown = now
        rate = (done - self.first) / max(now - self._start, 1e-9)
        left = (self.total - done) / rate if rate > 0 else float("nan")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = f"{self.title}  {done}/{self.total} steps ({done / self.total:.0%})"
        text += f"  {rate:.3g} steps/s  {_clock(left)} left  {shown}"
        if self.terminal:
            self.stream.write(f"\r\x1b[2K{text[:200]}")
            self._drawn = True
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()


def _clock(seconds: float) -> str:
    if seconds != seconds:  # not a number: nothing was measured yet
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
