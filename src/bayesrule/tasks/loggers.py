"""Loggers beside the run store: Weights & Biases and TensorBoard, each inside the run's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bayesrule.config import Config
from bayesrule.errors import ConfigError
from bayesrule.runs import RunFolder
from bayesrule.tasks.history import Sink

__all__ = ["TensorBoardSink", "WandbSink", "make_sinks"]


def make_sinks(config: Config, folder: RunFolder) -> list[Sink]:
    """Return the loggers that ``logger=`` asks for beside the run store."""
    name = config["logger"]["name"]
    if name == "wandb":
        return [WandbSink(config, folder)]
    if name == "tensorboard":
        return [TensorBoardSink(folder)]
    return []


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    skipped = ("phase", "step", "epoch")
    prefix = "" if row.get("phase", "train") == "train" else f"{row['phase']}/"
    return {f"{prefix}{k}": float(v) for k, v in row.items() if k not in skipped}


class WandbSink:
    """One wandb run per run id; offline unless told otherwise; a resumed run continues it."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        home = folder.path / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            os.environ[variable] = str(home)
        os.environ.update(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
        import wandb

        options = config["logger"]
        self._run = wandb.init(
            project=options["project"],
            entity=options["entity"],
            mode=options["mode"],
            id=folder.id,
            resume="allow",
            name=config["study"] or folder.id,
            group=config["study"],
            tags=config["tags"],
            config=config,
            dir=str(home),
            settings=wandb.Settings(
                x_disable_stats=True,
                x_disable_meta=True,
                console="off",
                disable_git=True,
                disable_code=True,
            ),
        )

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row at its step."""
        self._run.log(_numbers(row), step=int(row["step"]))

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Put the final metrics in the run's summary."""
        self._run.summary.update(dict(metrics))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorBoardSink:
    """Event files in ``<run>/tensorboard``."""

    def __init__(self, folder: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "logger=tensorboard needs the extra: pip install 'bayesrule[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, row: Mapping[str, Any]) -> None:
        """Add one scalar per metric."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Add the final metrics at step 0 of a group of their own."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"final/{name}", value, 0)

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()
