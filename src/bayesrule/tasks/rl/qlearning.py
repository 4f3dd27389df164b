"""Q-learning from an environment: DQN, and what may stand in place of its target network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bayesrule.config import Config
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.models import build_model, count_parameters
from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import save_posterior
from bayesrule.runs import CheckpointFolder, canonical_json
from bayesrule.seeding import child_seed, generator
from bayesrule.tasks.devices import training_device
from bayesrule.tasks.inference import Single, make_inference
from bayesrule.tasks.inference.base import with_buffers
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.problem import check_finite, make_optimizer
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.requirements import Requirements
from bayesrule.tasks.rl.agent import Agent
from bayesrule.tasks.rl.environments import Environment, environment_source, make_environment
from bayesrule.tasks.rl.losses import Bootstrap
from bayesrule.tasks.rl.replay import Replay
from bayesrule.tasks.rl.training import PHASE, Curves, Schedule, Training, learning_steps
from bayesrule.tasks.schedule import learning_rate_factor
from bayesrule.tasks.step_memory import step_vectors
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["QLearning", "evaluate_policy", "learning_curve"]

PROBED = 64  # replay states whose values are recorded
LAST = 0.2  # part of the training whose returns are `train/last20`
_DRY_ROWS = 64


def evaluate_policy(
    agent: Agent, environment: Environment, *, episodes: int, epsilon: float, seed: int
) -> dict[str, float]:
    """Return the mean return and length of whole games under an epsilon-greedy policy.

    Args:
        agent: Gives the values, at the posterior's mean.
        environment: Made for evaluation: rewards unclipped, lives not counted.
        episodes: Number of games.
        epsilon: Probability of a random action.
        seed: Seed of games and random actions.
    """
    explore = generator(seed, "actions")
    n_actions = int(environment.game.action_space.n)  # type: ignore[attr-defined]
    returns, lengths = 0.0, 0
    for episode in range(episodes):
        obs = environment.begin(child_seed(seed, "game", episode) % 2**31)
        while True:
            chance = float(torch.rand((), generator=explore))
            other = int(torch.randint(n_actions, (), generator=explore))
            after = environment.step(other if chance < epsilon else agent.greedy(obs))
            obs = after.obs
            if after.game_return is not None:
                returns, lengths = returns + after.game_return, lengths + after.game_length
                break
    return {"test/return@mean": returns / episodes, "test/length@mean": lengths / episodes}


def learning_curve(curves: Curves, steps: int) -> dict[str, float]:
    """Return what sums up the returns during training.

    `train/auc` is the mean over windows of the mean return of the games that ended in the window;
    windows in which none did are left out.

    Args:
        curves: The curves of a finished training.
        steps: Its length in environment steps.
    """
    windows = curves.series.get(f"{PHASE}/return", ([], []))[1]
    last = curves.between(math.floor((1.0 - LAST) * steps), steps)
    return {
        "train/auc": sum(windows) / len(windows) if windows else math.nan,
        "train/last20": sum(last) / len(last) if last else math.nan,
        "train/games": float(len(curves.games)),
    }


class QLearning(Task):
    """Learn Q-values by one optimiser from replayed transitions; see `bayesrule.tasks.rl`.

    Args:
        bootstrap: The network that values the next state: ``target`` (the lagging one), ``online``
            (the up-to-date one), or ``hybrid``.
        kappa: Weight of functional regularisation towards the lagging network.
        regularise: ``taken`` actions or ``all``.
        period: T, environment steps between moves of the lagging network.
        tau: How far it moves; 1 is a copy.
        gamma: Discount.
        env_steps: Length of the training.
        learning_starts: Environment steps before the first update.
        train_every: Environment steps per update.
        replay: Capacity of the replay buffer.
        eps_start: First exploration probability.
        eps_end: Last one.
        eps_fraction: Fraction of the training over which it falls.
        window: Environment steps per point of the learning curves.
        eval_every: Environment steps between evaluations; None: at the end only.
        eval_episodes: Games per evaluation.
        eval_epsilon: Exploration probability of evaluations.
    """

    def __init__(
        self,
        *,
        bootstrap: Bootstrap,
        kappa: float,
        regularise: str,
        period: int,
        tau: float,
        gamma: float,
        env_steps: int,
        learning_starts: int,
        train_every: int,
        replay: int,
        eps_start: float,
        eps_end: float,
        eps_fraction: float,
        window: int,
        eval_every: int | None,
        eval_episodes: int,
        eval_epsilon: float,
    ) -> None:
        self.bootstrap, self.kappa, self.regularise = bootstrap, kappa, regularise
        self.period, self.tau, self.gamma = period, tau, gamma
        self.env_steps, self.learning_starts = env_steps, learning_starts
        self.train_every, self.replay = train_every, replay
        self.eps_start, self.eps_end, self.eps_fraction = eps_start, eps_end, eps_fraction
        self.window, self.eval_every = window, eval_every
        self.eval_episodes, self.eval_epsilon = eval_episodes, eval_epsilon

    # ---------------------------------------------------------------------- plan

    def schedule(self, trainer: Mapping[str, Any]) -> Schedule:
        """Return when what happens, with the trainer's batch size and bound on updates."""
        return Schedule(
            env_steps=self.env_steps,
            max_updates=trainer["max_steps"],
            learning_starts=self.learning_starts,
            train_every=self.train_every,
            batch_size=trainer["batch_size"],
            period=self.period,
            tau=self.tau,
            eps_start=self.eps_start,
            eps_end=self.eps_end,
            eps_fraction=self.eps_fraction,
            window=self.window,
            eval_every=self.eval_every,
            log_every=trainer["log_every"],
        )

    @property
    def capacity(self) -> int:
        """Transitions that the buffer will ever hold."""
        return min(self.replay, self.env_steps)

    def check(self, config: Config) -> None:
        """Refuse options that mean nothing here, before anything starts.

        Raises:
            ConfigError: Naming the first of them.
        """
        trainer, steps = config["trainer"], learning_steps(self.schedule(config["trainer"]))
        if "data" in config:
            raise ConfigError(
                f"task=rl learns from an environment (env=cartpole), not from data="
                f"{config['data']['name']}: leave data= out"
            )
        if not isinstance(make_inference(config["posterior"]), Single):
            name = str(config["posterior"]["_target_"]).rpartition(".")[2]
            raise ConfigError(
                f"task=rl learns one Q-network by one optimiser, and {name} builds on other "
                "trainings: choose an optimiser (posterior=adamw, sgd, ivon, ...)"
            )
        refused = {
            "trainer.devices": trainer["devices"] * trainer["nodes"] > 1
            and "task=rl acts and learns in one process: use one device",
            "trainer.precision": trainer["precision"] == "bf16-mixed"
            and "task=rl learns in full precision: use 32-true or 64-true",
            "trainer.micro_batch_size": trainer["micro_batch_size"] is not None
            and "task=rl takes each batch whole: leave it null",
            "trainer.compile": trainer["compile"] and "task=rl does not compile: leave it false",
            "trainer.eval_every": trainer["eval_every"] is not None
            and "task=rl has no epochs: use task.eval_every (environment steps)",
            "callbacks.patience": config["callbacks"]["patience"] is not None
            and "task=rl does not stop early: leave it null",
            "task.learning_starts": steps < 1
            and f"no update would be made in task.env_steps={self.env_steps}",
            "task.bootstrap": self.bootstrap == "hybrid"
            and self.kappa > 0.0
            and "hybrid already has a term of its own: use task.kappa=0",
        }
        for key, reason in refused.items():
            if reason:
                group, _, name = key.partition(".")
                raise ConfigError(f"{key}={config[group][name]}: {reason}")

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the sizes of a run: the network twice, and the buffer's capacity as N."""
        self.check(config)
        counted = {} if counted is None else counted
        env = config["env"]
        key = canonical_json([config["model"], env["shape"], env["n_actions"]])
        if key not in counted:
            counted[key] = count_parameters(_network(config, device="meta"))
        return Requirements(
            n_train=self.capacity,
            steps=learning_steps(self.schedule(config["trainer"])),
            parameters=counted[key],
            vectors=step_vectors(config["posterior"]),
            kept=1,  # the lagging network
        )

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Learn once from random transitions of the environment's shape, and follow once.

        Raises:
            NonFiniteLoss: If the loss, a parameter or a value is not finite.
        """
        config = copy.deepcopy(plan.config)
        config["trainer"]["accelerator"] = "cpu"
        env = config["env"]
        agent = self._agent(config)
        replay = self._replay(config, capacity=_DRY_ROWS)
        stream = generator(config["seed"], "dry run")
        shape = tuple(env["shape"])
        for age in range(_DRY_ROWS):
            obs, after = (_random_frames(shape, replay, stream) for _ in range(2))
            action = int(torch.randint(env["n_actions"], (), generator=stream))
            replay.add(obs, action, 1.0, after, age == _DRY_ROWS - 1, age)
        agent.learn(replay.sample(config["trainer"]["batch_size"], stream))
        agent.follow(self.tau)
        check_finite(agent.online, 1)
        probe = replay.sample(PROBED, stream).obs
        if not torch.isfinite(agent.values(probe)).all():
            raise NonFiniteLoss("the values after one step are not finite")
        return [f"replay {self.capacity:,} -> {_DRY_ROWS} random transitions"]

    # ----------------------------------------------------------------------- run

    def run(self, context: Context) -> Outcome:
        """Train, save the posterior, evaluate."""
        config = context.config
        self.check(config)
        environment = make_environment(config["env"], training=True)
        arena = make_environment(config["env"], training=False)
        agent = self._agent(config)
        known = environment.exact_q(self.gamma)

        def probe(replay: Replay, step: int) -> dict[str, float]:
            return self._values(config, agent, replay, known)

        def evaluate(step: int) -> dict[str, float]:
            return evaluate_policy(
                agent,
                arena,
                episodes=self.eval_episodes,
                epsilon=self.eval_epsilon,
                seed=child_seed(config["seed"], "eval", step),
            )

        trainer = config["trainer"]
        training = Training(
            seed=config["seed"],
            schedule=self.schedule(trainer),
            agent=agent,
            environment=environment,
            replay=self._replay(config, capacity=self.capacity),
            checkpoints=CheckpointFolder(context.folder.path / "checkpoints" / PHASE),
            history=context.history,
            stop=context.stop,
            probe=probe,
            evaluate=evaluate,
            checkpoint_seconds=trainer["checkpoint_seconds"],
        )
        title = f"{context.folder.id[:8]} {config['env']['name']}"
        with Progress(title, self.env_steps, enabled=trainer["progress"]) as progress:
            curves = training.run(progress)
        check_finite(agent.online, agent.updates)
        posterior = with_buffers(agent.optimizer.posterior(agent.online), agent.online)
        save_posterior(posterior, context.folder.path)
        metrics = {
            **learning_curve(curves, training.step),
            **self._values(config, agent, training.replay, known),
            **_replay_metrics(training.replay),
            **evaluate(training.step),
        }
        environment.close()
        arena.close()
        return Outcome(metrics, _details(config, agent, training.step, curves))

    def _agent(self, config: Config) -> Agent:
        trainer = config["trainer"]
        model = _network(config).to(training_device(trainer["accelerator"]))
        if trainer["precision"] == "64-true":
            model.double()
        optimizer: PosteriorOptimizer = make_optimizer(
            model,
            config["posterior"],
            n_train=self.capacity,
            seed=child_seed(config["seed"], "noise", 0),
            sync="auto",
        )
        total = learning_steps(self.schedule(trainer))
        return Agent(
            model,
            optimizer,
            gamma=self.gamma,
            bootstrap=self.bootstrap,
            kappa=self.kappa,
            all_actions=self.regularise == "all",
            scale=config["env"]["scale"],
            clip_grad_norm=trainer["clip_grad_norm"],
            factor=learning_rate_factor(trainer, total),
        )

    def _replay(self, config: Config, capacity: int) -> Replay:
        env = config["env"]
        bytes_only = env["preprocessing"] == "atari" or env["id"] is None
        dtype = torch.uint8 if bytes_only else torch.float32
        return Replay(capacity, env["shape"], dtype, stack=env["stack"])

    def _values(
        self, config: Config, agent: Agent, replay: Replay, known: Any | None
    ) -> dict[str, float]:
        """Return mean max_a Q(s, a) over states drawn from the buffer, and the error where known.

        ::

            q/mse = mean over states and actions of (Q(s, a) - Q*(s, a))^2
        """
        states = replay.sample(PROBED, generator(config["seed"], "probe")).obs
        found = {"q/max": float(agent.values(states).amax(1).double().mean())}
        if known is not None:
            error = agent.values(known[0]).double().cpu() - known[1]
            found["q/mse"] = float(error.square().mean())
            found["q/log_mse"] = math.log(max(found["q/mse"], 1e-300))
        return found


def _network(config: Config, device: str = "cpu") -> nn.Module:
    env = config["env"]
    return build_model(
        config["model"],
        input_shape=env["shape"],
        n_outputs=env["n_actions"],
        seed=config["seed"],
        device=device,
    )


def _random_frames(shape: tuple[int, ...], replay: Replay, stream: torch.Generator) -> torch.Tensor:
    if replay.columns["obs"].dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)
    return torch.randn(shape, generator=stream)


def _replay_metrics(replay: Replay) -> dict[str, float]:
    """Return how many transitions in the buffer earned something."""
    first = max(0, replay.added - len(replay))
    rows = torch.arange(first, replay.added) % replay.rows
    return {"replay/rewarded": float((replay.columns["reward"][rows] > 0).sum())}


def _details(config: Config, agent: Agent, step: int, curves: Curves) -> dict[str, Any]:
    env = config["env"]
    return {
        "data": {
            "name": env["name"],
            "kind": "environment",
            "source": environment_source(env)[1],
        },
        "parameters": count_parameters(agent.online),
        "steps": agent.updates,
        "env_steps": step,
        "curves": {
            name: {"step": steps, "value": values}
            for name, (steps, values) in curves.series.items()
        },
    }
