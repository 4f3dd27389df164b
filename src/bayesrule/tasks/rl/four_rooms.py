"""The four rooms: an 11 x 11 grid with walls, small enough that Q* is known exactly.

State 11 row + column; walls on row 5 and column 5 with doors at (5, 2), (5, 8), (2, 5) and (8, 5).
Four actions move up, down, left, right; a move into a wall or off the grid leaves the state. The
start is the bottom right corner. Every step costs 0.01, and any action taken in the top left corner
earns 1 and ends the episode, hence

    Q*(goal, a) = 0.99,      Q*(s, a) = -0.01 + gamma max_a' Q*(s', a')

Observations are one-hot. An episode is cut off after 121 steps, which is not a terminal state.
Source: Piche et al. (arXiv 2210.12282) and their released toy task, whose further observation is
constant zero and is left out here.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

__all__ = ["GOAL", "GOAL_REWARD", "START", "STEP_REWARD", "FourRooms"]

SIZE = 11
STATES = SIZE * SIZE
GOAL, START = 0, STATES - 1
STEP_REWARD, GOAL_REWARD = -0.01, 1.0
DOORS = {(5, 2), (5, 8), (2, 5), (8, 5)}
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def _is_wall(row: int, column: int) -> bool:
    return (row == 5 or column == 5) and (row, column) not in DOORS


def _successors() -> np.ndarray:
    """Return the next state of every state and action, shape (states, actions)."""
    after = np.empty((STATES, len(MOVES)), dtype=np.int64)
    for state in range(STATES):
        row, column = divmod(state, SIZE)
        for action, (down, right) in enumerate(MOVES):
            there = row + down, column + right
            inside = all(0 <= place < SIZE for place in there)
            free = inside and not _is_wall(*there)
            after[state, action] = there[0] * SIZE + there[1] if free else state
    return after


class FourRooms(gymnasium.Env[np.ndarray, Any]):
    """The grid world as a gymnasium environment; it is deterministic."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (STATES,), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.after = _successors()
        self.state = START
        self.steps = 0

    def _observation(self) -> np.ndarray:
        seen = np.zeros(STATES, dtype=np.uint8)
        seen[self.state] = 1
        return seen

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in the bottom right corner."""
        super().reset(seed=seed)
        self.state, self.steps = START, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move; the episode ends after an action in the goal and is cut off after 121 steps."""
        self.steps += 1
        terminated = self.state == GOAL
        reward = STEP_REWARD + (GOAL_REWARD if terminated else 0.0)
        if not terminated:
            self.state = int(self.after[self.state, int(action)])
        return self._observation(), reward, terminated, self.steps >= STATES, {}

    def exact_q(self, gamma: float, tolerance: float = 1e-12) -> tuple[Tensor, Tensor]:
        """Return the observations of all states but walls, and Q* there, by value iteration.

        Args:
            gamma: Discount, below 1.
            tolerance: Largest change of the last sweep.

        Returns:
            Observations (S, 121) as bytes and Q* (S, 4) in double precision.
        """
        q = np.zeros((STATES, len(MOVES)))
        while True:
            new = STEP_REWARD + gamma * q.max(1)[self.after]
            new[GOAL] = STEP_REWARD + GOAL_REWARD
            change = np.abs(new - q).max()
            q = new
            if change <= tolerance:
                break
        free = [state for state in range(STATES) if not _is_wall(*divmod(state, SIZE))]
        return torch.eye(STATES, dtype=torch.uint8)[free], torch.from_numpy(q[free])
