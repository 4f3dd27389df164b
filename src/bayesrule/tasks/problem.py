"""A learning problem: data, model, likelihood, and the one routine that trains on it.

Tasks are outer loops around `Problem.fit`; supervised learning calls it once, an ensemble once per
member, continual learning once per experience. Every call is a *phase* with its own seed streams
and checkpoints, so a killed run goes on inside the phase it was in and repeats no finished one.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import nn

from bayesrule.config import Config, accepted, locate
from bayesrule.data import DataBundle, ResumableLoader, Split
from bayesrule.errors import ConfigError, NonFiniteLoss
from bayesrule.likelihoods import Categorical, Gaussian, Likelihood
from bayesrule.models import build_model
from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import Posterior
from bayesrule.runs import CheckpointFolder, RunFolder
from bayesrule.seeding import child_seed
from bayesrule.tasks.callbacks import (
    Checkpointing,
    EpochEvaluation,
    RandomStates,
    Recorder,
    VerifiedCheckpointIO,
)
from bayesrule.tasks.finished import FinishedPhase
from bayesrule.tasks.history import History
from bayesrule.tasks.inputs import load_inputs
from bayesrule.tasks.module import LearnModule, Penalty
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.schedule import planned_steps, processes
from bayesrule.tasks.sharding import Gathering
from bayesrule.tasks.signals import StopRequest
from bayesrule.tasks.strategies import make_strategy, sync_of
from bayesrule.tasks.task import Context

__all__ = [
    "Learnt",
    "Problem",
    "as_doubles",
    "check_finite",
    "make_likelihood",
    "make_optimizer",
]


@dataclass(frozen=True)
class Learnt:
    """What training leaves: a posterior, and the network that its draws are put into."""

    model: nn.Module
    posterior: Posterior


def make_likelihood(data: DataBundle, noise_std: float) -> Likelihood:
    """Return the likelihood of a data set's kind.

    Args:
        data: The data set; regression targets are standardised.
        noise_std: Regression: standard deviation of the noise, in standardised units.
    """
    return Gaussian(noise_std) if data.kind == "regression" else Categorical()


def make_optimizer(
    model: nn.Module, options: Mapping[str, Any], *, n_train: int, seed: int, sync: str
) -> PosteriorOptimizer:
    """Return the optimiser that a posterior's configuration names, over a model's parameters.

    Args:
        model: Its parameters that require a gradient are learnt.
        options: ``_target_`` and the optimiser's options; ``ess: null`` becomes ``ess_factor``
            times `n_train`.
        n_train: Number of training examples.
        seed: Seed of the noise.
        sync: How processes share a step, see `bayesrule.optim.PosteriorOptimizer.setup`.
    """
    target: Any = locate(options["_target_"], "posterior._target_")
    filled = {key: value for key, value in options.items() if value is not None}
    if "ess_factor" in options:
        filled.setdefault("ess", options["ess_factor"] * n_train)
    filled |= {"seed": seed, "sync": sync, "model": model}
    params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    made: PosteriorOptimizer = target(params, **accepted(target, filled))
    return made


def check_finite(model: nn.Module, step: int) -> None:
    """Check every parameter after a training.

    Raises:
        NonFiniteLoss: Naming the first parameter that is not finite.
    """
    for name, param in model.named_parameters():
        if not torch.isfinite(param).all():
            raise NonFiniteLoss(
                f"parameter {name} is not finite after step {step}: training diverged; try a "
                "smaller posterior.lr"
            )


def as_doubles(value: Any) -> Any:
    """Return a batch with its floating-point tensors in double precision."""
    if isinstance(value, Mapping):
        return {key: as_doubles(item) for key, item in value.items()}
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


@dataclass
class Problem:
    """Everything a task needs to learn from one data set.

    Attributes:
        config: The run's configuration.
        folder: The run's folder.
        data: The data set, split and scaled.
        likelihood: Links outputs to targets.
        history: Where training rows go.
        stop: The request to stop, by a signal.
        writer: Whether this process writes (rank 0).
        history_length: Bytes of the history up to the end of the last finished phase.
    """

    config: Config
    folder: RunFolder
    data: DataBundle
    likelihood: Likelihood
    history: History
    stop: StopRequest
    writer: bool = True
    history_length: int = 0
    _timed: tuple[float, int] = (0.0, 0)

    @classmethod
    def from_context(cls, context: Context) -> Problem:
        """Load the data that the configuration names."""
        config = context.config
        data = load_inputs(config)
        likelihood = make_likelihood(data, config["task"].get("noise_std", 1.0))
        return cls(
            config, context.folder, data, likelihood, context.history, context.stop, context.writer
        )

    # ------------------------------------------------------------------ parts

    def model(self, member: int = 0) -> nn.Module:
        """Return a freshly initialised network; members differ in their initialisation."""
        seed = self.config["seed"]
        if member:
            seed = child_seed(seed, "member", member)
        return build_model(
            self.config["model"],
            input_shape=self.data.input_shape,
            n_outputs=self.data.n_outputs,
            seed=seed,
        )

    def optimizer(
        self, model: nn.Module, options: Mapping[str, Any], member: int = 0
    ) -> PosteriorOptimizer:
        """Return the optimiser that ``options["_target_"]`` names, over the model's parameters."""
        return make_optimizer(
            model,
            options,
            n_train=self.data.train.n_items,
            seed=child_seed(self.config["seed"], "noise", member),
            sync=sync_of(self.config["trainer"]),
        )

    def batches(self, split: Split) -> Iterator[dict[str, Any]]:
        """Yield a split in order, without augmentation, in batches of ``metrics.batch_size``."""
        size = self.config["metrics"]["batch_size"]
        for start in range(0, len(split), size):
            batch = split.batch(torch.arange(start, min(start + size, len(split))))
            yield as_doubles(batch) if self.config["trainer"]["precision"] == "64-true" else batch

    def train_batches(self) -> Iterator[dict[str, Any]]:
        """Yield the training data in order, for curvature."""
        return self.batches(self.data.train)

    # -------------------------------------------------------------------- fit

    def total_steps(self) -> int:
        """Return the number of optimiser steps of one training."""
        return planned_steps(self.config["trainer"], len(self.data.train))

    def seconds_per_epoch(self) -> float | None:
        """Return the wall time of a training epoch, evaluation included, as far as it ran here.

        A resumed run is timed from where it went on; one whose trainings were all finished is not.
        """
        seconds, steps = self._timed
        if steps == 0:
            return None
        per_epoch = planned_steps({**self.config["trainer"], "epochs": 1}, len(self.data.train))
        return seconds / steps * per_epoch

    def fit(
        self,
        model: nn.Module,
        optimizer: PosteriorOptimizer,
        phase: str,
        *,
        member: int = 0,
        factor: Callable[[int], float],
        callbacks: Sequence[pl.Callback] = (),
        penalty: Penalty | None = None,
        see_gradients: Callable[[nn.Module], None] | None = None,
        measure: Callable[[], dict[str, float]] | None = None,
        remake: Callable[[nn.Module], PosteriorOptimizer] | None = None,
    ) -> None:
        """Train in place, from the phase's last checkpoint if there is one.

        Args:
            model: The network, trained in place (it holds the mean afterwards).
            optimizer: Owns the posterior over its parameters.
            phase: Name of this training within the run.
            member: Index that separates the random streams of phases.
            factor: Learning-rate factor of the step.
            callbacks: Further callbacks; they run before checkpoints are written.
            penalty: A loss term of the model.
            see_gradients: Called with the model when its gradients are those of the loss alone.
            measure: Returns metrics of the current posterior (see ``trainer.eval_every``).
            remake: Makes another such optimiser, for the shards of ``trainer.strategy=fsdp``.

        Raises:
            NonFiniteLoss: If training diverged.
            Stopped: If a signal asked for a stop; a checkpoint was written.
        """
        cfg = self.config["trainer"]
        checkpoints = CheckpointFolder(self.folder.path / "checkpoints" / phase)
        finished = FinishedPhase(checkpoints.path / "finished.pt", model, optimizer, callbacks)
        if finished.restore():
            self.history_length = finished.history_length
            return
        _check_clipping(cfg, optimizer)
        _check_split(cfg, optimizer, len(self.data.train))
        total = self.total_steps()
        loader = self._loader(member)
        sharded = cfg["strategy"] == "fsdp"
        trained = copy.deepcopy(model) if sharded else model
        module = LearnModule(
            torch.compile(trained) if cfg["compile"] else trained,  # type: ignore[arg-type]
            optimizer,
            self.likelihood,
            factor,
            micro_batch_size=cfg["micro_batch_size"],
            clip_grad_norm=cfg["clip_grad_norm"],
            penalty=penalty,
            see_gradients=see_gradients,
            remake=remake if sharded else None,
        )
        gathering = Gathering(
            lambda: (module.model, module.optimizer), model, optimizer, cfg["eval_every"]
        )
        resume_from = checkpoints.latest()
        if resume_from is None:  # rows of an attempt that left no checkpoint do not count
            self.history.rewind(self.history_length)
        shown = Progress(
            f"{self.folder.id[:8]} {phase}",
            total,
            done=resume_from or 0,
            enabled=cfg["progress"] and self.writer,
        )
        hooks: list[pl.Callback] = [RandomStates(), *callbacks]
        hooks.append(Recorder(self.history, phase, cfg["log_every"], shown))
        if sharded:
            hooks.append(gathering)
        if cfg["eval_every"] and measure is not None:
            hooks.append(self._epoch_evaluation(measure, phase))
        hooks.append(Checkpointing(checkpoints, cfg["checkpoint_seconds"], self.stop))
        # the global state serves dropout alone: everything else has a stream of its own
        torch.manual_seed(child_seed(self.config["seed"], "global", member))
        with shown:
            trainer = self._trainer(hooks, checkpoints)
            device = trainer.strategy.root_device
            started = time.perf_counter()
            trainer.fit(
                module,
                train_dataloaders=loader,
                ckpt_path=None if resume_from is None else str(checkpoints.file(resume_from)),
                weights_only=True,
            )
        took, steps = time.perf_counter() - started, trainer.global_step - (resume_from or 0)
        self._timed = self._timed[0] + took, self._timed[1] + steps
        if sharded:
            gathering.gather()
        model.to(device)  # the trainer leaves it on the CPU
        check_finite(model, trainer.global_step)
        self.history_length = self.history.sync()
        if self.writer:
            finished.save(self.history_length)
        self.stop.check()

    def _loader(self, member: int) -> ResumableLoader:
        cfg = self.config["trainer"]
        world = processes(cfg)
        rank = dist.get_rank() if dist.is_initialized() else _torchrun_rank()
        return ResumableLoader(
            self.data.train,
            cfg["batch_size"],
            seed=child_seed(self.config["seed"], "order", member),
            shuffle=True,
            drop_last=cfg["drop_last"],
            num_workers=cfg["num_workers"],
            rank=rank,
            world_size=world,
        )

    def _epoch_evaluation(
        self, measure: Callable[[], dict[str, float]], phase: str
    ) -> EpochEvaluation:
        own = self.config["callbacks"]
        every = self.config["trainer"]["eval_every"]
        return EpochEvaluation(measure, self.history, phase, every, own["patience"], own["monitor"])

    def _trainer(self, callbacks: list[pl.Callback], checkpoints: CheckpointFolder) -> pl.Trainer:
        cfg = self.config["trainer"]
        _quiet_lightning()
        return pl.Trainer(
            accelerator=cfg["accelerator"],
            devices=cfg["devices"],
            num_nodes=cfg["nodes"],
            strategy=make_strategy(cfg),
            precision=cfg["precision"],
            max_epochs=cfg["epochs"],
            max_steps=-1 if cfg["max_steps"] is None else cfg["max_steps"],
            callbacks=callbacks,
            plugins=[VerifiedCheckpointIO(checkpoints)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            deterministic="warn" if cfg["accelerator"] != "cpu" else None,
            default_root_dir=str(self.folder.path),
            barebones=False,
        )


def _check_clipping(cfg: dict[str, Any], optimizer: PosteriorOptimizer) -> None:
    """Refuse to clip each rank's own gradient where the gradient of the batch is meant.

    A sampling method clips per sample, which is a rank's own; a point estimate has one gradient.
    """
    alone = processes(cfg) == 1 or sync_of(cfg) == "gradients" or optimizer.stochastic
    if cfg["clip_grad_norm"] is not None and not alone:
        raise ConfigError(
            f"trainer.clip_grad_norm with {type(optimizer).__name__} on several processes clips "
            "the gradient of the global batch: use trainer.strategy=ddp, which averages it first"
        )


def _check_split(cfg: dict[str, Any], optimizer: PosteriorOptimizer, n_train: int) -> None:
    """Refuse a last batch that has fewer items than the optimiser wants parts."""
    size, world = cfg["batch_size"], processes(cfg)
    rest = 0 if cfg["drop_last"] else n_train % size
    smallest = min(size, rest or size) // world
    if optimizer.batch_split > smallest:
        raise ConfigError(
            f"posterior.batch_split={optimizer.batch_split} cuts a batch into so many parts, but "
            f"the smallest batch of a process has {smallest} items: use trainer.drop_last=true, "
            "another trainer.batch_size, or a smaller batch_split"
        )


def _torchrun_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _quiet_lightning() -> None:
    """Silence advice that is for people who use Lightning directly; our own words are enough."""
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*LeafSpec.*", ".*many workers.*", ".*`weights_only` was not set.*"):
        warnings.filterwarnings("ignore", text)
