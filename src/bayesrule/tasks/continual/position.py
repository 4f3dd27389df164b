"""Where a stream stands: everything that a run killed between two experiences goes on from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bayesrule.errors import CorruptFile
from bayesrule.runs import load_verified, save_verified

__all__ = ["Position"]


@dataclass
class Position:
    """State after some experiences.

    Attributes:
        done: Number of finished experiences.
        model: State of the network.
        optimizer: State of the last experience's optimiser.
        correction: State of the correction.
        scores: State of the scores.
        statistics: Batch-normalisation statistics of each finished task, where they are kept.
        history_length: Bytes of the history.
    """

    done: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    correction: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    statistics: list[dict[str, Tensor]] = field(default_factory=list)
    history_length: int = 0

    def save(self, path: Path) -> None:
        """Write atomically; the position before is kept beside it."""
        save_verified(dict(vars(self)), path)

    @classmethod
    def load(cls, path: Path) -> Position:
        """Return the last whole position; the beginning where there is none."""
        try:
            return cls(**load_verified(path))
        except FileNotFoundError:
            return cls()
        except CorruptFile as problem:
            warnings.warn(f"{problem}; the stream begins again", stacklevel=2)
            return cls()
