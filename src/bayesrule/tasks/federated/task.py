"""task=federated: K clients and a server learn one network, in rounds, without sharing data."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bayesrule.config import Config, locate
from bayesrule.data import partitions, random_like
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.federated import Algorithm, FedAvg, FedLapFunc, ServerState
from bayesrule.federated.training import minimise_soft
from bayesrule.models import count_parameters
from bayesrule.optim import IVON
from bayesrule.posteriors import PointMass, Posterior, save_posterior
from bayesrule.runs import CheckpointFolder
from bayesrule.tasks.dry_run import DryProblem, dry_config
from bayesrule.tasks.evaluate import Evaluation, add_classification, evaluate, predict_split
from bayesrule.tasks.federated.clients import Clients
from bayesrule.tasks.federated.engine import Engine, LocalEngine
from bayesrule.tasks.federated.parts import (
    make_algorithm,
    make_memory,
    make_prior,
    partition_of,
    weights_of,
    with_memory,
)
from bayesrule.tasks.federated.rounds import Rounds
from bayesrule.tasks.federated.schedule import Participation
from bayesrule.tasks.flower.deployment import check_superlink
from bayesrule.tasks.flower.environment import prepare
from bayesrule.tasks.inference import Single, make_inference
from bayesrule.tasks.inference.base import with_buffers
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.problem import Learnt, Problem
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.requirements import Requirements, requirements_of_learning
from bayesrule.tasks.shared import shared, sharing
from bayesrule.tasks.task import Context, Outcome, Task

__all__ = ["FederatedLearning"]

MEGABYTE = 1e6


@dataclass
class Parts:
    """What one run is made of.

    Attributes:
        rounds: The loop.
        clients: Their data and solvers, in this process.
        algorithm: The server's, with what it knows of the network.
        model: The server's network, for predictions.
    """

    rounds: Rounds
    clients: Clients
    algorithm: Algorithm
    model: nn.Module


class FederatedLearning(Task):
    """Rounds of ``federated=`` with ``posterior=`` as the clients' solver.

    ``trainer.epochs`` are the epochs of a client in a round, ``trainer.batch_size`` its batches.

    Args:
        engine: Where clients work, ``engine.name``: ``local`` (this process), ``flower`` or
            ``deployment``.
        clients: K.
        rounds: R.
        partition: ``iid``, ``dirichlet`` (sizes and class mixes of clients), ``dirichlet_classes``,
            ``shards`` or ``column``.
        mix: Dirichlet concentration of class mixes.
        size: Dirichlet concentration of client sizes.
        even: Part of every client's size that is equal.
        classes_per_client: Of ``shards``.
        items_per_class: Of ``shards``; None: all there are.
        column: Input column whose values are clients.
        participation: Part of the clients asked in a round.
        dropout: Probability that a client which was asked does not answer.
        stragglers: Probability that a client does a part of its epochs only.
        straggler_epochs: That part.
        min_replies: Fewest sound replies of a round.
        carry: Whether a client's optimiser state persists over rounds.
        lr_schedule: Of the learning rate over rounds.
        eval_every: Rounds between evaluations; None: at the end only.
        report: Rounds whose test metrics are part of the summary.
        server_steps: Adam steps of a server's own search (FedLap-Func).
        server_lr: Their learning rate.
    """

    def __init__(
        self,
        *,
        engine: str,
        clients: int,
        rounds: int,
        partition: str,
        mix: float,
        size: float,
        even: float,
        classes_per_client: int,
        items_per_class: int | None,
        column: int | None,
        participation: float,
        dropout: float,
        stragglers: float,
        straggler_epochs: float,
        min_replies: int,
        carry: bool,
        lr_schedule: str,
        eval_every: int | None,
        report: list[int],
        server_steps: int,
        server_lr: float,
    ) -> None:
        self.rounds, self.eval_every, self.report = rounds, eval_every, report
        self.clients, self.min_replies, self.lr_schedule = clients, min_replies, lr_schedule
        self.server_steps, self.server_lr = server_steps, server_lr
        self.participation = Participation(clients, participation, dropout, stragglers)

    # ---------------------------------------------------------------------- plan

    def check(self, config: Config) -> None:
        """Refuse options that mean nothing here, before anything starts.

        Raises:
            ConfigError: Naming the first of them.
        """
        trainer, posterior, data = config["trainer"], config["posterior"], config["data"]
        if not isinstance(make_inference(posterior), Single):
            name = str(posterior["_target_"]).rpartition(".")[2]
            raise ConfigError(
                f"task=federated runs one optimiser on every client, and {name} builds on whole "
                "trainings: choose an optimiser (posterior=adamw, sgd, ivon, ...)"
            )
        federated = config["federated"]
        target: Any = locate(federated["_target_"], "federated._target_")
        solver: Any = locate(posterior["_target_"], "posterior._target_")
        averages = issubclass(target, FedAvg)
        decays = posterior.get("weight_decay", 0.0)
        closed_form = solver is IVON and federated["family"] == "diagonal"
        refused = {
            "data.kind": data["kind"] != "classification"
            and "task=federated shares out classes: choose a classification set",
            "data.ood": data.get("ood")
            and "task=federated does not score companions: leave it empty",
            "task.engine": config["task"]["engine"] != config["engine"]["name"]
            and f"it is chosen by engine={config['task']['engine']}",
            "trainer.devices": trainer["devices"] * trainer["nodes"] > 1
            and "a client works in one process: use one device",
            "trainer.precision": trainer["precision"] == "bf16-mixed"
            and "task=federated learns in full precision: use 32-true or 64-true",
            "trainer.micro_batch_size": trainer["micro_batch_size"] is not None
            and "a client takes each batch whole: leave it null",
            "trainer.compile": trainer["compile"] and "task=federated does not compile",
            "trainer.drop_last": trainer["drop_last"] and "every item of a client counts",
            "trainer.eval_every": trainer["eval_every"] is not None
            and "rounds are evaluated: use task.eval_every",
            "callbacks.patience": config["callbacks"]["patience"] is not None
            and "task=federated does not stop early: leave it null",
            "posterior.weight_decay": not averages
            and not closed_form
            and decays > 0.0
            and "the prior is the server's (federated.prior_prec): set it to 0",
            "posterior.rescale_lr": closed_form
            and posterior["rescale_lr"]
            and "with the server's posterior as its prior IVON takes lr as it is: set it to false",
            "posterior.hess_approx": closed_form
            and posterior["hess_approx"] != "price"
            and "with the server's posterior as its prior IVON has price's estimator: use price",
            "task.report": max(self.report, default=0) > self.rounds
            and f"there are task.rounds={self.rounds}",
            "task.min_replies": self.min_replies > self.clients
            and f"there are task.clients={self.clients}",
        }
        for key, reason in refused.items():
            if reason:
                group, _, name = key.partition(".")
                raise ConfigError(f"{key}={config[group][name]}: {reason}")
        if config["engine"]["name"] == "deployment":
            check_superlink(config["engine"]["superlink"])

    def planned_steps(self, trainer: Mapping[str, Any], n_train: int, trainings: int) -> int:
        """Return the steps of all clients in all rounds (if they all take part)."""
        per_client = math.ceil(n_train / self.clients / trainer["batch_size"]) * trainer["epochs"]
        if trainer["max_steps"]:
            per_client = min(per_client, trainer["max_steps"])
        return self.rounds * self.clients * per_client

    def requirements(self, config: Config, counted: dict[str, int] | None = None) -> Requirements:
        """Return the sizes of a run: of every client a dual and the state of its optimiser."""
        self.check(config)
        found = requirements_of_learning(self, config, counted)
        target: Any = locate(config["federated"]["_target_"], "federated._target_")
        duals = 0 if issubclass(target, FedAvg) else 2
        return replace(found, kept=self.clients * (duals + math.ceil(found.vectors.state)))

    def dry_run(self, plan: ArmPlan, memory: float) -> list[str]:
        """Do one round of two clients with one step each on random data, and predict.

        Raises:
            NonFiniteLoss: If a prediction is not finite.
        """
        config, notes = dry_config(plan, memory)
        notes.append(f"clients {self.clients} -> 2, rounds {self.rounds} -> 1")
        config["task"] |= {"clients": 2, "rounds": 1, "partition": "iid", "report": []}
        config["trainer"] |= {"max_steps": 1, "accelerator": "cpu"}
        n = 4 * config["trainer"]["batch_size"]
        data = random_like(config["data"], seed=config["seed"], n_items=n)
        with DryProblem.temporary(plan, config, data) as problem:
            small = _short(self)
            parts = small.rounds_of(problem)
            state = parts.rounds.run(Progress("dry run", 1, enabled=False))
            predictive = with_buffers(parts.algorithm.predictive(state), parts.model)
            learnt = Learnt(parts.model, predictive)
            predicted = predict_split(problem, learnt, data.test, "mc1")
            assert predicted.log_probs_NK is not None
            if not torch.isfinite(predicted.log_probs_NK).all():
                raise NonFiniteLoss("the predictions after one round are not finite")
        return notes

    # ----------------------------------------------------------------------- run

    def run(self, context: Context) -> Outcome:
        """Do the rounds, save the server's posterior, evaluate."""
        config = context.config
        self.check(config)
        problem = Problem.from_context(context)
        title = f"{context.folder.id[:8]} rounds"
        shown = Progress(title, self.rounds, enabled=config["trainer"]["progress"])
        with sharing(), shown as progress:
            parts = self.rounds_of(problem, self._engine(context, progress))
            rounds, model = parts.rounds, parts.model
            state = rounds.run(progress)
        posterior = with_buffers(parts.algorithm.predictive(state), model)
        save_posterior(posterior, context.folder.path)
        evaluation = evaluate(problem, Learnt(model, posterior))
        labels = problem.data.train.targets.numpy()
        shares = partition_of(problem.data, config["task"], seed=config["seed"])
        metrics = {**evaluation.metrics, **self._reported(rounds)}
        details = {
            "data": problem.data.describe(),
            "parameters": count_parameters(model),
            "clients": {
                "items": parts.clients.num_items,
                "label_mix": partitions.label_mix(labels, shares).tolist(),
                "fingerprint": partitions.partition_fingerprint(shares),
            },
            "rounds": rounds.curves,
            "refused": rounds.refused,
            "curves": evaluation.curves,
        }
        return Outcome(metrics, details)

    def _engine(self, context: Context, progress: Progress) -> Engine | None:
        """Return the engine that the configuration names; None: this process.

        A deployment has done all rounds when it comes back: what is left is to read them.
        """
        options, folder = context.config["engine"], context.folder.path
        if options["name"] == "local":
            return None
        prepare(options["name"], folder / "flower" / "home")
        if options["name"] == "deployment":
            from bayesrule.tasks.flower.deployment import remote_rounds

            remote_rounds(context.config, context.folder, context.stop, progress)
            return None
        from bayesrule.tasks.flower.grid import GridEngine
        from bayesrule.tasks.flower.simulation import Simulation

        made = {"workers": options["workers"], "gpus": options["gpus"]}
        simulation = shared(
            ("flower", self.clients, *made.values()), lambda: Simulation(self.clients, **made)
        )

        def check() -> None:
            simulation.check()
            context.stop.listen_again()  # Ray takes SIGTERM when it is up, and would abort on it

        return GridEngine(
            simulation.grid,
            context.config,
            self.clients,
            timeout=options["timeout"],
            wait=options["wait"],
            check=check,
        )

    def rounds_of(self, problem: Problem, engine: Engine | None = None) -> Parts:
        """Return the rounds at their start, with what they share.

        Args:
            problem: Data, model and likelihood.
            engine: Does the clients' work; None: this process.
        """
        config = problem.config
        options, trainer, seed = config["federated"], config["trainer"], config["seed"]
        model = problem.model()
        double = trainer["precision"] == "64-true"
        if double:
            model.double()
        init = weights_of(model)
        clients = Clients(config, problem.data, problem.likelihood)
        algorithm = make_algorithm(options)
        if isinstance(algorithm, FedLapFunc):
            memory = make_memory(clients.splits, options["memory_items"], seed=seed, double=double)
            algorithm = with_memory(
                algorithm, problem.model().to(next(iter(init.values()))), memory
            )
        rounds = Rounds(
            algorithm,
            algorithm.start(make_prior(model, options), self.clients, init),
            engine or LocalEngine(clients),
            lambda objective: minimise_soft(
                model, objective, steps=self.server_steps, lr=self.server_lr
            ),
            self.participation,
            seed,
            self.rounds,
            self.min_replies,
            lambda state: self._measure(problem, algorithm, model, state),
            CheckpointFolder(problem.folder.path / "checkpoints" / "rounds"),
            problem.history,
            problem.stop,
            checkpoint_seconds=trainer["checkpoint_seconds"],
        )
        return Parts(rounds, clients, algorithm, model)

    def _measure(
        self, problem: Problem, algorithm: Algorithm, model: nn.Module, state: ServerState
    ) -> dict[str, float]:
        """Return accuracy, NLL and ECE of the server on test data, at the mean and by draws."""
        every = self.eval_every
        if state.round not in self.report and (every is None or state.round % every):
            return {}
        posterior: Posterior = with_buffers(algorithm.predictive(state), model)
        learnt, out = Learnt(model, posterior), Evaluation()
        rules = ["mean"]
        if not isinstance(posterior, PointMass):
            rules.append(f"mc{problem.config['metrics']['mc_samples']}")
        for rule in rules:
            predicted = predict_split(problem, learnt, problem.data.test, rule)
            assert predicted.log_probs_NK is not None
            add_classification(
                out,
                "test",
                rule,
                predicted.log_probs_NK,
                predicted.targets,
                n_outputs=problem.data.n_outputs,
                cfg={
                    **problem.config["metrics"],
                    "ece_bins": problem.config["metrics"]["ece_bins"][:1],
                },
                full=False,
            )
        return {
            name: value
            for name, value in out.metrics.items()
            if name.partition("/")[2].partition("@")[0] in ("acc", "nll", "ece")
        }

    def _reported(self, rounds: Rounds) -> dict[str, float]:
        """Return the test metrics after some rounds, and what was sent in all."""
        found = {
            "comm/up": rounds.bytes_up / MEGABYTE,
            "comm/down": rounds.bytes_down / MEGABYTE,
            "comm/refused": float(len(rounds.refused)),
        }
        for name, points in rounds.curves.items():
            if name.startswith("test/"):
                metric, _, rule = name.removeprefix("test/").partition("@")
                for round, value in points:
                    if int(round) in self.report:
                        found[f"round{int(round)}/{metric}@{rule}"] = value
        return found


def _short(task: FederatedLearning) -> FederatedLearning:
    """Return the task with two clients and one round, for a dry run."""
    small = copy.copy(task)
    small.clients, small.rounds, small.report, small.min_replies = 2, 1, [], 1
    small.server_steps = min(task.server_steps, 5)
    small.participation = Participation(2)
    return small
