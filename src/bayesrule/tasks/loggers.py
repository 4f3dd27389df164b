"""Loggers beside the run store: Weights & Biases and TensorBoard, each inside the run's folder.

They are told the rows of metrics.jsonl, each with its line number, and at the end the summary
metrics, tables and figures. The run store stays the source of truth: a logger that fails is left
out with a warning, and training goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesrule.config import Config
from bayesrule.errors import ConfigError
from bayesrule.runs import RunFolder
from bayesrule.tasks.history import Sink
from bayesrule.tasks.run_tables import run_figures, run_tables

__all__ = [
    "SWEEP_VARIABLE",
    "TensorBoardSink",
    "WandbSink",
    "make_sinks",
    "run_group",
    "sweep_name",
]

SWEEP_VARIABLE = "BAYESRULE_SWEEP"
"""Environment variable that names the sweep of a job, in whatever process a launcher starts it."""

_PLACE = ("phase", "step", "epoch")
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0


def make_sinks(config: Config, folder: RunFolder) -> list[Sink]:
    """Return the loggers that ``logger=`` asks for beside the run store.

    Raises:
        ConfigError: If a logger's package is not installed.
    """
    name = config["logger"]["name"]
    try:
        if name == "wandb":
            return [WandbSink(config, folder)]
        if name == "tensorboard":
            return [TensorBoardSink(folder)]
    except ConfigError:
        raise
    except Exception as error:  # an outside logger must never keep a run from starting
        warnings.warn(f"logger={name} failed and is left out: {error}", stacklevel=2)
    return []


def sweep_name(overrides: Sequence[str]) -> str:
    """Return the name of a sweep: the same words in any order give the same one."""
    return "sweep-" + hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]


def run_group(config: Config) -> tuple[str | None, str | None]:
    """Return what a run is grouped by, and its part in the group.

    A paper's runs are grouped by study, the arm being their part; jobs of a sweep by the sweep.
    """
    study = config["study"]
    if study:
        group, _, arm = str(study).rpartition("/")
        return group or arm, arm
    return os.environ.get(SWEEP_VARIABLE) or None, None


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row measures, names of later phases with the phase in front."""
    phase = row.get("phase", "train")
    prefix = "" if phase == "train" else f"{phase}/"
    return {
        f"{prefix}{name}": value if isinstance(value, str) else float(value)
        for name, value in row.items()
        if name not in _PLACE
    }


class WandbSink:
    """One wandb run per run id; offline unless told otherwise; a resumed run continues it.

    The step of a row in wandb is its line number in metrics.jsonl; the run's own ``step`` and
    ``epoch`` (which start again in each phase) are logged beside the metrics and are their x axis.
    What was logged before a kill is logged again from metrics.jsonl, so that the newest offline
    folder alone holds the whole run; folders of earlier attempts that were never synced go.

    Online, a server that can't be reached costs at most ``WANDB_INIT_TIMEOUT`` seconds (30) at the
    start and ``WANDB_FINISH_TIMEOUT`` (60) at the end; the run is then logged offline.

    Args:
        config: The run's configuration.
        folder: The run's folder.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._home = folder.path / "wandb"
        self._home.mkdir(parents=True, exist_ok=True)
        self._config, self._folder = config, folder
        self._phases: set[str] = set()
        self._next = 0  # number of the row after the last one
        self._environment = _Environment(self._home)
        import wandb

        self._wandb = wandb
        mode: Any = config["logger"]["mode"] or os.environ.get("WANDB_MODE") or "offline"
        earlier = _offline_folders(self._home)
        try:
            self._run = self._start(mode)
        except Exception as error:
            if mode == "offline":
                self._environment.restore()
                raise
            wandb.teardown()
            reason = " ".join(str(error).split())
            warnings.warn(
                f"wandb is not reachable, so the run is logged offline ({reason}); "
                f"later: wandb sync {self._home}/wandb/offline-run-*",
                stacklevel=3,
            )
            self._run = self._start("offline")
        for path in earlier:
            if not list(path.glob("*.synced")):
                shutil.rmtree(path, ignore_errors=True)

    def _start(self, mode: Any) -> Any:
        config, options = self._config, self._config["logger"]
        group, part = run_group(config)
        run = self._wandb.init(
            project=options["project"],
            entity=options["entity"],
            mode=mode,
            id=self._folder.id,
            resume=None if mode == "offline" else "allow",
            name=f"{config['study']}/{config['seed']}" if config["study"] else self._folder.id,
            group=group,
            job_type=part,
            tags=config["tags"],
            notes=config["note"] or None,
            config=_without_schema(config),
            dir=str(self._home),
            settings=self._wandb.Settings(
                x_disable_stats=True,
                x_disable_meta=True,
                console="off",
                disable_git=True,
                disable_code=True,
                login_timeout=_INIT_SECONDS,
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", _INIT_SECONDS)),
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)),
            ),
        )
        self._known = int(run.step)  # rows that the server has of an earlier attempt
        return run

    def log(self, number: int, row: Mapping[str, Any]) -> None:
        """Log row `number` of the history."""
        phase = str(row.get("phase", "train"))
        prefix = "" if phase == "train" else f"{phase}/"
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")
        if number >= self._known:
            place = {f"{prefix}{name}": row[name] for name in ("step", "epoch") if name in row}
            self._run.log({**_scalars(row), **place}, step=number)
        self._next = number + 1

    def summary(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> None:
        """Put the final metrics in the run's summary; log its tables and figures."""
        self._run.summary.update(dict(metrics))
        tables = {
            f"tables/{name}": self._wandb.Table(columns=list(columns), data=[list(r) for r in rows])
            for name, (columns, rows) in run_tables(metrics, details).items()
        }
        self._run.log(tables, step=self._next)
        with tempfile.TemporaryDirectory() as scratch:
            drawn = run_figures(self._folder, self._config, metrics, details, Path(scratch))
            figures = {f"figures/{n}": self._wandb.Image(str(p)) for n, p in drawn.items()}
            self._run.log(figures, step=self._next)

    def close(self) -> None:
        """Finish the run, and let the service go: only then is the file of a second run whole."""
        try:
            self._run.finish()
        finally:
            self._wandb.teardown()
            self._environment.restore()


class _Environment:
    """Keeps all that wandb writes inside a folder, and puts the variables back afterwards."""

    def __init__(self, home: Path) -> None:
        folders = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")
        wanted = dict.fromkeys(folders, str(home))
        wanted |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        if (Path.home() / ".config" / "wandb").is_dir():  # where `wandb login` keeps its settings
            del wanted["WANDB_CONFIG_DIR"]
        self._before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)

    def restore(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _offline_folders(home: Path) -> list[Path]:
    return sorted(home.glob("wandb/offline-run-*"))


def _without_schema(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_schema(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name != "_schema_"
    }


class TensorBoardSink:
    """Event files in ``<run>/tensorboard``; a resumed run writes them anew."""

    def __init__(self, folder: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "logger=tensorboard needs the extra: pip install 'bayesrule[tensorboard]'"
            ) from error
        home = folder.path / "tensorboard"
        for path in home.glob("events.out.tfevents.*"):  # all rows are told again
            with contextlib.suppress(OSError):
                path.unlink()
        self._writer = SummaryWriter(str(home))

    def log(self, number: int, row: Mapping[str, Any]) -> None:
        """Add one scalar per metric, at the run's own step."""
        for name, value in _scalars(row).items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, int(row["step"]))

    def summary(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> None:
        """Add the final metrics at step 0 of a group of their own."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"final/{name}", value, 0)

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()
