"""Requests to stop: the run stops at the next step boundary, after a checkpoint.

Ctrl-C and SIGTERM ask for it, and so does a search that has seen enough of a run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Pruned", "StopRequest", "Stopped", "stop_request"]

_PRUNED = 0  # no signal has this number


class Stopped(Exception):
    """The run was stopped by a signal after a checkpoint was written."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command resumes it")


class Pruned(Stopped):
    """The run was stopped after a checkpoint because others do better; it can be continued."""

    def __init__(self, reason: str) -> None:
        Exception.__init__(self, f"{reason}; the same configuration resumes it")
        self.signum = _PRUNED
        self.exit_code = 1


class StopRequest:
    """Whether a stop was asked for: by a signal, and which, or by a search.

    Attributes:
        signum: The signal's number, 0 for a search's request; None: no stop was asked for.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._reason = ""
        self._listening = False

    def prune(self, reason: str) -> None:
        """Ask for a stop because the run is not worth its further steps."""
        if self.signum is None:
            self.signum, self._reason = _PRUNED, reason

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for; called where everything is on disk."""
        if self.signum == _PRUNED:
            raise Pruned(self._reason)
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
        if self.signum and signum == signal.SIGINT:
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
