"""Command lines forked from one warm process: the real `main`, without the seconds of its imports.

`python forked.py` is the warm process. It reads one JSON request per line: a command line, which it
forks off and whose process id it answers, or a process id to wait for, whose exit code it answers.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from command_line import CommandLine


class WarmProcess:
    """The client's side of one warm process."""

    def __init__(self, environment):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.scratch = Path(tempfile.mkdtemp(prefix="torture-"))
        self.alive = set()
        self.number = 0

    def ask(self, timeout=200, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError(f"no answer within {timeout} s to {request}")
        return json.loads(self.process.stdout.readline())

    def close(self):
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait(timeout=20)
        shutil.rmtree(self.scratch)


class ForkedProcess:
    """What `subprocess.Popen` offers, of a command line that a warm process forked off."""

    def __init__(self, warm, request):
        self.warm = warm
        warm.number += 1
        self.out = warm.scratch / f"{warm.number}.out"
        self.err = warm.scratch / f"{warm.number}.err"
        self.pid = warm.ask(out=str(self.out), err=str(self.err), **request)
        self.returncode = None
        warm.alive.add(self.pid)

    def send_signal(self, signum):
        os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def poll(self):
        if self.returncode is None:
            self.returncode = self.warm.ask(wait=self.pid, block=False)
        return self.returncode

    def communicate(self, timeout=200):
        if self.returncode is None:
            try:
                self.returncode = self.warm.ask(timeout, wait=self.pid, block=True)
            except TimeoutError:
                self.kill()
                self.returncode = json.loads(self.warm.process.stdout.readline())
                self.communicate()
                raise
        self.warm.alive.discard(self.pid)
        text = [path.read_text(errors="replace") for path in (self.out, self.err)]
        self.out.unlink()
        self.err.unlink()
        return text

    def wait(self, timeout=200):
        self.communicate(timeout)
        return self.returncode


class ForkedCommandLine(CommandLine):
    """`CommandLine` on a warm process; a hook (see hooks.py) can be set in the child first."""

    def __init__(self, warm, runs):
        super().__init__(runs)
        self.warm = warm
        self.environment["BAYESRULE_CACHE"] = str(warm.scratch / "cache")

    def start(self, *words, hook=None, cwd=None):
        return ForkedProcess(
            self.warm,
            {
                "words": words,
                "environment": self.environment,
                "hook": hook,
                "cwd": str(cwd or Path.cwd()),
            },
        )

    def __call__(self, *words, timeout=200, **options):
        process = self.start(*words, **options)
        out, err = process.communicate(timeout)
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def _end_with_parent():
    """End when the warm process does, and with an error rather than with all memory."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))


def _child(request):
    """Become the command line: files, environment, hook, then `main`."""
    _end_with_parent()
    for descriptor, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT),
        (2, request["err"], os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(name, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = ["bayesrule", *request["words"]]
    if request["hook"]:
        import hooks

        hooks.set_hook(**request["hook"])
    _leave(_main(request["words"]))


def _main(words):
    from bayesrule.cli.main import main

    try:
        return main(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1


def _leave(code):
    """Leave as the interpreter would, but free nothing: the warm process has too many objects."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve():
    import importlib

    for name in (
        *("cli.train", "cli.sweep", "cli.reproduce", "cli.runs", "cli.merge", "cli.evaluate"),
        *("cli.claims", "cli.papers", "tasks.execute", "tasks.supervised", "tasks.problem"),
        *("tasks.task", "tasks.study", "tasks.availability", "tasks.reevaluate", "report"),
        *("tasks.continual", "tasks.inference", "merging.merge_folders", "merging.engine"),
        *("models.mlp", "models.cnn", "models.resnet"),
    ):
        importlib.import_module(f"bayesrule.{name}")
    for name in ("hydra._internal.hydra", "sklearn.datasets", "matplotlib.pyplot"):
        importlib.import_module(name)
    importlib.import_module("safetensors.torch")
    importlib.import_module("bayesrule.config").compose(["posterior=ivon"])  # Hydra's plugins
    gc.collect()
    gc.freeze()  # children leave these objects, and with them the memory, alone
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            found, status = os.waitpid(request["wait"], 0 if request["block"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if answer == 0:
                _child(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
