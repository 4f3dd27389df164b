"""Faults set in a command line's own process, at an exact moment: its n-th change on disk.

Changes on disk are the calls that make, sync, rename and remove files, and the lines of histories
(of which half is written). They are counted over the whole life of the process.
"""

import errno
import os
import signal
import time
from pathlib import Path

CALLS = ("fsync", "replace", "rename", "unlink", "link", "mkdir", "rmdir", "truncate")


def set_hook(kind, **options):
    {"at": _at, "clock": _clock, "limit": _limit, "python": _python}[kind](**options)


def _at(action, number=0, only=None, count=None):
    """Do `action` at change `number` (from 1); `only`: count those of files with this name.

    `action` is the name of a signal, or of an errno: that change and all later ones fail then, with
    a `1` behind it that change alone. `count` names a file that receives the number of changes.
    """
    from bayesrule.runs.files import JsonlWriter

    seen = 0

    def act(path, half=None):
        nonlocal seen
        if only is not None and only not in str(path):
            return
        seen += 1
        if count is not None:
            Path(count).write_text(str(seen))  # opens and writes: neither is among CALLS
        if action is None or seen < number:
            return
        if action.startswith("SIG"):
            if seen == number:
                if half is not None and action == "SIGKILL":
                    half()
                os.kill(os.getpid(), getattr(signal, action))
        elif seen == number or not action.endswith("1"):
            code = getattr(errno, action.rstrip("1"))
            raise OSError(code, os.strerror(code))

    def wrap(name):
        original = getattr(os, name)

        def call(path, *rest, **options):
            act(rest[0] if name in ("replace", "rename", "link") else path)
            return original(path, *rest, **options)

        setattr(os, name, call)

    for name in CALLS:
        wrap(name)

    write = JsonlWriter.append

    class File:
        """A file whose next write fails as `act` says."""

        def __init__(self, writer):
            self.file, self.path = writer._file, writer.path

        def write(self, line):
            act(self.path, lambda: self.file.write(line[: len(line) // 2]))
            return self.file.write(line)

        def __getattr__(self, name):
            return getattr(self.file, name)

    def append(self, row):
        if not isinstance(self._file, File):
            self._file = File(self)
        return write(self, row)

    JsonlWriter.append = append


def _clock(start, rate):
    """Let `time.time` run from `start` at `rate` seconds per second."""
    before = time.time()
    real = time.time
    time.time = lambda: start + rate * (real() - before)


def _limit(size):
    """No file may grow beyond `size` bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _python(code):
    """Run `code`, which sets a fault that only one test needs."""
    exec(code, {})
