"""The EM schedule: steps on q with the kernel fixed, then Adam on the kernel with the sites fixed.

One iteration is `e_steps` E-steps followed by `m_steps` M-steps; the bound is recorded after the
E-steps, and the last iteration ends there. Every step may end with a checkpoint, and what a step
does is a function of its number and the state, so a resumed run is bit-equal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesrule.data import EpochOrder
from bayesrule.errors import ImproperDistribution, NonFiniteLoss
from bayesrule.posteriors.inducing import InducingGaussian
from bayesrule.runs import CheckpointFolder
from bayesrule.seeding import child_seed
from bayesrule.tasks.gp.inference import Batch, SparseInference, elbo
from bayesrule.tasks.gp.model import GaussianProcess
from bayesrule.tasks.history import History
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.signals import StopRequest

__all__ = ["ExpectationMaximisation", "Schedule"]

PHASE = "em"


@dataclass(frozen=True)
class Schedule:
    """How many steps of which kind.

    Attributes:
        iterations: Outer iterations.
        e_steps: E-steps of an iteration.
        m_steps: M-steps of an iteration.
        lr: Adam's learning rate on kernel, likelihood and inducing inputs.
        batch_size: Items of a step; None: all.
        max_steps: Stop after this many steps of either kind.
    """

    iterations: int
    e_steps: int
    m_steps: int
    lr: float
    batch_size: int | None = None
    max_steps: int | None = None

    @property
    def total(self) -> int:
        """Steps in all; the last iteration has no M-steps."""
        steps = self.iterations * (self.e_steps + self.m_steps) - self.m_steps
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def cycle(self) -> int:
        """Steps of an iteration."""
        return self.e_steps + self.m_steps

    def is_e_step(self, step: int) -> bool:
        """Return whether step number `step` (from 0) is an E-step."""
        return step % self.cycle < self.e_steps

    def ends_e_phase(self, step: int) -> bool:
        """Return whether an E-phase has just ended before step number `step`."""
        started = step > 0 or self.e_steps == 0
        return started and step % self.cycle == self.e_steps % self.cycle

    def iteration(self, done: int) -> int:
        """Return the iteration, from 0, whose E-phase has just ended after `done` steps."""
        return (done - min(1, self.e_steps)) // self.cycle


@dataclass
class ExpectationMaximisation:
    """Learns a model and q(u) on one training set.

    Attributes:
        gp: The model, learnt in place.
        inference: How q is learnt.
        inputs: X, (N, D), float64.
        targets: (N,).
        schedule: The steps.
        seed: The run's seed.
        chunk: Items of a pass over all data (bound, prediction).
        history: Receives rows.
        measure: Returns further metrics of the current q for a row, by iteration.
        bounds: The bound of each iteration so far, NaN where it was not computed.
    """

    gp: GaussianProcess
    inference: SparseInference
    inputs: Tensor
    targets: Tensor
    schedule: Schedule
    seed: int
    chunk: int
    history: History
    measure: Callable[[int], Mapping[str, float]] = lambda iteration: {}
    bounds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inference.check(self.gp)
        learnt = [p for p in self.gp.parameters() if p.requires_grad]
        self._adam = torch.optim.Adam(learnt, lr=self.schedule.lr)
        self._order = EpochOrder(
            len(self.targets), seed=child_seed(self.seed, "order"), shuffle=True
        )
        self._rows: tuple[int, Tensor] | None = None
        self._fixed: tuple[Tensor, Tensor | None, Tensor | None] | None = None

    # ------------------------------------------------------------------ the loop

    def run(
        self, checkpoints: CheckpointFolder, stop: StopRequest, *, seconds: float, progress: bool
    ) -> None:
        """Do all steps, from the last checkpoint if there is one.

        Args:
            checkpoints: Where checkpoints go.
            stop: The request to stop, by a signal.
            seconds: Wall time between checkpoints.
            progress: Whether to show it.

        Raises:
            NonFiniteLoss: With the step and the term that is not finite.
            Stopped: By a signal, after a checkpoint.
        """
        start = self._resume(checkpoints)
        total = self.schedule.total
        saved = time.monotonic()
        with Progress(f"gp {PHASE}", total, done=start, enabled=progress) as shown:
            for step in range(start, total):
                if self.schedule.ends_e_phase(step):
                    self._record(step)
                self.step(step)
                shown.update(step + 1, {"elbo": self.bounds[-1]} if self.bounds else {})
                if stop.signum is not None or time.monotonic() - saved >= seconds:
                    checkpoints.save_object(self._state(step + 1), step + 1)
                    saved = time.monotonic()
                    stop.check()
        if start < total:
            checkpoints.save_object(self._state(total), total)
        self._record(total)
        self.history.sync()

    def start(self) -> None:
        """Begin with q = prior."""
        self.inference.start(self.gp, self.gp.chol().detach(), self.targets)

    def step(self, step: int) -> None:
        """Take step number `step`, an E-step or an M-step by its place in the iteration.

        Raises:
            NonFiniteLoss: With the step and the term.
        """
        kind = "E" if self.schedule.is_e_step(step) else "M"
        try:
            if kind == "E":
                self._e_step(step)
            else:
                self._m_step(step)
        except (NonFiniteLoss, ImproperDistribution) as error:
            raise NonFiniteLoss(f"{kind}-step {step + 1}: {error}") from error

    @torch.no_grad()
    def _e_step(self, step: int) -> None:
        if step % self.schedule.cycle == 0 and step > 0 and self.schedule.m_steps > 0:
            self._fixed = None
            chol, phi, _ = self._fixed_kernel()
            self.inference.thaw(chol, lambda: self._all_features(chol, phi))
        chol, phi, rest = self._fixed_kernel()
        self.inference.step(self.gp, chol, self._batch(step, chol, phi, rest))

    def _m_step(self, step: int) -> None:
        if step % self.schedule.cycle == self.schedule.e_steps:
            with torch.no_grad():
                self.inference.freeze(self._fixed_kernel()[0])
            self._fixed = None
        chol = self.gp.chol()
        batch = self._batch(step, chol, None, None)
        q = self.inference.posterior(self.gp, chol, lambda: self._features_of_all(chol, batch))
        expected, kl = elbo(self.gp, q, batch)
        for term, value in (("the expected log-likelihood", expected), ("the KL term", kl)):
            if not math.isfinite(value.item()):
                raise NonFiniteLoss(
                    f"{term} is {value.item()} ({self.gp.describe()}); try a smaller task.lr"
                )
        self._adam.zero_grad()
        (kl - expected).backward()
        self._adam.step()

    # -------------------------------------------------------- the kernel and the data

    def _fixed_kernel(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return L and, where steps are on all data, their features; kept while it is fixed."""
        if self._fixed is None:
            chol = self.gp.chol()
            if self.schedule.batch_size is None:
                self._fixed = (chol, *self.gp.features(chol, self.inputs))
            else:
                self._fixed = (chol, None, None)
        return self._fixed

    def _all_features(self, chol: Tensor, phi: Tensor | None) -> Tensor:
        return self.gp.features(chol, self.inputs)[0] if phi is None else phi

    def _features_of_all(self, chol: Tensor, batch: Batch) -> Tensor:
        return self._all_features(chol, batch.phi if self.schedule.batch_size is None else None)

    def _batch(self, step: int, chol: Tensor, phi: Tensor | None, rest: Tensor | None) -> Batch:
        rows = self.batch_rows(step)
        inputs = self.inputs if self.schedule.batch_size is None else self.inputs[rows]
        if phi is None or rest is None:
            phi, rest = self.gp.features(chol, inputs)
        scale = len(self.targets) / len(rows)
        draws = child_seed(self.seed, "draws", step)
        return Batch(rows, self.targets[rows], phi, rest, scale, draws)

    def batch_rows(self, step: int) -> Tensor:
        """Return the items of a step, by place: a permutation per epoch, cut into batches."""
        n, size = len(self.targets), self.schedule.batch_size
        if size is None or size >= n:
            return torch.arange(n, device=self.targets.device)
        epoch, place = divmod(step, -(-n // size))
        if self._rows is None or self._rows[0] != epoch:
            self._order.set_epoch(epoch)
            self._rows = (epoch, self._order.indices().to(self.targets.device))
        return self._rows[1][place * size : (place + 1) * size]

    # ------------------------------------------------------------- bounds and predictions

    @torch.no_grad()
    def posterior(self) -> tuple[Tensor, InducingGaussian]:
        """Return L and q as they are."""
        chol, phi, _ = self._fixed_kernel()
        return chol, self.inference.posterior(self.gp, chol, lambda: self._all_features(chol, phi))

    @torch.no_grad()
    def bound(self) -> float:
        """Return the bound on all training data, chunk by chunk, with draws that never change."""
        chol, q = self.posterior()
        total, kl = 0.0, q.kl()
        for number, rows in enumerate(torch.arange(len(self.targets)).split(self.chunk)):
            rows = rows.to(self.targets.device)
            phi, rest = self.gp.features(chol, self.inputs[rows])
            draws = child_seed(self.seed, "bound", number)
            batch = Batch(rows, self.targets[rows], phi, rest, 1.0, draws)
            total += float(elbo(self.gp, q, batch)[0])
        return total - float(kl)

    def _record(self, done: int) -> None:
        iteration = self.schedule.iteration(done)
        metrics = dict(self.measure(iteration))
        last = done >= self.schedule.total
        full = self.schedule.batch_size is None or bool(metrics) or last
        self.bounds.append(self.bound() if full else math.nan)
        row: dict[str, Any] = {"phase": PHASE, "step": done, "epoch": iteration}
        if full:
            row["train/elbo"] = self.bounds[-1]
        self.history.append({**row, **self.gp.summary(), **metrics})

    # ----------------------------------------------------------------------- checkpoints

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": {name: t.clone() for name, t in self.gp.state_dict().items()},
            "adam": self._adam.state_dict(),
            "inference": self.inference.state_dict(),
            "bounds": list(self.bounds),
            "history": self.history.sync(),
        }

    def _resume(self, checkpoints: CheckpointFolder) -> int:
        device = self.targets.device
        found = checkpoints.load_latest_object(map_location=device)
        self.start()
        if found is None:  # rows of an attempt that left no checkpoint do not count
            self.history.rewind(0)
            return 0
        state = found[1]
        self.gp.load_state_dict(state["model"])
        self._adam.load_state_dict(state["adam"])
        self.inference.load_state_dict(state["inference"])
        self.bounds = [float(value) for value in state["bounds"]]
        self.history.rewind(int(state["history"]))
        return int(state["step"])
