"""One real optimiser step of any run, on random data in the shape of its data set.

A task may have a dry run of its own (`Task.dry_run`); this is the one of every task that learns
from a data set. The run's own posterior, model, likelihood and closure are used, in one process on
the CPU and in float32: `Problem.fit` is replaced by a loop of the fewest steps that give a
posterior, everything else is what a run does. What is made smaller is said: the batch, the number
of ensemble members, and the depth of a model whose full size is too much for this machine.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from bayesrule.config import Config
from bayesrule.data import DataBundle, random_like
from bayesrule.errors import BayesruleError, ConfigError, NonFiniteLoss
from bayesrule.models import count_parameters
from bayesrule.models.gpt import GPT2_SIZES
from bayesrule.optim import PosteriorOptimizer
from bayesrule.runs import RunFolder, run_id
from bayesrule.seeding import child_seed
from bayesrule.tasks.curvature_check import compare_precision
from bayesrule.tasks.evaluate import predict_split
from bayesrule.tasks.history import History
from bayesrule.tasks.inference import make_inference
from bayesrule.tasks.inputs import as_read
from bayesrule.tasks.module import LearnModule, Penalty
from bayesrule.tasks.plan import ArmPlan
from bayesrule.tasks.problem import Problem, as_doubles, check_finite, make_likelihood
from bayesrule.tasks.requirements import meta_model
from bayesrule.tasks.schedule import planned_steps
from bayesrule.tasks.signals import StopRequest
from bayesrule.tasks.task import make_task

__all__ = ["DryProblem", "available_memory", "dry_config", "dry_learning", "dry_run"]

_BATCH = 2
_DEPTH = 2
_MEMBERS = 2
_COLLECT = 10_000_000
_MAX_FLOPS = 5e11  # of a step of a language model: about 10 s on one core


@dataclass
class DryProblem(Problem):
    """A problem whose training is a few steps.

    Attributes:
        steps: Steps that are taken.
        planned: Steps of the real training: the first step has its learning rate.
        losses: The losses of all steps.
    """

    steps: int = 1
    planned: int = 1
    losses: list[float] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def temporary(
        cls, plan: ArmPlan, config: Config, data: DataBundle, *, steps: int = 1
    ) -> Iterator[Self]:
        """Make a problem whose folder is there inside the block only.

        Args:
            plan: The arm; it gives the planned number of steps.
            config: Of the dry run, see `dry_config`.
            data: Of the dry run.
            steps: Steps that a training takes.
        """
        with tempfile.TemporaryDirectory() as folder:
            yield cls(
                config,
                RunFolder(Path(folder), run_id(config)),
                data,
                make_likelihood(data, config["task"].get("noise_std", 1.0)),
                History(None),
                StopRequest(),
                steps=steps,
                planned=planned_steps(plan.config["trainer"], plan.n_train),
            )

    def total_steps(self) -> int:
        """Return the real number of steps, or the number taken where a method divides it."""
        return self.planned if self.steps == 1 else self.steps

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
        """Take the steps in place; arguments as for `Problem.fit`.

        Raises:
            NonFiniteLoss: If a loss or a parameter is not finite.
        """
        cfg = self.config["trainer"]
        module = LearnModule(
            model,
            optimizer,
            self.likelihood,
            factor,
            micro_batch_size=cfg["micro_batch_size"],
            clip_grad_norm=cfg["clip_grad_norm"],
            penalty=penalty,
            see_gradients=see_gradients,
        )
        module.train()
        (stepped,), (schedule,) = module.configure_optimizers()
        torch.manual_seed(child_seed(self.config["seed"], "global", member))
        double = cfg["precision"] == "64-true"
        if double:
            module.double()
        for step in range(self.steps):
            size = min(cfg["batch_size"], len(self.data.train))
            batch = self.data.train.batch(torch.arange(size), epoch=0)
            batch = as_doubles(batch) if double else batch
            loss = stepped.step(module.closure(batch, Tensor.backward))
            schedule.step()
            self.losses.append(float(loss))
            trainer: Any = SimpleNamespace(global_step=step + 1)
            for callback in callbacks:
                callback.on_train_batch_end(trainer, module, {"loss": loss}, batch, step)
        optimizer.zero_grad()
        check_finite(model, self.steps)


def dry_run(plan: ArmPlan, *, memory: float | None = None) -> list[str]:
    """Take one real step of an arm and predict once, as its task does.

    Args:
        plan: The arm.
        memory: Bytes that may be used (default: `available_memory`).

    Returns:
        What was made smaller, a line each.

    Raises:
        BayesruleError: If the step fails: a loss, a parameter or a prediction that is not finite, a
            model that is too large, or options that do not go together.
    """
    memory = available_memory() if memory is None else memory
    torch.set_num_threads(plan.config["trainer"]["threads"])
    with torch.random.fork_rng(devices=[]):
        return make_task(plan.config).dry_run(plan, memory)


def dry_learning(plan: ArmPlan, memory: float) -> list[str]:
    """Take the fewest steps that give a posterior over a network, on random data; see `dry_run`."""
    config, notes = dry_config(plan, memory)
    data = random_like(
        config["data"], seed=config["seed"], n_items=2 * config["trainer"]["batch_size"]
    )
    data = as_read(config["model"], data)
    inference = make_inference(config["posterior"])
    with DryProblem.temporary(plan, config, data, steps=inference.min_steps) as problem:
        learnt = inference.learn(problem)
        if config["metrics"]["curvature"]:
            compare_precision(problem, learnt)
        for rule in ("mc1", "lin") if config["metrics"]["linearised"] else ("mc1",):
            predicted = predict_split(problem, learnt, data.test, rule)
            values = (predicted.log_probs_NK, predicted.target_log_probs_N, predicted.mu_SN)
            if not all(torch.isfinite(each).all() for each in values if each is not None):
                raise NonFiniteLoss(f"the prediction by rule {rule} after one step is not finite")
    if plan.parameters > _COLLECT:
        gc.collect()  # schedulers and optimisers refer to each other
    return notes


def dry_config(plan: ArmPlan, memory: float) -> tuple[Config, list[str]]:
    """Return the configuration of a dry run, and what was made smaller.

    Args:
        plan: The arm.
        memory: Bytes that may be used; half of them for what a step needs.

    Raises:
        BayesruleError: If the model is too large and has no depth to reduce.
    """
    config = copy.deepcopy(plan.config)
    notes: list[str] = []
    text = config["data"]["kind"] == "lm"
    size = max(1 if text else _BATCH, _parts(config["posterior"]))
    here = {"accelerator": "cpu", "devices": 1, "nodes": 1}
    config["trainer"] |= {"batch_size": size, **here}
    config["metrics"] |= {"mc_samples": 1, "prefixes": [], "batch_size": _BATCH}
    _fill(config["posterior"], plan.n_train, notes)
    if "checkpoint" in config["model"]:  # pretrained: the real weights are not needed here
        _stand_in(config["model"], plan, notes)
        return config, notes
    needed = plan.parameters * (plan.vectors.total + plan.kept) * plan.itemsize
    length = config["data"].get("block_size") or config["data"].get("max_length") or 0
    tokens = size * int(length) if text else 0
    slow = 6.0 * plan.parameters * tokens > _MAX_FLOPS
    if needed > 0.5 * memory or slow:
        reason = (
            f"{_millions(plan.parameters)} would need about {needed / 1e9:.1f} GB here"
            if needed > 0.5 * memory
            else f"a full step of {_millions(plan.parameters)} is too slow for a dry run on a CPU"
        )
        notes.append(f"{_cut_depth(config, reason)}: {reason}")
    return config, notes


def _stand_in(model: dict[str, Any], plan: ArmPlan, notes: list[str]) -> None:
    """Take two layers of random weights in the place of a pretrained checkpoint."""
    count = _millions(plan.parameters + plan.frozen)
    notes.append(f"{model['checkpoint']} ({count}) -> 2 layers of width 64, random weights")
    prefix = 1 if model["cached_prefix"] else 0
    model |= {"weights": "tiny", "cached_prefix": prefix, "lora_layers": None}


def _parts(options: dict[str, Any]) -> int:
    """Return the parts that a method, or one that it builds on, cuts a batch into."""
    inner = (_parts(value) for value in options.values() if isinstance(value, dict))
    return max(int(options.get("batch_split") or 1), *inner, 1)


def _fill(options: dict[str, Any], n_train: int, notes: list[str]) -> None:
    """Put in what depends on the real data, and take a small ensemble."""
    if "ess_factor" in options and options["ess"] is None:
        options["ess"] = options["ess_factor"] * n_train
    if options.get("members", 0) > _MEMBERS:
        notes.append(f"members {options['members']} -> {_MEMBERS}")
        options["members"] = _MEMBERS
    for value in options.values():
        if isinstance(value, Mapping):
            _fill(value, n_train, notes)  # type: ignore[arg-type]


def _cut_depth(config: Config, reason: str) -> str:
    """Reduce the model's depth in place; return what was done in words."""
    model = config["model"]
    depth = model.get("depth") or GPT2_SIZES.get(model.get("size"), (None,))[0]
    smaller = {**config, "model": {**model, "depth": _DEPTH}}
    try:
        if depth is None or "depth" not in model:
            raise ConfigError(f"model {model['name']} has no depth")
        data: DataBundle = random_like(config["data"], n_items=2)
        count = count_parameters(meta_model(smaller, data))
    except ConfigError as error:
        raise BayesruleError(f"{reason}, and its depth cannot be reduced ({error})") from error
    config["model"] = smaller["model"]
    return f"depth {depth} -> {_DEPTH} ({_millions(count)} parameters)"


def _millions(count: int) -> str:
    return f"{count / 1e6:.0f}M" if count >= 1e7 else f"{count:,}"


def available_memory() -> float:
    """Return the bytes of memory that this process may still take."""
    bounds = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            bounds.append(1024.0 * float(lines["MemAvailable"].split()[0]))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        bounds.append(float(text))
    return min(bounds)
