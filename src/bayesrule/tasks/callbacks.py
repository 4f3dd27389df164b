"""What happens around a step: history, evaluation, random states, checkpoints, stops.

Order in the trainer matters and is set in `fit`: whatever a checkpoint must contain comes before
`Checkpointing`.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor

from bayesrule.errors import ConfigError
from bayesrule.runs import CheckpointFolder
from bayesrule.tasks.history import History
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.signals import Stopped, StopRequest

__all__ = ["Checkpointing", "EpochEvaluation", "RandomStates", "Recorder", "VerifiedCheckpointIO"]


class VerifiedCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically with a checksum, reads them with ``weights_only=True``."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save under the step number of the checkpoint."""
        self.folder.save_object(_plain(checkpoint), int(checkpoint["global_step"]))

    def load_checkpoint(
        self,
        path: Any,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load the newest whole checkpoint."""
        found = self.folder.load_latest_object(map_location="cpu")
        if found is None:
            raise FileNotFoundError(path)
        return found[1]

    def remove_checkpoint(self, path: Any) -> None:
        """Nothing to do: the folder keeps its newest two."""


def _plain(value: Any) -> Any:
    """Turn containers of Lightning into plain ones, so that nothing but data is stored."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


class RandomStates(pl.Callback):
    """Saves the global random states and restores them just before the first resumed step."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states as tensors, integers and strings."""
        kind, keys, position, has_gauss, gauss = np.random.get_state()
        version, words, normal = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position)],
            "numpy_gauss": [int(has_gauss), float(gauss)],
            "python": [int(version), torch.tensor(words, dtype=torch.int64), normal],
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first step: setting up loaders draws numbers in between."""
        self._restored = state_dict

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Restore, once."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        torch.set_rng_state(state["torch"].cpu())
        kind, keys, position = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, *state["numpy_gauss"]))
        version, words, normal = state["python"]
        random.setstate((version, tuple(words.tolist()), normal))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class Recorder(pl.Callback):
    """Writes the training history and the progress line; both go on exactly after a resume.

    Args:
        history: Receives the rows.
        phase: Name of this training within the run.
        every: Batches between rows.
        progress: Shows the current loss.
    """

    def __init__(self, history: History, phase: str, every: int, progress: Progress) -> None:
        self.history, self.phase, self.every, self.progress = history, phase, every, progress
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss to the epoch's mean; write a row every few batches."""
        loss: Tensor = outputs["loss"].detach()
        self._sum += loss.double().cpu()
        self._count += 1
        step = trainer.global_step
        self.progress.update(step, {"loss": float(loss)})
        if step % self.every == 0:
            lr = float(pl_module.optimizer.param_groups[0]["lr"])
            self._write(trainer, {"train/loss": float(loss), "lr": lr})

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the epoch's mean loss."""
        if self._count:
            self._write(trainer, {"train/epoch_loss": float(self._sum / self._count)})
        self._sum, self._count = torch.zeros((), dtype=torch.float64), 0

    def _write(self, trainer: Any, row: dict[str, float]) -> None:
        where = {"phase": self.phase, "step": trainer.global_step, "epoch": trainer.current_epoch}
        self.history.append({**where, **row})

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's running sums and the length of the history file."""
        return {"sum": self._sum, "count": self._count, "bytes": self.history.sync()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the sums, and cut off rows that were written after the checkpoint."""
        self._sum, self._count = state_dict["sum"], int(state_dict["count"])
        self.history.rewind(int(state_dict["bytes"]))


class EpochEvaluation(pl.Callback):
    """Evaluates every few epochs, and stops when a metric no longer improves.

    Args:
        measure: Returns metrics of the current posterior.
        history: Receives them.
        phase: Name of this training within the run.
        every: Epochs between evaluations.
        patience: Evaluations without improvement before training stops; None: never.
        monitor: The metric, smaller is better.
    """

    def __init__(
        self,
        measure: Callable[[], dict[str, float]],
        history: History,
        phase: str,
        every: int,
        patience: int | None,
        monitor: str,
    ) -> None:
        self.measure, self.history, self.phase, self.every = measure, history, phase, every
        self.patience, self.monitor = patience, monitor
        self._best, self._waited = float("inf"), 0

    def _exhausted(self) -> bool:
        return self.patience is not None and self._waited >= self.patience

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stay stopped when a run that had stopped early is resumed."""
        if self._exhausted():
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure, record, and ask for a stop where patience ran out."""
        if (trainer.current_epoch + 1) % self.every:
            return
        values = self.measure() if trainer.is_global_zero else {}
        where = {"phase": self.phase, "step": trainer.global_step, "epoch": trainer.current_epoch}
        self.history.append({**where, **values})
        if self.patience is None:
            return
        if trainer.is_global_zero and self.monitor not in values:
            raise ConfigError(
                f"callbacks.monitor={self.monitor} is not measured during training: a validation "
                "split (data.val_fraction) gives val/..., else there is test/..."
            )
        value = trainer.strategy.broadcast(values.get(self.monitor), src=0)  # one decision for all
        if value < self._best:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        if self._exhausted():
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and how long ago it was."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue waiting."""
        self._best, self._waited = float(state_dict["best"]), int(state_dict["waited"])


class Checkpointing(pl.Callback):
    """Saves at step boundaries by the clock, and when a stop is asked for.

    The last batch of an epoch is no save point, since the epoch's end would be skipped on resume;
    the epoch's end itself is one.

    Args:
        folder: Where checkpoints go.
        seconds: Wall time between checkpoints.
        stop: The request to stop.
    """

    def __init__(self, folder: CheckpointFolder, seconds: float, stop: StopRequest) -> None:
        self.folder, self.seconds, self.stop = folder, seconds, stop
        self._saved = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the signals back from Lightning, whose handler would end the run unsaved."""
        self.stop.listen_again()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if batch_idx + 1 < trainer.num_training_batches:
            self._perhaps_save(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save if it is time."""
        self._perhaps_save(trainer)

    def _perhaps_save(self, trainer: Any) -> None:
        asked = self.stop.signum is not None
        due = time.monotonic() - self._saved >= self.seconds
        if trainer.world_size > 1:  # one clock for all ranks: saving is collective
            due, asked = trainer.strategy.broadcast((due, asked), src=0)
        if due or asked:
            trainer.save_checkpoint(self.folder.file(trainer.global_step))
            self._saved = time.monotonic()
        if asked:  # a rank may hear of it from rank 0 before its own signal arrives
            self.stop.check()
            raise Stopped(signal.SIGTERM)
