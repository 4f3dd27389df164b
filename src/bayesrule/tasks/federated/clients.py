"""The clients of a run, made from its configuration: whoever has it can do any client's work.

A process of an engine needs the configuration and a source of the data, nothing else: the network
before training, the algorithm and the partition follow from the configuration and its seed, and
batches and noise from (seed, client, round). So the same job gives the same answer in any process
of a machine.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.config import Config, accepted, locate
from bayesrule.data import DataBundle
from bayesrule.errors import ConfigError, ImproperDistribution, NonFiniteLoss, Unsupported
from bayesrule.federated import FedLapFunc, NetworkClient, SiteIVON, Sites, Solve
from bayesrule.federated.training import MakeOptimizer
from bayesrule.likelihoods import Likelihood
from bayesrule.models import build_model
from bayesrule.optim import IVON, PosteriorOptimizer
from bayesrule.seeding import child_seed
from bayesrule.tasks.devices import on_device, training_device
from bayesrule.tasks.federated.engine import Answer, Job
from bayesrule.tasks.federated.parts import make_algorithm, partition_of, with_memory
from bayesrule.tasks.federated.schedule import round_factor
from bayesrule.tasks.inputs import load_inputs
from bayesrule.tasks.problem import as_doubles, make_likelihood, make_optimizer

__all__ = ["Clients"]


class Clients:
    """All clients of a run, which share one network object: one of them works at a time.

    Args:
        config: The run's configuration.
        data: The data set that is shared out.
        likelihood: Gives the loss.

    Attributes:
        algorithm: The two pure functions; here `client_update` is used.
        splits: Each client's items.
        device: Where clients compute; what comes in and goes out is on the CPU.
    """

    def __init__(self, config: Config, data: DataBundle, likelihood: Likelihood) -> None:
        options, trainer, seed = config["federated"], config["trainer"], config["seed"]
        self.config, self.likelihood = config, likelihood
        self.device = training_device(trainer["accelerator"])

        def network() -> nn.Module:
            model = build_model(
                config["model"], input_shape=data.input_shape, n_outputs=data.n_outputs, seed=seed
            )
            double = trainer["precision"] == "64-true"
            return (model.double() if double else model).to(self.device)

        self.model = network()
        parts = partition_of(data, config["task"], seed=seed)
        self.splits = [data.train.subset(torch.from_numpy(part)) for part in parts]
        algorithm = make_algorithm(options)
        self.closed_form = isinstance(algorithm, Sites) and options["family"] == "diagonal"
        if isinstance(algorithm, FedLapFunc):  # the shared inputs come with the message
            algorithm = with_memory(algorithm, network(), ())
        self.algorithm = algorithm

    @classmethod
    def of(cls, config: Config) -> Clients:
        """Return the clients of a configuration, in a process that has nothing but it."""
        torch.set_num_threads(config["trainer"]["threads"])
        data = load_inputs(config)
        return cls(config, data, make_likelihood(data, config["task"].get("noise_std", 1.0)))

    @property
    def num_items(self) -> list[int]:
        """N_k of every client."""
        return [len(split) for split in self.splits]

    def work(self, job: Job) -> Answer:
        """Do a client's part of a round; whatever goes wrong is its answer."""
        k, r = job.client, job.message.round
        try:
            if self.device.type != "cpu":
                job = Job.from_plain(on_device(job.to_plain(), self.device))
            solve = self.solver(k, r, job.straggler)
            reply, after = self.algorithm.client_update(
                job.message, job.state, k, len(self.splits[k]), solve
            )
        except (NonFiniteLoss, ImproperDistribution) as problem:
            return Answer(k, problem=str(problem), kind="diverged")
        except (Unsupported, ConfigError) as problem:
            return Answer(k, problem=str(problem), kind="unfit")
        except Exception as error:  # a client that breaks must not take the others with it
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
            text = f"raised {type(error).__name__} at {where}: {error}"
            return Answer(k, problem=text, kind="failed")
        answer = Answer(k, reply, after)
        if self.device.type != "cpu":
            answer = Answer.from_plain(on_device(answer.to_plain(), torch.device("cpu")))
        return answer

    def solver(self, client: int, round: int, straggler: bool) -> Solve:
        """Return the solver of a client in a round.

        Args:
            client: Its number.
            round: The round's.
            straggler: Whether it has time for a part of its epochs only.
        """
        trainer, task = self.config["trainer"], self.config["task"]
        split, double = self.splits[client], trainer["precision"] == "64-true"
        factor = round_factor(task["lr_schedule"], round, task["rounds"])

        def batch(rows: Tensor, epoch: int) -> Mapping[str, Any]:
            found = split.batch(rows, epoch=round * trainer["epochs"] + epoch)
            return on_device(as_doubles(found) if double else found, self.device)

        epochs = trainer["epochs"] * (task["straggler_epochs"] if straggler else 1.0)
        if trainer["max_steps"]:
            epochs = min(
                epochs, trainer["max_steps"] / math.ceil(len(split) / trainer["batch_size"])
            )
        return NetworkClient(
            self.model,
            self.likelihood,
            batch,
            len(split),
            self._maker(),
            epochs=epochs,
            batch_size=trainer["batch_size"],
            seed=child_seed(self.config["seed"], "client", client, round),
            lr_factor=factor,
            carry=task["carry"],
            clip_grad_norm=trainer["clip_grad_norm"],
        )

    def _maker(self) -> MakeOptimizer:
        options = self.config["posterior"]
        target: Any = locate(options["_target_"], "posterior._target_")

        def make(model: nn.Module, ess: float, seed: int) -> PosteriorOptimizer:
            if target is IVON and self.closed_form:
                filled = accepted(SiteIVON, _given(options))
                return SiteIVON(list(model.named_parameters()), **filled, seed=seed)
            own = {"ess": ess} if "ess_factor" in options else {}
            return make_optimizer(model, {**options, **own}, n_train=1, seed=seed, sync="auto")

        return make


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's options without those that are null."""
    return {name: value for name, value in options.items() if value is not None}
