"""The outer loop of Q-learning: act, keep, learn, follow; resumable at every environment step.

::

    for t = 1..`env_steps`:
        a = random with probability epsilon(t), else argmax_a Q(s, a)
        (s, a, r, s', d) -> replay
        if t > `learning_starts` and t is a multiple of `train_every`: learn from a batch
        if t > `learning_starts` and t is a multiple of `period`:      the lagging network follows

A checkpoint holds everything that decides what comes next: networks and optimiser, the generators
of exploration and of batches, the game (its seed and actions since), counters and curves; the
replay buffer lies beside it in segments. Episodes, exploration and batches have streams of their
own below the run's seed, so that arms of a study meet the same games and the same random actions.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bayesrule.errors import CorruptFile
from bayesrule.runs import CheckpointFolder
from bayesrule.runs.files import set_aside
from bayesrule.seeding import child_seed, generator
from bayesrule.tasks.history import History
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.rl.agent import Agent
from bayesrule.tasks.rl.environments import Environment
from bayesrule.tasks.rl.replay import Replay, ReplaySegments
from bayesrule.tasks.signals import StopRequest

__all__ = ["Curves", "Schedule", "Training", "exploration", "learning_steps"]

PHASE = "train"


@dataclass(frozen=True)
class Schedule:
    """When what happens, in environment steps.

    Attributes:
        env_steps: Length of the training.
        max_updates: Bound on the updates, or None.
        learning_starts: Steps before the first update.
        train_every: Steps per update.
        batch_size: B.
        period: T, steps between moves of the lagging network.
        tau: How far it moves.
        eps_start: First exploration probability.
        eps_end: Last one.
        eps_fraction: Fraction of the training over which it falls.
        window: Length of the windows of the learning curves.
        eval_every: Steps between evaluations, or None.
        log_every: Updates between rows of the history.
    """

    env_steps: int
    max_updates: int | None
    learning_starts: int
    train_every: int
    batch_size: int
    period: int
    tau: float
    eps_start: float
    eps_end: float
    eps_fraction: float
    window: int
    eval_every: int | None
    log_every: int

    def learns(self, step: int) -> bool:
        """Return whether an update follows environment step `step` (from 1)."""
        return step > self.learning_starts and step % self.train_every == 0

    def follows(self, step: int) -> bool:
        """Return whether the lagging network moves after environment step `step`."""
        return step > self.learning_starts and step % self.period == 0


def exploration(schedule: Schedule, step: int) -> float:
    """Return epsilon at environment step `step` (from 1): linear from start to end, then constant.

    ::

        epsilon(t) = start + (end - start) min(1, (t - 1) / (fraction env_steps))
    """
    length = schedule.eps_fraction * schedule.env_steps
    passed = min(1.0, (step - 1) / length) if length > 0 else 1.0
    return schedule.eps_start + (schedule.eps_end - schedule.eps_start) * passed


def learning_steps(schedule: Schedule) -> int:
    """Return the number of updates of a whole training."""
    every = schedule.train_every
    count = max(0, schedule.env_steps // every - schedule.learning_starts // every)
    return count if schedule.max_updates is None else min(count, schedule.max_updates)


@dataclass
class Curves:
    """What a training leaves: finished games, and metrics by environment step.

    Attributes:
        games: Step, return and length of every finished game.
        series: Metric -> (steps, values).
    """

    games: list[tuple[int, float, int]] = field(default_factory=list)
    series: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    def add(self, name: str, step: int, value: float) -> None:
        """Add one value of a metric."""
        steps, values = self.series.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)

    def between(self, first: int, last: int) -> list[float]:
        """Return the returns of the games that ended in steps `first` + 1 to `last`."""
        return [value for step, value, _ in self.games if first < step <= last]

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "games": [list(game) for game in self.games],
            "series": {name: [list(s), list(v)] for name, (s, v) in self.series.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.games = [(int(s), float(r), int(n)) for s, r, n in state["games"]]
        self.series = {name: (list(s), list(v)) for name, (s, v) in state["series"].items()}


@dataclass
class Training:
    """One training, from its last checkpoint if there is one.

    Attributes:
        seed: The run's seed.
        schedule: When what happens.
        agent: Acts and learns.
        environment: The game.
        replay: What is learnt from.
        checkpoints: Where checkpoints go.
        history: Where rows go.
        stop: The request to stop.
        probe: Returns metrics of the agent at the end of each window.
        evaluate: Returns metrics of the policy at each evaluation.
        checkpoint_seconds: Wall time between checkpoints.
    """

    seed: int
    schedule: Schedule
    agent: Agent
    environment: Environment
    replay: Replay
    checkpoints: CheckpointFolder
    history: History
    stop: StopRequest
    probe: Callable[[Replay, int], dict[str, float]]
    evaluate: Callable[[int], dict[str, float]]
    checkpoint_seconds: float = 30.0
    curves: Curves = field(default_factory=Curves)
    step: int = 0
    episodes: int = 0
    age: int = 0
    _loss_sum: float = 0.0
    _loss_count: int = 0

    def __post_init__(self) -> None:
        self._explore = generator(self.seed, "explore")
        self._batches = generator(self.seed, "replay")
        self._segments = ReplaySegments(self.checkpoints.path / "replay")
        self._saved_at: list[int] = [0]
        self._last_save = time.monotonic()

    # ---------------------------------------------------------------------- run

    def run(self, progress: Progress) -> Curves:
        """Train to the end.

        Raises:
            NonFiniteLoss: If the loss is not finite.
            Stopped: If a signal asked for a stop; a checkpoint was written.
        """
        torch.manual_seed(child_seed(self.seed, "global"))  # serves dropout alone
        if not self._restore():
            self.history.rewind(0)
            self._begin()
        progress.first = self.step
        self.agent.online.train()
        while self.step < self.schedule.env_steps and not self._enough():
            self._one_step()
            self._tell(progress)
            if self.stop.signum is not None:
                self._save()
                self.stop.check()
            if time.monotonic() - self._last_save >= self.checkpoint_seconds:
                self._save()
        self._save()
        if self.step % self.schedule.window:  # after the checkpoint: a resumed run does it again
            self._end_window()
        self.agent.online.eval()
        return self.curves

    def _enough(self) -> bool:
        bound = self.schedule.max_updates
        return bound is not None and self.agent.updates >= bound

    def _begin(self) -> None:
        self.environment.begin(child_seed(self.seed, "env", self.episodes) % 2**31)
        self.episodes += 1
        self.age = 0

    def _one_step(self) -> None:
        schedule, step = self.schedule, self.step + 1
        obs = self.environment.obs
        after = self.environment.step(action := self._act(obs, exploration(schedule, step)))
        self.replay.add(obs, action, after.reward, after.obs, after.done, self.age)
        self.age += 1
        self.step = step
        if after.game_return is not None:
            self.curves.games.append((step, after.game_return, after.game_length))
        if schedule.learns(step):
            self._learn()
        if schedule.follows(step):
            self.agent.follow(schedule.tau)
        if step % schedule.window == 0:
            self._end_window()
        if schedule.eval_every is not None and step % schedule.eval_every == 0:
            self._record(self.evaluate(step))
        if after.ends:
            self._begin()

    def _act(self, obs: torch.Tensor, epsilon: float) -> int:
        """Act; both random numbers are drawn at every step, whatever becomes of them."""
        chance = float(torch.rand((), generator=self._explore))
        other = int(torch.randint(self._n_actions, (), generator=self._explore))
        return other if chance < epsilon else self.agent.greedy(obs)

    @property
    def _n_actions(self) -> int:
        return int(self.environment.game.action_space.n)  # type: ignore[attr-defined]

    def _learn(self) -> None:
        batch = self.replay.sample(self.schedule.batch_size, self._batches)
        self._loss_sum += self.agent.learn(batch)
        self._loss_count += 1
        if self.agent.updates % self.schedule.log_every == 0:
            loss = self._loss_sum / self._loss_count
            self._loss_sum, self._loss_count = 0.0, 0
            self.history.append(self._row({f"{PHASE}/loss": loss}))

    # ------------------------------------------------------------------- curves

    def _row(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        return {"phase": PHASE, "step": self.step, "epoch": 0, **metrics}

    def _record(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.curves.add(name, self.step, value)
        self.history.append(self._row(metrics))

    def _end_window(self) -> None:
        """Close a window of the learning curves (the last one may be shorter)."""
        window = self.schedule.window
        ended = self.curves.between((self.step - 1) // window * window, self.step)
        metrics = {f"{PHASE}/return": sum(ended) / len(ended)} if ended else {}
        self._record({**metrics, **self.probe(self.replay, self.step)})

    def _tell(self, progress: Progress) -> None:
        if self.step % 50 == 0:
            recent = [value for _, value, _ in self.curves.games[-10:]]
            shown = {"return": sum(recent) / len(recent) if recent else math.nan}
            progress.update(self.step, {**shown, "updates": self.agent.updates})

    # -------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        """Write a checkpoint: first what is new in the buffer, then the state that refers to it."""
        if self._saved_at[-1] == self.step:
            return
        self._segments.save(self.replay, self._saved_at[-1])
        state = {
            "step": self.step,
            "episodes": self.episodes,
            "age": self.age,
            "loss": [self._loss_sum, self._loss_count],
            "agent": self.agent.state_dict(),
            "game": self.environment.state_dict(),
            "curves": self.curves.state_dict(),
            "explore": self._explore.get_state(),
            "batches": self._batches.get_state(),
            "global": torch.get_rng_state(),
            "history_length": self.history.sync(),
        }
        self.checkpoints.save_object(state, self.step)
        self._saved_at = [*self._saved_at, self.step][-2:]
        self._last_save = time.monotonic()

    def _restore(self) -> bool:
        """Restore the newest whole checkpoint with its buffer; return whether there was one."""
        while (found := self.checkpoints.load_latest_object()) is not None:
            step, state = found
            try:
                self._segments.load(self.replay, step)
            except CorruptFile as problem:
                set_aside(self.checkpoints.file(step))
                warnings.warn(f"{problem}; the checkpoint before it is used", stacklevel=2)
                continue
            self.step, self.episodes, self.age = step, int(state["episodes"]), int(state["age"])
            self._loss_sum, self._loss_count = state["loss"]
            self.agent.load_state_dict(state["agent"])
            self.environment.load_state_dict(state["game"])
            self.curves.load_state_dict(state["curves"])
            self._explore.set_state(state["explore"])
            self._batches.set_state(state["batches"])
            torch.set_rng_state(state["global"])
            self.history.rewind(int(state["history_length"]))
            self._saved_at = [step]
            return True
        self.replay.added = 0
        return False
