"""Ctrl-C and SIGTERM as requests: the run stops at the next step boundary, after a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopRequest", "Stopped", "stop_request"]


class Stopped(Exception):
    """The run was stopped by a signal after a checkpoint was written."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command resumes it")


class StopRequest:
    """Whether a signal asked for a stop, and which."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._listening = False

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for; called where everything is on disk."""
        if self.signum is not None:
            raise Stopped(self.signum)

    def listen(self) -> dict[int, Any]:
        """Handle SIGINT and SIGTERM from now on (main thread only); return the handlers before."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        self._listening = True
        return {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def listen_again(self) -> None:
        """Take the signals back from a library that put its own handlers in place of ours.

        Lightning's ends the process with exit code 0 and without a checkpoint, if the signal comes
        at the end of an epoch; Ray's ends it at once. Nothing for a request that never listened (a
        dry run).
        """
        if self._listening:
            self.listen()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the boundary
        self.signum = signum


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while the body runs (main thread only)."""
    request = StopRequest()
    before = request.listen()
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
