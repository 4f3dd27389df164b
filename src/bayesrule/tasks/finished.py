"""What a finished phase leaves for a run that is killed in a later one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from torch import nn

from bayesrule.errors import CorruptFile
from bayesrule.models import learnt_state
from bayesrule.optim import PosteriorOptimizer
from bayesrule.runs import load_verified, save_verified

__all__ = ["FinishedPhase"]


class FinishedPhase:
    """Model, optimiser and collected moments at the end of a phase, and the history's length.

    Args:
        path: The file.
        model: Saved from, and restored into.
        optimizer: Likewise.
        callbacks: The method's own callbacks (SWAG's moments), likewise.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: PosteriorOptimizer,
        callbacks: Sequence[pl.Callback],
    ) -> None:
        self.path, self.model, self.optimizer, self.callbacks = path, model, optimizer, callbacks
        self.history_length = 0

    def save(self, history_length: int) -> None:
        """Write the file, atomically, and drop the checkpoints that led here."""
        state = {
            "model": learnt_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "history_length": history_length,
        }
        save_verified(state, self.path, keep_previous=False)
        for older in self.path.parent.glob("step-*.ckpt"):
            older.unlink(missing_ok=True)

    def restore(self) -> bool:
        """Restore the phase's end if it was reached; a damaged file counts as not reached."""
        try:
            state = load_verified(self.path)
        except FileNotFoundError:
            return False
        except CorruptFile as problem:
            warnings.warn(f"{problem}; this phase is trained again", stacklevel=2)
            return False
        self.model.load_state_dict(state["model"], strict=not getattr(self.model, "fixed", ()))
        self.optimizer.load_state_dict(state["optimizer"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        self.history_length = int(state["history_length"])
        return True
