"""Environments: a gymnasium id and its preprocessing as one object that can be saved and restored.

A gymnasium environment cannot be pickled safely, but it is a function of its seed and of the
actions since: every game begins with ``reset(seed=...)``, and what was done since then is kept.
Restoring replays it, and checks that the observation is the same bit by bit.

Atari preprocessing is that of DQN: up to 30 no-ops at the start, frames skipped by 4 and pooled
over two, 84 x 84 grey (all gymnasium's), a lost life ends an episode but not the game, fire at the
start where the game needs it, rewards clipped to their sign, the last 4 frames stacked. Returns are
those of whole games and unclipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesrule.errors import BayesruleError, DataUnavailable

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Environment", "Step", "check_environment", "environment_source", "make_environment"]

_NEXT_LIFE = -1  # in a journal: an episode that began without a new game
_NEEDS = {
    "gymnasium": ("gymnasium", "pip install 'bayesrule[rl]'"),
    "ale_py": ("the Arcade Learning Environment", "pip install ale-py opencv-python-headless"),
    "cv2": ("OpenCV, to resize frames", "pip install opencv-python-headless"),
}


@dataclass(frozen=True)
class Step:
    """What one step gives.

    Attributes:
        obs: The observation after it; of a finished episode the true final one.
        reward: The reward that is learnt from (clipped, where asked for).
        done: Whether the state after it is terminal.
        ends: Whether the episode is over: terminal, or cut off.
        game_return: Undiscounted, unclipped return of the whole game, if it is over.
        game_length: Its number of steps, likewise.
    """

    obs: Tensor
    reward: float
    done: bool
    ends: bool
    game_return: float | None = None
    game_length: int = 0


class Environment:
    """A game, episode after episode.

    Args:
        game: The gymnasium environment, which gives single frames where `stack` is above 1.
        stack: Frames per observation.
        episodic_life: Whether a lost life ends the episode (Atari, training only).
        fire: Whether a game begins by the actions 1 and 2 (Atari games that wait for fire).
        clip_reward: Whether the reward becomes its sign.
    """

    def __init__(
        self,
        game: gymnasium.Env[Any, Any],
        *,
        stack: int = 1,
        episodic_life: bool = False,
        fire: bool = False,
        clip_reward: bool = False,
    ) -> None:
        self.game, self.stack = game, stack
        self.episodic_life, self.fire, self.clip_reward = episodic_life, fire, clip_reward
        self.over = True
        self.obs = torch.empty(0)
        self._seed = 0
        self._journal: list[int] = []
        self._return, self._length, self._lives = 0.0, 0, 0

    # ------------------------------------------------------------------ episodes

    def begin(self, seed: int) -> Tensor:
        """Begin an episode: a new game, or the next life of the one that goes on.

        Args:
            seed: Seed of a new game.
        """
        if self.over:
            self._seed, self._journal = seed, []
            self._return, self._length = 0.0, 0
            self._first(self._fired(self.game.reset(seed=seed)[0], seed))
        else:
            self._journal.append(_NEXT_LIFE)
            frame, reward, terminated, truncated, _ = self.game.step(0)
            self._count(reward)
            if terminated or truncated:  # as rare as a life that lasts no step
                frame = self.game.reset(seed=self._seed)[0]
            self._first(self._fired(frame, self._seed))
        self.over = False
        return self.obs

    def step(self, action: int) -> Step:
        """Take one action of an episode that has begun."""
        self._journal.append(action)
        frame, reward, terminated, truncated, _ = self.game.step(action)
        self._count(reward)
        seen = _tensor(frame)
        self.obs = torch.cat([self.obs[1:], seen[None]]) if self.stack > 1 else seen
        self.over = bool(terminated or truncated)
        lives = self._remaining()
        done = bool(terminated) or (self.episodic_life and 0 < lives < self._lives)
        self._lives = lives
        reward = float(reward)
        if self.clip_reward:
            reward = float((reward > 0) - (reward < 0))
        finished = (self._return, self._length) if self.over else (None, 0)
        return Step(self.obs, reward, done, done or self.over, *finished)

    def _first(self, frame: Any) -> None:
        seen = _tensor(frame)
        self.obs = seen.expand(self.stack, *seen.shape).clone() if self.stack > 1 else seen
        self._lives = self._remaining()

    def _fired(self, frame: Any, seed: int) -> Any:
        for action in (1, 2) if self.fire else ():
            frame, reward, terminated, truncated, _ = self.game.step(action)
            self._count(reward)
            if terminated or truncated:
                frame = self.game.reset(seed=seed)[0]
        return frame

    def _count(self, reward: Any) -> None:
        self._return += float(reward)
        self._length += 1

    def _remaining(self) -> int:
        return int(self.game.unwrapped.ale.lives()) if self.episodic_life else 0  # type: ignore[attr-defined]

    # --------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return what brings the game back: its seed and everything done since."""
        return {
            "seed": self._seed,
            "over": self.over,
            "journal": torch.tensor(self._journal, dtype=torch.int64),
            "obs": self.obs.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the game back to where `state_dict` was called.

        Raises:
            BayesruleError: If it does not come back to the same observation.
        """
        self.over = True
        self.begin(int(state["seed"]))
        for action in state["journal"].tolist():
            if action == _NEXT_LIFE:
                self.begin(self._seed)
            else:
                self.step(action)
        if self.over != bool(state["over"]) or not torch.equal(self.obs, state["obs"]):
            raise BayesruleError(
                "the environment did not come back to the state it was in when the checkpoint was "
                "written: another version of it is installed, or it is not a function of its seed"
            )

    def exact_q(self, gamma: float) -> tuple[Tensor, Tensor] | None:
        """Return states and their optimal values Q*, where they are known."""
        known = getattr(self.game.unwrapped, "exact_q", None)
        return None if known is None else known(gamma)

    def close(self) -> None:
        """Free what the game holds."""
        self.game.close()


def _tensor(frame: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(frame))


# ------------------------------------------------------------------------------ making


def make_environment(cfg: Mapping[str, Any], *, training: bool) -> Environment:
    """Return the environment of a configuration.

    Args:
        cfg: An environment's options (``conf/env``).
        training: Whether rewards are clipped and lost lives end episodes, where asked for.

    Raises:
        DataUnavailable: If a package is missing; the message says which, and how it is installed.
        BayesruleError: If the environment is not what the configuration declares.
    """
    check_environment(cfg)
    atari = cfg["preprocessing"] == "atari"
    game = _atari(cfg) if atari else _plain(cfg)
    made = Environment(
        game,
        stack=int(cfg["stack"]),
        episodic_life=training and atari and cfg["episodic_life"],
        fire=atari and cfg["fire"] and _waits_for_fire(game),
        clip_reward=training and atari and cfg["clip_reward"],
    )
    _check_spaces(cfg, game)
    return made


def _plain(cfg: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    if cfg["id"] is None:
        from bayesrule.tasks.rl.four_rooms import FourRooms

        return FourRooms()
    import gymnasium

    return gymnasium.make(cfg["id"], disable_env_checker=True)


def _atari(cfg: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    import ale_py
    import gymnasium
    from gymnasium.wrappers import AtariPreprocessing

    gymnasium.register_envs(ale_py)
    game = gymnasium.make(
        cfg["id"], frameskip=1, repeat_action_probability=0.0, disable_env_checker=True
    )
    return AtariPreprocessing(
        game,
        noop_max=cfg["noop_max"],
        frame_skip=cfg["frame_skip"],
        screen_size=cfg["shape"][-1],
    )


def _waits_for_fire(game: gymnasium.Env[Any, Any]) -> bool:
    meanings = game.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    return len(meanings) >= 3 and meanings[1] == "FIRE"


def _check_spaces(cfg: Mapping[str, Any], game: gymnasium.Env[Any, Any]) -> None:
    n_actions = getattr(game.action_space, "n", None)
    shape = tuple(game.observation_space.shape or ())
    shape = (int(cfg["stack"]), *shape) if cfg["stack"] > 1 else shape
    if n_actions != cfg["n_actions"] or list(shape) != list(cfg["shape"]):
        raise BayesruleError(
            f"env={cfg['name']} declares {cfg['n_actions']} actions and observations of shape "
            f"{tuple(cfg['shape'])}, but {cfg['id']} has {n_actions} and {shape}"
        )


# -------------------------------------------------------------------------- what is there


def _missing(cfg: Mapping[str, Any]) -> str | None:
    atari = cfg["preprocessing"] == "atari"
    for module in ("gymnasium", *(("ale_py", "cv2") if atari else ())):
        if util.find_spec(module) is None:
            return module
    return None


def check_environment(cfg: Mapping[str, Any]) -> None:
    """Check that the packages of an environment are installed.

    Raises:
        DataUnavailable: If one is not; the message says how to install it.
    """
    missing = _missing(cfg)
    if missing is not None:
        name, how = _NEEDS[missing]
        raise DataUnavailable(f"env={cfg['name']} needs {name}, which is not installed: {how}")


def environment_source(cfg: Mapping[str, Any]) -> tuple[bool, str]:
    """Return whether an environment can be made here, and where it is from or what it lacks."""
    missing = _missing(cfg)
    if missing is not None:
        return False, f"{cfg['id'] or 'made by code'}: {_NEEDS[missing][1]}"
    return True, "made by code" if cfg["id"] is None else f"{cfg['id']} of gymnasium"
