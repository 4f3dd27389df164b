"""What a correction is, and when a continual learner calls it.

::

    for t = 1..T:
        begin(experience, past)              # snapshots; prior() is asked for after it
        for every step:
            see_gradients(model)             # .grad of the mean loss alone, if it wants them
            loss(model)                      # a term beside the batch's mean loss, or None
            after_step(batch, past)          # what happened: reservoirs, path integrals
        absorb(experience, past)             # the experience is over: it becomes the past

At `begin` the optimiser is still that of the experience before (`past.posterior()` is its q);
afterwards each experience has one of its own.

`loss` is in units of the mean loss of the current task: what a paper adds to a sum over N_t items
is divided by N_t (`experience.train.n_items`). State that decides what comes next, generators
included, is in `state_dict`: a run that is killed in or between experiences ends bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.corrections.memory import Memory
from bayesrule.data.bundle import Split
from bayesrule.data.streams import Experience, Stream
from bayesrule.likelihoods import Head, Heads, Likelihood
from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import Posterior

__all__ = ["Correction", "Past"]

Start = Literal["warm", "posterior", "fresh"]


@dataclass(frozen=True)
class Past:
    """What a correction may look at.

    Attributes:
        model: The network; it holds the posterior's mean.
        optimizer: Owns the posterior that is being learnt.
        likelihood: The base likelihood; see `head`.
        stream: All experiences; those after the current one are for their sizes only.
        seed: The run's seed, for named streams of the correction's own.
        batch_size: Items at once in passes over data.
        new_optimizer: Makes an optimiser like `optimizer` over another network's parameters, for so
            many training items; for copies that are fine-tuned.
    """

    model: nn.Module
    optimizer: PosteriorOptimizer
    likelihood: Likelihood
    stream: Stream
    seed: int
    batch_size: int = 256
    new_optimizer: Callable[[nn.Module, int], PosteriorOptimizer] | None = None

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def head(self, columns: tuple[int, ...]) -> Head:
        """Return the likelihood of one head."""
        return Head(self.likelihood, columns)

    def heads(self) -> Heads:
        """Return the likelihood of items of any head, with the network's outputs as targets."""
        return Heads(self.likelihood, self.stream.heads)

    def posterior(self) -> Posterior:
        """Return q as it is now."""
        return self.optimizer.posterior(self.model)

    def to_model(self, value: Tensor) -> Tensor:
        """Return a tensor on the model's device; numbers that are not whole in its precision."""
        like = next(self.model.parameters())
        return value.to(like.device, like.dtype if value.is_floating_point() else None)

    def batches(
        self, split: Split, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, targets) of a split in order, plain, where the model is."""
        size = batch_size or self.batch_size
        for indices in torch.arange(len(split)).split(size):
            batch = split.batch(indices)
            yield self.to_model(batch["input"]), self.to_model(batch["target"])


class Correction:
    """What the past knows. A method overrides what it needs; the base class corrects nothing.

    Attributes:
        start: ``warm``: an experience starts from the weights before; ``posterior``: from the whole
            posterior before (`PosteriorOptimizer.set_posterior`), variances included; ``fresh``:
            anew.
        alone: Whether each task is predicted by the posterior that was learnt on it, and not by
            the last one.
        wants_gradients: Whether `see_gradients` is to be called.
        vectors: Vectors of P numbers that the past takes, for plans.
    """

    start: Start = "warm"
    alone: bool = False
    wants_gradients: bool = False
    vectors: int = 0

    def train_split(self, stream: Stream, t: int) -> Split | None:
        """Return what to train on at experience `t` in place of its own training split, or None.

        Its targets are outputs of the network, as those of `Stream.union`.
        """
        return None

    def n_train(self, sizes: Sequence[int], t: int) -> int:
        """Return the number of items trained on at experience `t`, given the experiences' sizes."""
        return sizes[t]

    def begin(self, experience: Experience, past: Past) -> None:
        """Prepare for an experience; the model holds the weights before it."""

    def prior(self) -> Posterior | None:
        """Return the prior of the experience that has begun, or None for the optimiser's own."""
        return None

    def loss(self, model: nn.Module) -> Tensor | None:
        """Return the term beside the mean loss of the batch, or None.

        Args:
            model: The network at the point where the gradient is taken (a draw, for sampling
                optimisers), in training mode; put it in evaluation mode where the method says so.
        """
        return None

    def see_gradients(self, model: nn.Module) -> None:
        """Look at the parameters' ``.grad``: of the batch's mean loss, before `loss` and clipping.

        Called once per gradient evaluation, so several times per step by some optimisers; the
        parameters hold the point of the gradient.
        """

    def after_step(self, batch: Mapping[str, Any], past: Past) -> None:
        """Take note of a step that was made on `batch`."""

    def absorb(self, experience: Experience, past: Past) -> None:
        """Make a finished experience part of the past."""

    def predictive(self, posterior: Posterior, past: Past) -> Posterior:
        """Return what to predict with: q itself, or a copy that was fine-tuned on a coreset."""
        return posterior

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what comes next, as tensors and plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        del state

    def check(self, past: Past) -> None:
        """Refuse, before anything is trained, what would fail later.

        Raises:
            BayesruleError: With a sentence: which posterior, model or stream does not go, and why.
        """

    def stored(self) -> Sequence[Memory]:
        """Return the items of the past that are kept, for pictures; none by default."""
        return ()

    def n_items(self) -> int:
        """Return the number of items of the past that are kept."""
        return 0

    def nbytes(self) -> int:
        """Return the bytes that the past takes, in items, weights and statistics."""
        return 0
