"""A run on a Flower deployment: the SuperLink's ServerApp does the rounds, we wait for it.

::

    this process                    SuperLink                      SuperNodes
    run folder: app, config   ->    flwr run: ServerApp     <->    ClientApp, a process a message
    history, checkpoint       <-    rounds, in the run folder

The app is a folder of a few lines that imports this package, which must be installed wherever a
SuperNode or the SuperLink runs. The ServerApp writes history and checkpoints into the run folder,
so the SuperLink's machine must see it; when the rounds are done, this process goes on from their
last checkpoint. Killed at any instant, the same command finds the run of the SuperLink that still
works on the folder and waits for it, or starts a new one from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import RunFolder, read_json, write_json
from bayesrule.tasks.flower.environment import settings
from bayesrule.tasks.signals import Stopped, StopRequest

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from bayesrule.config import Config
    from bayesrule.tasks.progress import Progress

__all__ = ["check_superlink", "remote_rounds", "serve"]

_APP, _CONNECTION = "bayesrule_app", "here"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOOK_SECONDS = 60.0  # between questions to the SuperLink whether the run is alive
_CALL_SECONDS = 300.0  # until a call of Flower's command line is given up
_ALIVE = ("pending", "starting", "running", "stopping")

_PYPROJECT = """\
[project]
name = "bayesrule-federated"
version = "1.0.0"
description = "Clients and server of one federated run"
license = "Apache-2.0"
dependencies = []

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "{app}.server_app:app"
clientapp = "{app}.client_app:app"

[tool.flwr.app.config]
folder = {folder}
"""


def check_superlink(address: str) -> None:
    """Refuse an address that would be spoken to without encryption over a network.

    Raises:
        ConfigError: Also if it is no address.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or host.strip("[]") not in _LOOPBACK:
        raise ConfigError(
            f"engine.superlink={address}: give host:port on the loopback (127.0.0.1:8000); "
            "connections to other machines need certificates, which are not supported yet"
        )


# ---------------------------------------------------------------- the waiting side


def remote_rounds(config: Config, folder: RunFolder, stop: StopRequest, progress: Progress) -> None:
    """Have the rounds of a run done by a deployment; afterwards they are in the last checkpoint.

    Args:
        config: The run's configuration.
        folder: The run's folder.
        stop: Passed on to the ServerApp, which writes a checkpoint and ends.
        progress: Shows the rounds.

    Raises:
        BayesruleError: If the rounds failed; with the ServerApp's own sentence where there is one.
        Stopped: By a signal.
    """
    place = _Place(folder.path / "flower")
    place.write_app(folder, config["engine"]["superlink"])
    place.stop.unlink(missing_ok=True)
    run_id = _alive(place)
    if run_id is None:
        place.ending.unlink(missing_ok=True)
        run_id = _start(place)
        write_json(place.started, {"flower_run": run_id})
    next_look = time.monotonic() + _LOOK_SECONDS
    while not place.ending.exists():
        if stop.signum is not None and not place.stop.exists():
            write_json(place.stop, {"signum": stop.signum})
        if time.monotonic() > next_look:
            if _alive(place) is None and not place.ending.exists():
                raise BayesruleError(
                    f"the SuperLink's run {run_id} ended without a word; its output: "
                    f"FLWR_HOME={place.home} flwr log {run_id} {_CONNECTION} --show"
                )
            next_look = time.monotonic() + _LOOK_SECONDS
        progress.update(_rounds_done(folder), {})
        time.sleep(0.2)
    found = read_json(place.ending)
    if "signum" in found:
        raise Stopped(int(found["signum"]))
    if "error" in found:
        raise BayesruleError(str(found["error"]))


class _Place:
    """Files of the deployment in the run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home, self.app = path / "home", path / "app"
        self.started, self.stop, self.ending = (
            path / f"{name}.json" for name in ("started", "stop", "ending")
        )

    def write_app(self, folder: RunFolder, superlink: str) -> None:
        """Write the app and the connection that `flwr` is called with."""
        package = self.app / _APP
        package.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)
        here = json.dumps(str(folder.path.resolve()), ensure_ascii=False)  # TOML has no surrogates
        text = _PYPROJECT.format(app=_APP, folder=here)
        (self.app / "pyproject.toml").write_text(text, encoding="utf-8")
        (package / "__init__.py").write_text('"""Clients and server of one federated run."""\n')
        for name in ("server_app", "client_app"):
            text = f"from bayesrule.tasks.flower import {name}\n\napp = {name}.app\n"
            (package / f"{name}.py").write_text(text)
        connection = f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        connection += f'address = "{superlink}"\ninsecure = true\n'
        (self.home / "config.toml").write_text(connection)


def _flwr(place: _Place, *words: str) -> Any:
    """Call Flower's command line and return what it printed as JSON."""
    program = "from flwr.cli.app import app; app()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *words, "--format", "json"],
            capture_output=True,
            text=True,
            env={**os.environ, **settings(place.home)},
            timeout=_CALL_SECONDS,
        )
    except subprocess.TimeoutExpired as late:
        raise BayesruleError(f"flwr {words[0]}: no answer within {late.timeout:g} s") from None
    text = done.stdout.strip()
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        found = {}
    if done.returncode != 0 or not found.get("success", True):
        reason = found.get("error-message") or done.stderr.strip() or text
        raise BayesruleError(f"flwr {words[0]} failed: {' '.join(str(reason).split())}")
    return found


def _start(place: _Place) -> str:
    found = _flwr(place, "run", str(place.app), _CONNECTION)
    return str(found["run-id"])


def _alive(place: _Place) -> str | None:
    """Return the SuperLink's run that works on this folder, if there is one."""
    if not place.started.exists() or place.ending.exists():
        return None
    run_id = str(read_json(place.started)["flower_run"])
    runs = _flwr(place, "ls", _CONNECTION).get("runs", [])
    status = {str(run["run-id"]): str(run["status"]) for run in runs}
    return run_id if status.get(run_id, "").partition(":")[0] in _ALIVE else None


def _rounds_done(folder: RunFolder) -> int:
    """Return the round of the history's last row."""
    path = folder.metrics_path
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = [line for line in file.read().splitlines() if line.endswith(b"}")]
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (ValueError, KeyError):  # the row is longer than what was read
        return 0


# ---------------------------------------------------------------- the ServerApp's side


class _StopFile(StopRequest):
    """A stop that is asked for by a file: the ServerApp is nobody's child."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__()

    @property
    def signum(self) -> int | None:  # type: ignore[override]
        return int(read_json(self._path)["signum"]) if self._path.exists() else None

    @signum.setter
    def signum(self, value: int | None) -> None:
        del value


def serve(grid: Grid, path: str) -> None:
    """Do the rounds of the run in a folder; say in the folder how it ended.

    Args:
        grid: Flower's.
        path: The run's folder.
    """
    folder = RunFolder(Path(path).parent, Path(path).name)
    place = _Place(folder.path / "flower")
    ending: dict[str, Any] = {"error": "the ServerApp was ended from outside, before its rounds"}
    try:
        _rounds(grid, folder, _StopFile(place.stop))
        ending = {}
    except Stopped as stopped:
        ending = {"signum": stopped.signum}
    except Exception as error:
        ending = {"error": str(error) if isinstance(error, BayesruleError) else repr(error)}
        if not isinstance(error, BayesruleError):
            raise
    finally:
        write_json(place.ending, ending)


def _rounds(grid: Grid, folder: RunFolder, stop: StopRequest) -> None:
    import torch

    from bayesrule.tasks.federated import FederatedLearning
    from bayesrule.tasks.flower.grid import GridEngine
    from bayesrule.tasks.history import History
    from bayesrule.tasks.problem import Problem
    from bayesrule.tasks.progress import Progress
    from bayesrule.tasks.task import Context, make_task

    config = folder.config()
    options, task = config["engine"], make_task(config)
    assert isinstance(task, FederatedLearning)
    torch.set_num_threads(config["trainer"]["threads"])
    history = History(folder, enabled=config["logger"]["name"] != "none")
    try:
        problem = Problem.from_context(Context(config, folder, history, stop))
        engine = GridEngine(
            grid, config, task.clients, timeout=options["timeout"], wait=options["wait"], poll=0.5
        )
        task.rounds_of(problem, engine).rounds.run(Progress("rounds", task.rounds, enabled=False))
    finally:
        history.close()
