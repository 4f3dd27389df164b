"""The outer loop of continual learning: one phase of `Problem.fit` per experience.

::

    for t = 1..T:
        correction.begin(experience, past)         # the optimiser is still that of t - 1
        weights <- as they are, or a fresh network                          (`Correction.start`)
        optimiser <- a new one; prior <- correction.prior(); q <- as it was, if start says so
        fit: mean loss of D_t (or of what `train_split` gives) + correction.loss(model)
        correction.absorb(experience, past)
        scores of all tasks seen so far; the position is written

A run that is killed within an experience goes on inside its phase, whose checkpoints have the
correction's state; killed between two, from the position. Both end bit-equal.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from bayesrule.config import accepted, locate
from bayesrule.corrections import Correction, Past
from bayesrule.data import Experience, Stream
from bayesrule.errors import ConfigError
from bayesrule.likelihoods import Head, Heads, Likelihood
from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import (
    DropoutPosterior,
    Posterior,
    load_posterior,
    reestimate_batch_norm,
    save_posterior,
)
from bayesrule.seeding import child_seed
from bayesrule.tasks.continual.position import Position
from bayesrule.tasks.continual.scores import Scores
from bayesrule.tasks.devices import on_device, training_device
from bayesrule.tasks.inference import MCDropout, Single, make_inference
from bayesrule.tasks.inference.base import with_buffers
from bayesrule.tasks.problem import Learnt, Problem, make_optimizer
from bayesrule.tasks.schedule import learning_rate_factor
from bayesrule.tasks.strategies import sync_of

__all__ = ["StreamLearner", "base_of", "make_correction"]

_REFUSED = {
    "Laplace": "its curvature would be that of the last experience alone; Laplace's approximation "
    "of a stream is correction=online_laplace, with posterior=adamw or sgd",
    "SWAG": "it averages the tail of one training, and a stream has one for each experience",
    "DeepEnsemble": "its members would be streams of their own: run several seeds",
}


def base_of(options: Mapping[str, Any]) -> tuple[Single, float | None]:
    """Return the one training that a posterior is learnt by, and its dropout probability if any.

    Raises:
        ConfigError: If a posterior builds on trainings in a way that a stream has no meaning for.
    """
    inference = make_inference(options)
    if isinstance(inference, Single):
        return inference, None
    if isinstance(inference, MCDropout):
        return inference.base, inference.p
    name = type(inference).__name__
    reason = _REFUSED.get(name, "it builds on other trainings")
    raise ConfigError(
        f"task=continual goes on with one posterior, learnt by one optimiser, and {name} does not "
        f"fit: {reason}"
    )


def make_correction(options: Mapping[str, Any]) -> Correction:
    """Return the correction that a ``conf/correction`` mapping describes."""
    target: Any = locate(options["_target_"], "correction._target_")
    made: Correction = target(**accepted(target, dict(options)))
    return made


class _Steps(pl.Callback):
    """Tells the correction of every step; its state is in the phase's checkpoints."""

    def __init__(self, correction: Correction, past: Past) -> None:
        self.correction, self.past = correction, past

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass the batch on."""
        self.correction.after_step(batch, self.past)

    def state_dict(self) -> dict[str, Any]:
        """Return the correction's state."""
        return self.correction.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the correction, where the network is."""
        device = next(self.past.model.parameters()).device
        self.correction.load_state_dict(on_device(state_dict, device))


class StreamLearner:
    """Learns a stream; holds the network, its optimiser, the correction and the scores.

    Args:
        problem: Data set, model and the routine that trains; its likelihood is the base's.
        stream: The experiences.
        correction: What is carried over.
        keep_state: Whether an experience goes on with the optimiser's state of the one before.
        own_statistics: Whether each task is predicted with batch-normalisation statistics that were
            estimated on its training items when it was just learnt.
    """

    def __init__(
        self,
        problem: Problem,
        stream: Stream,
        correction: Correction,
        *,
        keep_state: bool = False,
        own_statistics: bool = False,
    ) -> None:
        self.base, self.stream, self.correction = problem.likelihood, stream, correction
        self.keep_state, self.own_statistics = keep_state, own_statistics
        self.inference = make_inference(problem.config["posterior"])
        single, self.dropout = base_of(problem.config["posterior"])
        self.options = single.options
        data = replace(problem.data, n_outputs=stream.n_outputs)
        self.problem = replace(problem, data=data)
        self.statistics: list[dict[str, Tensor]] = []
        self.scores = Scores(stream)
        self.steps = 0
        self._enter(0)
        self.model = self._network(0)
        self.optimizer = self.problem.optimizer(self.model, self.options, 0)

    # ------------------------------------------------------------------- parts

    def _network(self, t: int) -> nn.Module:
        """Return the network of experience t before it was trained."""
        trainer = self.problem.config["trainer"]
        model = self.inference.network(self.problem.model(t))
        model = model.to(training_device(trainer["accelerator"]))
        return model.double() if trainer["precision"] == "64-true" else model

    def _enter(self, t: int) -> None:
        """Make the problem that of experience t; its place in the history is carried along."""
        experience: Experience = self.stream[t]
        train = self.correction.train_split(self.stream, t)
        likelihood: Likelihood = Head(self.base, experience.columns)
        if train is not None:
            likelihood = Heads(self.base, self.stream.heads)
        data = replace(
            self.problem.data,
            train=experience.train if train is None else train,
            val=experience.val,
            test=experience.test,
        )
        self.problem = replace(self.problem, data=data, likelihood=likelihood)

    def _like(self, model: nn.Module, n_train: int) -> PosteriorOptimizer:
        """Return an optimiser with the run's options over another network, on other items."""
        config = self.problem.config
        seed, sync = child_seed(config["seed"], "noise", "copy"), sync_of(config["trainer"])
        return make_optimizer(model, self.options, n_train=n_train, seed=seed, sync=sync)

    def past(self) -> Past:
        """Return what the correction may look at now."""
        return Past(
            model=self.model,
            optimizer=self.optimizer,
            likelihood=self.base,
            stream=self.stream,
            seed=self.problem.config["seed"],
            batch_size=self.problem.config["metrics"]["batch_size"],
            new_optimizer=self._like,
        )

    def posterior(self) -> Posterior:
        """Return q as it is now, with the rest of the network's state."""
        q = self.optimizer.posterior(self.model)
        if self.dropout is not None:
            state = {name: param.detach() for name, param in self.model.named_parameters()}
            q = DropoutPosterior(state)
        return with_buffers(q, self.model)

    def predictive(self) -> Posterior:
        """Return what predicts now (`Correction.predictive`)."""
        return self.correction.predictive(self.posterior(), self.past())

    def final(self) -> Posterior:
        """Return what predicts after the last experience, with its statistics."""
        q = self.predictive()
        return q.with_buffers(self.statistics[-1]) if self.own_statistics else q

    # -------------------------------------------------------------------- loop

    def check(self) -> None:
        """Raise what a later experience would raise, before the first is learnt.

        Raises:
            BayesruleError: If the optimiser cannot go on from a posterior of its own, or the
                correction refuses.
        """
        self.correction.check(self.past())
        if self.correction.start == "posterior":
            model = copy.deepcopy(self.model)  # rounding must not reach the one that is learnt
            other = self._like(model, self.problem.data.train.n_items)
            other.set_posterior(other.posterior(model), model)

    def run(self) -> None:
        """Learn all experiences, from the last position if there is one."""
        path = self.problem.folder.path / "checkpoints" / "position.pt"
        position = Position.load(path)
        if position.done:
            self._restore(position)
        else:
            self.scores.before(self._base_problem(), Learnt(self.model, self.posterior()))
        for t in range(position.done, len(self.stream)):
            if t > position.done:  # of an attempt whose later positions were lost
                shutil.rmtree(path.parent / _phase(t), ignore_errors=True)
            self.learn(t)
            self._leave(t, path)

    def learn(self, t: int) -> None:
        """Learn experience t (from 0), absorb it and measure."""
        experience: Experience = self.stream[t]
        self._begin(t)
        past, trainer = self.past(), self.problem.config["trainer"]
        factor = learning_rate_factor(trainer, self.problem.total_steps())
        correction = self.correction
        corrects = type(correction).loss is not Correction.loss
        self.problem.fit(
            self.model,
            self.optimizer,
            _phase(t),
            member=t,
            factor=factor,
            callbacks=[_Steps(self.correction, past)],
            penalty=correction.loss if corrects else None,
            see_gradients=correction.see_gradients if correction.wants_gradients else None,
            measure=self._measure(experience),
        )
        self.steps += self.problem.total_steps()
        self.correction.absorb(experience, past)
        if self.own_statistics and experience.last:
            self.statistics.append(self._estimate())
        if experience.last:
            self._score(experience)

    def _begin(self, t: int) -> None:
        """Prepare experience t: the correction, the weights, a new optimiser, its prior."""
        experience: Experience = self.stream[t]
        self._enter(t)
        self.correction.begin(experience, self.past())
        q: Posterior | None = None
        if t > 0:
            start = self.correction.start
            before = self.optimizer
            q = before.posterior(self.model) if start == "posterior" else None
            if start == "fresh":
                self.model.load_state_dict(self._network(t).state_dict())
            self.optimizer = self.problem.optimizer(self.model, self.options, t)
            if self.keep_state and start != "fresh":
                self.optimizer.load_state_dict(before.state_dict())
                q = None
        prior = self.correction.prior()
        if prior is not None:
            self.optimizer.set_prior(prior, self.model)
        if q is not None:  # the same q has other parameters under another prior
            self.optimizer.set_posterior(q, self.model)

    def _leave(self, t: int, path: Any) -> None:
        """Write the position and drop what it replaces."""
        if not self.problem.writer:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        Position(
            done=t + 1,
            model=dict(self.model.state_dict()),
            optimizer=self.optimizer.state_dict(),
            correction=self.correction.state_dict(),
            scores={**self.scores.state_dict(), "steps": self.steps},
            statistics=self.statistics,
            history_length=self.problem.history_length,
        ).save(path)
        shutil.rmtree(path.parent / _phase(t), ignore_errors=True)

    def _restore(self, position: Position) -> None:
        """Go on from a position."""
        last = position.done - 1
        self._enter(last)
        self.model.load_state_dict(position.model)
        self.optimizer = self.problem.optimizer(self.model, self.options, last)
        self.optimizer.load_state_dict(position.optimizer)
        device = next(self.model.parameters()).device
        self.correction.load_state_dict(on_device(position.correction, device))
        scores = dict(position.scores)
        self.steps = int(scores.pop("steps"))
        self.scores.load_state_dict(scores)
        self.statistics = position.statistics
        self.problem.history_length = position.history_length

    # ----------------------------------------------------------------- measure

    def _base_problem(self) -> Problem:
        return replace(self.problem, likelihood=self.base)

    def _measure(self, experience: Experience) -> Callable[[], dict[str, float]]:
        """Return what is measured within an experience: its task and those before it."""

        def measure() -> dict[str, float]:
            learnt = Learnt(self.model, self.posterior())
            tasks = range(experience.task + 1)
            found = self.scores.row(self._base_problem(), lambda j: learnt, tasks, "test")
            return {
                f"task{j + 1}/{name}": value
                for name, row in found.items()
                for j, value in enumerate(row)
                if value is not None
            }

        return measure

    def _estimate(self) -> dict[str, Tensor]:
        """Return batch-normalisation statistics of the task that was just learnt."""
        q = self.posterior()
        state = reestimate_batch_norm(self.model, q.mode_state(), self.problem.train_batches)
        names = set(q.names)
        return {name: value for name, value in state.items() if name not in names}

    def _score(self, experience: Experience) -> None:
        """Measure all tasks seen so far, and write a row of the history."""
        now, t = self.predictive(), experience.task
        folder = self.problem.folder.path
        if self.correction.alone and self.problem.writer:
            save_posterior(now, folder / "tasks" / str(t + 1))

        def learnt(j: int) -> Learnt:
            q = now
            if self.correction.alone and j < t:
                q = load_posterior(folder / "tasks" / str(j + 1))
            if self.own_statistics:
                q = q.with_buffers(self.statistics[min(j, t)])
            return Learnt(self.model, q)

        self.problem.history.rewind(self.problem.history_length)
        row = self.scores.after(
            self._base_problem(), learnt, t, self.correction.n_items(), self.correction.nbytes()
        )
        where = {"phase": _phase(experience.index), "step": self.steps}
        self.problem.history.append({**where, "epoch": 0, **row})
        self.problem.history_length = self.problem.history.sync()


def _phase(t: int) -> str:
    return f"experience{t + 1}"
