"""Variational continual learning (Nguyen et al., 2018, arXiv 1710.10628), with coresets.

Yesterday's posterior is today's prior::

    q_t = argmin_q  E_q[ sum_{i in D_t} l_i ] + KL( q || q_{t-1} ),        q_0 the optimiser's prior

Any optimiser that takes a prior of its family learns it: BBB is the paper's method, IVON and VOGN
take natural-gradient steps to the same objective (Osawa et al., 2019, arXiv 1906.02506), and with
BayesBiNN the weights are binary. What is carried over is `PosteriorOptimizer.as_prior`.

Coreset VCL holds C_t, m items of each task, out of D_t, and predicts with a copy that has seen
them, which is never part of the recursion::

    q~_t = argmin_q  E_q[ sum_{i in C_1 + ... + C_t} l_i ] + KL( q || q_t )

Later tasks start at q_{t-1} (``start=posterior``) or, as VOGN's authors do, at its mean with the
optimiser's first variance (``warm``). The mean of the first task may start at a fit of maximum
likelihood (`ml_epochs` epochs of Adam); its variance is the optimiser's first, and should be small.

`weight` counts what a task adds to the precision of a Gaussian several times (Loo et al., 2021,
arXiv 2011.12328); 1 is Bayes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayesrule.corrections.base import Correction, Past
from bayesrule.corrections.memory import Memory
from bayesrule.corrections.selection import select
from bayesrule.data.bundle import Split
from bayesrule.data.streams import Experience, Stream
from bayesrule.errors import ConfigError, Unsupported
from bayesrule.likelihoods import Likelihood
from bayesrule.optim import PosteriorOptimizer
from bayesrule.optim.gaussian_prior import GaussianPriorOptimizer
from bayesrule.posteriors import FAMILIES, DiagonalGaussian, Posterior
from bayesrule.seeding import child_seed, generator

__all__ = ["VCL", "reweighted"]


def reweighted(q: DiagonalGaussian, prior: DiagonalGaussian, weight: float) -> DiagonalGaussian:
    """Return the Gaussian of q's mean with precision s_prior + weight (s_q - s_prior)."""
    before, now = prior.precision, q.precision
    precision = {n: before[n] + weight * (s - before[n]).clamp(min=0.0) for n, s in now.items()}
    return DiagonalGaussian(q.mean, precision, buffers=q.buffers)


class VCL(Correction):
    """Variational continual learning.

    Args:
        start: Where later tasks start: ``posterior`` or ``warm``.
        weight: Weight of what each task adds to the precision.
        ml_epochs: Epochs of Adam on the likelihood of the first task, before it is learnt.
        ml_lr: Learning rate of that.
        coreset: Items of each task that are held out, m; 0: none.
        selection: ``random`` or ``k_centre``.
        coreset_epochs: Epochs of the copy on the union of the coresets.
        batch_size: Of those passes.
    """

    vectors = 2

    def __init__(
        self,
        *,
        start: Literal["posterior", "warm"],
        weight: float,
        ml_epochs: int,
        ml_lr: float,
        coreset: int,
        selection: Literal["random", "k_centre"],
        coreset_epochs: int,
        batch_size: int,
    ) -> None:
        self.start = start
        self.weight, self.ml_epochs, self.ml_lr = weight, ml_epochs, ml_lr
        self.coreset, self.selection = coreset, selection
        self.coreset_epochs, self.batch_size = coreset_epochs, batch_size
        self.memories: list[Memory] = []
        self._prior: Posterior | None = None

    def check(self, past: Past) -> None:
        """Refuse optimisers that have no prior, and options that mean nothing for theirs."""
        kind, posterior = type(past.optimizer), past.optimizer.as_prior(past.model)
        if kind.set_prior is PosteriorOptimizer.set_prior:
            raise Unsupported(
                f"correction=vcl makes yesterday's posterior today's prior, and {kind.__name__} "
                "takes no prior: choose posterior=bbb, ivon, vogn or bayesbinn"
            )
        if not isinstance(posterior, DiagonalGaussian):
            for name, neutral in (("ml_epochs", 0), ("weight", 1.0)):
                if getattr(self, name) != neutral:
                    raise ConfigError(
                        f"correction.{name}={getattr(self, name)} is for Gaussian posteriors, and "
                        f"{kind.__name__} has another: set it to {neutral}"
                    )
        for experience in past.stream:
            self._leaves_some(experience)

    def _leaves_some(self, experience: Experience) -> None:
        if self.coreset >= len(experience.train):
            raise ConfigError(
                f"correction.coreset={self.coreset} leaves nothing to learn of experience "
                f"{experience.index + 1}, which has {len(experience.train)} items: choose fewer"
            )

    # ------------------------------------------------------------------- recursion

    def begin(self, experience: Experience, past: Past) -> None:
        """Fit the mean of the very first experience by maximum likelihood, if asked to."""
        if self._prior is None and self.ml_epochs:
            model, split = past.model, self.train_split(past.stream, experience.index)
            train = experience.in_columns(experience.train) if split is None else split
            adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], self.ml_lr)
            _epochs(model, adam, past, train, self.ml_epochs, self.batch_size, "likelihood")
            adam.zero_grad()

    def prior(self) -> Posterior | None:
        """Return q_{t-1}; None at the first experience, whose prior is the optimiser's."""
        return self._prior

    def absorb(self, experience: Experience, past: Past) -> None:
        """Keep q_t and the coreset."""
        optimizer = past.optimizer
        q = optimizer.as_prior(past.model)
        if self.weight != 1.0:  # `check` has refused it for other families
            assert isinstance(optimizer, GaussianPriorOptimizer)
            assert isinstance(q, DiagonalGaussian)
            q = reweighted(q, optimizer.prior(past.model), self.weight)
        self._prior = q
        if self.coreset:
            kept = experience.train.batch(self._chosen(past.stream, experience.index))
            memory = Memory(
                past.to_model(kept["input"]), past.to_model(kept["target"]), experience.columns
            )
            self.memories.append(memory)

    # -------------------------------------------------------------------- coresets

    def _chosen(self, stream: Stream, t: int) -> Tensor:
        """Return the positions of the coreset among the training items of experience t."""
        train = stream[t].train
        seed = int(hashlib.sha256(f"{stream.fingerprint}/coreset".encode()).hexdigest()[:12], 16)
        chosen: Tensor = select(
            self.selection,
            self.coreset,
            target=train.targets,
            input=train.whole()["input"] if self.selection == "k_centre" else None,
            balanced=False,
            generator=generator(seed, t),
        )
        return chosen

    def train_split(self, stream: Stream, t: int) -> Split | None:
        """Return the items that are not in the coreset; None without coresets."""
        if not self.coreset:
            return None
        experience: Experience = stream[t]
        self._leaves_some(experience)
        rest = torch.ones(len(experience.train), dtype=torch.bool)
        rest[self._chosen(stream, t)] = False
        return experience.in_columns(experience.train.subset(rest.nonzero().flatten()))

    def n_train(self, sizes: Sequence[int], t: int) -> int:
        """Return the number of items that are not in the coreset."""
        return sizes[t] - self.coreset

    def predictive(self, posterior: Posterior, past: Past) -> Posterior:
        """Return q~, learnt from q on the union of the coresets; q itself without coresets."""
        if not self.memories:
            return posterior
        model = copy.deepcopy(past.model)
        union = _Items([memory.to(past.device) for memory in self.memories])
        assert past.new_optimizer is not None
        optimizer = past.new_optimizer(model, len(union))
        optimizer.set_prior(past.optimizer.as_prior(past.model), model)
        if self.start == "posterior":
            optimizer.set_posterior(past.optimizer.posterior(past.model), model)
        _epochs(model, optimizer, past, union, self.coreset_epochs, self.batch_size, "coreset")
        return optimizer.posterior(model).with_buffers(posterior.buffers)

    # ----------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return q_{t-1} and the coresets."""
        q = self._prior
        kept = None if q is None else {"family": q.family, "groups": q._groups()}
        return {"prior": kept, "memories": [memory.state_dict() for memory in self.memories]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        kept = state["prior"]
        if kept is None:
            self._prior = None
        else:
            self._prior = FAMILIES[kept["family"]]._from_groups(kept["groups"], {})
        self.memories = [Memory.from_state(one) for one in state["memories"]]

    def n_items(self) -> int:
        """Return the size of all coresets."""
        return sum(len(memory) for memory in self.memories)

    def nbytes(self) -> int:
        """Return the bytes of q_{t-1} and the coresets."""
        groups = {} if self._prior is None else self._prior._groups()
        tensors = [t for params in groups.values() for t in params.values()]
        own = sum(t.numel() * t.element_size() for t in tensors)
        return own + sum(memory.nbytes() for memory in self.memories)


class _Items:
    """The items of several memories, with the network's outputs as targets."""

    def __init__(self, memories: Sequence[Memory]) -> None:
        self.input = torch.cat([memory.input for memory in memories])
        outputs = [torch.tensor(m.columns, device=m.target.device) for m in memories]
        labels = [c[m.target.long()] for c, m in zip(outputs, memories, strict=True)]
        self.target = torch.cat(labels)

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the items at `indices`."""
        at = indices.to(self.target.device)
        return {"input": self.input[at], "target": self.target[at]}


def _epochs(
    model: nn.Module,
    optimizer: Any,
    past: Past,
    items: Split | _Items,
    epochs: int,
    batch_size: int,
    name: str,
) -> None:
    """Make passes over items in a random order, in training mode.

    Order and dropout come from streams of their own, named by the run's seed: what a run draws
    elsewhere does not depend on whether and when this was called.
    """
    likelihood: Likelihood = past.heads()
    order = generator(past.seed, "vcl", name)
    devices = [past.device] if past.device.type == "cuda" else []
    mode = model.training
    model.train()
    optimizer.zero_grad()
    with torch.random.fork_rng(devices):
        torch.manual_seed(child_seed(past.seed, "vcl", name, "dropout"))
        for _ in range(epochs):
            for indices in torch.randperm(len(items), generator=order).split(batch_size):
                batch = items.batch(indices)
                x, y = past.to_model(batch["input"]), past.to_model(batch["target"])

                def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                    optimizer.zero_grad()
                    loss = likelihood.loss(model(x), y)
                    loss.backward()  # type: ignore[no-untyped-call]
                    return loss

                optimizer.step(closure)
    model.train(mode)
