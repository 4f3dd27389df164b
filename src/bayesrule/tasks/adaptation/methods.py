"""The objective of each method of knowledge adaptation (Khan and Swaroop, 2021).

With l over labels, K of `bayesrule.corrections.k_prior`, delta the old and delta' the new strength
of the regulariser, M a memory of the past items that stay::

    k_prior          +- sum_{D+-} l(y, f)  +  K(w)  - delta/2 |w|^2  + delta'/2 |w|^2
    functional_only  the same without the pull towards w*: soft labels + delta'/2 |w|^2
    weight_only      the same with no memory (removal: of D- alone, which it cannot do without)
    replay           sum_{D+} l(y, f) + sum_M s l(y, f)  +  delta'/2 |w|^2
    batch            sum over all that is wanted of l(y, f)  +  delta'/2 |w|^2
    frozen           w* as it is

On removal the memory of a K-prior holds D- besides M, with weight 1: what is taken away enters as
-l(y, f) + l(h(f*), f), linear in f. Replay never sees D-. With a new model g(u) the soft labels
are f's; u is pulled towards the part of w* that both models share, or towards 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesrule.corrections import Memory
from bayesrule.corrections.k_prior import DataTerm, KPrior, exchange_prior
from bayesrule.corrections.quadratic import QuadraticAnchor
from bayesrule.likelihoods import Likelihood
from bayesrule.posteriors import Params
from bayesrule.tasks.adaptation.data import Items
from bayesrule.tasks.adaptation.objective import Objective

__all__ = ["Change", "MemoryWeight", "Method", "objective_of", "regulariser", "uses_memory"]

Method = Literal["k_prior", "replay", "functional_only", "weight_only", "batch", "frozen"]
MemoryWeight = Literal["one", "ratio"]


@dataclass(frozen=True)
class Change:
    """An adaptation that is asked for.

    Attributes:
        kept: Past items that stay, with the inputs of the model that is to be learnt.
        kept_outputs: f(w*) of the past model at them.
        added: D+, or no items.
        removed: D-, or no items.
        removed_outputs: f(w*) at D-.
        start: Where a search begins: w*, its shared part, or fresh weights.
        shared: The past weights that the new model has too, or None: no weight term.
        old: delta.
        new: delta'.
        likelihood: Links outputs to labels.
    """

    kept: Items
    kept_outputs: Tensor
    added: Items
    removed: Items
    removed_outputs: Tensor
    start: Params
    shared: Params | None
    old: float
    new: float
    likelihood: Likelihood

    def memory(self, indices: Tensor) -> Memory:
        """Return the kept items at `indices` with the past model's outputs."""
        own = self.kept.at(indices)
        return Memory(own.input, own.label, (), self.kept_outputs[indices])


def uses_memory(method: Method) -> bool:
    """Return whether a method's answer depends on which past items are kept."""
    return method in ("k_prior", "replay", "functional_only")


def regulariser(weights: Params, strength: float) -> QuadraticAnchor:
    """Return delta/2 |w|^2."""
    return QuadraticAnchor({name: torch.zeros_like(w) for name, w in weights.items()}, strength)


def _pull(change: Change) -> QuadraticAnchor:
    """Return delta/2 |w - w*|^2 with the regulariser exchanged."""
    if change.shared is None:
        return regulariser(change.start, change.new)
    return exchange_prior(QuadraticAnchor(change.shared, change.old), change.old, change.new)


def _labels(items: Items, weight: float = 1.0) -> tuple[DataTerm, ...]:
    return (DataTerm.of_labels(items.input, items.label, weight),) if len(items) else ()


def objective_of(
    method: Method,
    change: Change,
    indices: Tensor,
    *,
    memory_weight: MemoryWeight = "one",
    temperature: float = 1.0,
) -> Objective:
    """Return what a method minimises.

    Args:
        method: Any but ``frozen``.
        change: What is asked for.
        indices: The memory: positions among the kept items; used where `uses_memory`.
        memory_weight: ``one``, or ``ratio``: kept items per memory item (D- keeps weight 1).
        temperature: Of soft labels.
    """
    zero = regulariser(change.start, change.new)
    if method == "batch":
        return Objective((*_labels(change.added), *_labels(change.kept)), zero, change.likelihood)
    ratio = len(change.kept) / max(len(indices), 1) if memory_weight == "ratio" else 1.0
    if method == "replay":
        terms = (*_labels(change.added), *_labels(change.kept.at(indices), ratio))
        return Objective(terms, zero, change.likelihood)
    prior = k_prior_of(change, indices, ratio, temperature)
    if method == "functional_only":
        prior = prior.functional_only()
    if method == "weight_only":
        prior = KPrior(_removed(change, temperature), prior.anchor, prior.likelihood)
    terms = (*_labels(change.added), *_labels(change.removed, -1.0), *prior.terms)
    return Objective(terms, prior.anchor or zero, change.likelihood)


def k_prior_of(change: Change, indices: Tensor, weight: float, temperature: float) -> KPrior:
    """Return K(w): soft labels at the memory (and D-), and the pull towards w*."""
    memory = DataTerm.of_memory(change.memory(indices), change.likelihood, weight, temperature)
    terms = ((memory,) if len(memory) else ()) + _removed(change, temperature)
    return KPrior(terms, _pull(change), change.likelihood)


def _removed(change: Change, temperature: float) -> tuple[DataTerm, ...]:
    if not len(change.removed):
        return ()
    gone = change.removed
    memory = Memory(gone.input, gone.label, (), change.removed_outputs)
    return (DataTerm.of_memory(memory, change.likelihood, 1.0, temperature),)
