"""Experience replay whose content survives a kill, at the cost of what is new since the last save.

The last N transitions are kept in a ring in memory. On disk they are *segments*: each checkpoint
writes the transitions since the one before it to a file of its own, with a checksum, and never
touches it again; a segment goes when no kept checkpoint needs it. A checkpoint of a full buffer of
a million frames thus costs as much as one of an empty buffer.

Stacked observations (the last k frames of a game) share frames with their neighbours, so only the
newest frame of s and of s' is kept, and stacks are put together again when they are drawn. With
`age` the number of steps since the episode began, frame j = 0..k-1 of the stack at transition t is

    frame[max(t - (k - 1) + j, t - age)]

since an episode starts with its first frame repeated. This is exact, not approximate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesrule.errors import CorruptFile
from bayesrule.runs import load_verified, save_verified
from bayesrule.tasks.rl.losses import Transitions

__all__ = ["Replay", "ReplaySegments"]


class Replay:
    """The last `capacity` transitions.

    Args:
        capacity: N.
        shape: Shape of an observation; with `stack`, its first axis is the stack.
        dtype: Of observations; integers are kept as they are (a pixel is one byte).
        stack: k, or 1 for observations that share nothing.
        device: Where the transitions are kept.
    """

    def __init__(
        self,
        capacity: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        stack: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.capacity, self.stack = capacity, stack
        self.rows = capacity + stack - 1  # the oldest stack reaches back behind the oldest entry
        frame = tuple(shape[1:]) if stack > 1 else tuple(shape)

        def column(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(self.rows, *size, dtype=dtype, device=device)

        self.columns = {
            "obs": column(*frame, dtype=dtype),
            "next_obs": column(*frame, dtype=dtype),
            "action": column(dtype=torch.int64),
            "reward": column(dtype=torch.float32),
            "done": column(dtype=torch.float32),
            "age": column(dtype=torch.int64),
        }
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(
        self, obs: Tensor, action: int, reward: float, next_obs: Tensor, done: bool, age: int
    ) -> None:
        """Keep one transition, instead of the oldest if the buffer is full.

        Args:
            obs: s, of the shape of an observation.
            action: a.
            reward: r.
            next_obs: s'.
            done: Whether s' is a true terminal (not where an episode was only cut off).
            age: Steps since the episode began (0 for its first).
        """
        row, columns = self.added % self.rows, self.columns
        columns["obs"][row] = obs[-1] if self.stack > 1 else obs
        columns["next_obs"][row] = next_obs[-1] if self.stack > 1 else next_obs
        columns["action"][row] = action
        columns["reward"][row] = reward
        columns["done"][row] = float(done)
        columns["age"][row] = age
        self.added += 1

    def sample(self, size: int, generator: torch.Generator) -> Transitions:
        """Draw transitions uniformly with replacement.

        Args:
            size: B.
            generator: The stream (on the CPU).
        """
        first = self.added - len(self)
        return self.at(torch.randint(first, self.added, (size,), generator=generator))

    def at(self, times: Tensor) -> Transitions:
        """Return the transitions that were added as number `times` (counted from 0)."""
        rows = times.to(self.columns["age"].device) % self.rows
        one = {name: column[rows] for name, column in self.columns.items()}
        if self.stack > 1:
            one["obs"], one["next_obs"] = self._stacked(times, one["age"], one["next_obs"])
        return Transitions(**{name: value for name, value in one.items() if name != "age"})

    def _stacked(self, times: Tensor, age: Tensor, newest: Tensor) -> tuple[Tensor, Tensor]:
        """Put the stacks of s and s' together, each (B, k, ...)."""
        times = times.to(age.device)
        back = torch.arange(self.stack - 1, -1, -1, device=age.device)
        index = torch.maximum(times[:, None] - back, (times - age)[:, None]) % self.rows
        obs = self.columns["obs"][index]
        return obs, torch.cat([obs[:, 1:], newest[:, None]], 1)

    def part(self, first: int, last: int) -> dict[str, Tensor]:
        """Return copies of entries `first` to `last` - 1, which must still be there."""
        rows = torch.arange(first, last) % self.rows
        return {name: column[rows].cpu() for name, column in self.columns.items()}

    def put(self, first: int, part: dict[str, Tensor]) -> None:
        """Put entries from `first` on back where they were; `added` becomes the next number."""
        count = len(part["age"])
        rows = torch.arange(first, first + count) % self.rows
        for name, column in self.columns.items():
            column[rows] = part[name].to(column.device)
        self.added = first + count


class ReplaySegments:
    """A replay buffer on disk.

    Args:
        folder: Where the segments are.
    """

    _NAME = re.compile(r"(\d{12})-(\d{12})\.segment")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved = 0

    def _segments(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in self.folder.glob("*.segment"):
            if match := self._NAME.fullmatch(path.name):
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)

    def save(self, replay: Replay, still_needed: int) -> None:
        """Write what was added since the last call.

        Args:
            replay: The buffer.
            still_needed: The `added` of the oldest checkpoint that is kept.
        """
        # more than a whole buffer since the last save: what was overwritten is needed no more
        first, last = max(self.saved, replay.added - replay.rows), replay.added
        if last > first:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{first:012d}-{last:012d}.segment"
            save_verified(replay.part(first, last), path, keep_previous=False)
        self.saved = last
        for _, end, path in self._segments():
            if end <= still_needed - replay.rows:
                path.unlink(missing_ok=True)

    def load(self, replay: Replay, added: int) -> None:
        """Fill a buffer with what it held when `added` transitions had been added.

        Segments that were written later (by a checkpoint that is not used) are dropped.

        Raises:
            CorruptFile: If one that is needed is damaged or missing.
        """
        for first, _, path in self._segments():
            if first >= added:
                path.unlink(missing_ok=True)
        needed = max(0, added - replay.rows)
        at = None
        for first, last, path in self._segments():
            if last <= needed:
                continue
            if (at is None and first > needed) or (at is not None and first != at):
                break
            replay.put(first, self._read(path, last - first))
            at = last
        if (at or 0) != added:
            raise CorruptFile(
                f"{self.folder} holds no whole replay buffer of {added} transitions: a segment is "
                "missing"
            )
        self.saved = replay.added = added

    @staticmethod
    def _read(path: Path, count: int) -> dict[str, Any]:
        part: dict[str, Any] = load_verified(path)
        if len(part["age"]) != count:
            raise CorruptFile(f"{path} holds {len(part['age'])} transitions, not {count}")
        return part
