"""The four rooms as a Markov chain under the random policy: exact transitions, and where it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrule.tasks.rl.four_rooms import GOAL, GOAL_REWARD, START, STEP_REWARD, FourRooms

__all__ = ["FourRoomsMDP", "four_rooms_mdp"]


@dataclass(frozen=True)
class FourRoomsMDP:
    """State values of the 104 free cells under the uniformly random policy.

    Attributes:
        chain: P; the goal's row is zero, since an episode ends there.
        rewards: Reward of a step from each cell.
        weights: Where the policy is, with a new episode after each end.
    """

    chain: Tensor
    rewards: Tensor
    weights: Tensor


def four_rooms_mdp(gamma: float) -> FourRoomsMDP:
    """Return the chain of the four rooms.

    Args:
        gamma: Discount, of the exact values that give the free cells.
    """
    game = FourRooms()
    observations, values = game.exact_q(gamma)
    free = observations.argmax(1)
    place = {int(state): index for index, state in enumerate(free)}
    chain = torch.zeros(len(free), len(free), dtype=torch.float64)
    for state, index in place.items():
        for action in range(values.shape[1]):
            if state != GOAL:
                chain[index, place[int(game.after[state, action])]] += 1.0 / values.shape[1]
    rewards = torch.full((len(free),), STEP_REWARD, dtype=torch.float64)
    rewards[place[GOAL]] += GOAL_REWARD
    restarted = chain.clone()
    restarted[place[GOAL], place[START]] = 1.0
    return FourRoomsMDP(chain, rewards, _stationary(restarted))


def _stationary(chain: Tensor) -> Tensor:
    """Return d with d = d P and sum one."""
    n = len(chain)
    system = torch.cat([chain.T - torch.eye(n, dtype=chain.dtype), torch.ones(1, n).double()])
    target = torch.zeros(n + 1, dtype=chain.dtype)
    target[-1] = 1.0
    return torch.linalg.lstsq(system, target[:, None]).solution[:, 0]
