"""The steps of an adaptation: base model, change, learning anew, a method at several memories.

::

    w*      = argmin of the past objective                            phase base
    w_batch = argmin of the changed objective with all data           phase batch
    w_q     = argmin of the method's, with a memory of part q         phase m<q>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesrule.corrections.k_prior import DataTerm
from bayesrule.corrections.selection import Strategy, lambda_trace, select
from bayesrule.data import DataBundle
from bayesrule.posteriors import Params
from bayesrule.posteriors.params import flatten
from bayesrule.seeding import generator
from bayesrule.tasks.adaptation.data import ChangedBy, Items, Kind, changed_items
from bayesrule.tasks.adaptation.learners import Learner, LinearLearner
from bayesrule.tasks.adaptation.methods import (
    Change,
    MemoryWeight,
    Method,
    objective_of,
    regulariser,
)
from bayesrule.tasks.adaptation.objective import WEIGHT, Objective, gradient

__all__ = [
    "Asked",
    "Fitted",
    "Setting",
    "adapt",
    "beside",
    "chosen",
    "gradient_error",
    "scores",
    "setting",
]

_SHOWN = 10  # examples of each label that a record keeps for its picture
_SHOWN_PIXELS = 1024


@dataclass(frozen=True)
class Asked:
    """What is asked for, from the task's options.

    Attributes:
        kind: ``add``, ``remove``, ``regulariser`` or ``model``.
        changed_by: ``class``, ``random`` or ``lambda_descend``.
        changed_class: See `changed_items`.
        changed_fraction: See `changed_items`.
        old: delta.
        new: delta'.
        weight_term: Whether a new model is pulled towards the part that it shares.
        seed: The run's seed.
    """

    kind: Kind
    changed_by: ChangedBy
    changed_class: int
    changed_fraction: float
    old: float
    new: float
    weight_term: bool
    seed: int


@dataclass(frozen=True)
class Fitted:
    """Weights of a learner, and what they minimise (None: they are the base model's)."""

    learner: Learner
    weights: Params
    objective: Objective | None


@dataclass(frozen=True)
class Setting:
    """The base model and the change.

    Attributes:
        base: The base model.
        learner: Of the model to be learnt.
        change: What is asked for, in that model's inputs.
        kept: Past items that stay, as the data set has them.
        kept_inputs: The base model's inputs of these.
        test: Test items, as the data set has them.
    """

    base: Fitted
    learner: Learner
    change: Change
    kept: Items
    kept_inputs: Tensor
    test: Items

    def indices(self, strategy: Strategy, part: float, seed: int) -> Tensor:
        """Return the positions of a memory among the kept items.

        round(part * N) items, class-balanced over what is predicted, chosen by the base model;
        random and k-centre draw from a stream of the run's seed, so that parts are comparable.
        """
        return select(
            strategy,
            round(part * len(self.kept)),
            target=self.kept.label,
            logits=self.base.learner.outputs(self.base.weights, self.kept_inputs).cpu(),
            features=self.kept_inputs.flatten(1).cpu(),
            prior_prec=self.change.old,
            generator=generator(seed, "memory"),
        )


def setting(
    asked: Asked, old: Learner, new: Learner, train: Items, test: Items, data: DataBundle
) -> Setting:
    """Learn the base model and put the change together.

    Args:
        asked: The change.
        old: Learns the base model.
        new: Learns the changed one; `old` itself but for another model.
        train: Training items as the data set has them.
        test: Test items.
        data: Where they are from.
    """
    changed = torch.zeros(len(train), dtype=torch.bool)
    if asked.kind in ("add", "remove") and asked.changed_by != "lambda_descend":
        changed = changed_items(
            train, asked.changed_by, asked.changed_class, asked.changed_fraction, asked.seed, data
        )
    past = train.at(~changed) if asked.kind == "add" else train
    past_in = past.through(old.features)
    start = old.start()
    likelihood = old.likelihood
    objective = Objective(
        (DataTerm.of_labels(past_in.input, past_in.label),),
        regulariser(start, asked.old),
        likelihood,
    )
    base = Fitted(old, old.fit(objective, start, "base"), objective)
    outputs = old.outputs(base.weights, past_in.input)
    if asked.changed_by == "lambda_descend" and asked.kind == "remove":
        count = max(1, round(asked.changed_fraction * len(train)))
        changed[lambda_trace(outputs).cpu().argsort(descending=True, stable=True)[:count]] = True
    kept = ~changed if asked.kind == "remove" else torch.ones(len(past), dtype=torch.bool)
    shared, first = _shared(asked, base.weights, new)
    change = Change(
        kept=past.at(kept).through(new.features),
        kept_outputs=outputs[kept],
        added=_some(train, changed, asked.kind == "add").through(new.features),
        removed=_some(train, changed, asked.kind == "remove").through(new.features),
        removed_outputs=outputs[~kept],
        start=first,
        shared=shared,
        old=asked.old,
        new=asked.new,
        likelihood=likelihood,
    )
    if asked.kind == "remove" and asked.changed_by == "class":
        test = test.at(test.of_class != asked.changed_class)
    return Setting(base, new, change, past.at(kept), past_in.input[kept], test)


def _some(items: Items, where: Tensor, wanted: bool) -> Items:
    return items.at(where if wanted else torch.zeros_like(where))


def _shared(asked: Asked, base: Params, new: Learner) -> tuple[Params | None, Params]:
    """Return the weights that the new model shares with the old one, and where it starts."""
    if asked.kind != "model":
        return base, base
    fresh = new.start()
    if not isinstance(new, LinearLearner) or not asked.weight_term:
        return None, fresh
    block = {WEIGHT: base[WEIGHT][:, : fresh[WEIGHT].shape[1]].clone()}
    return block, block


# ------------------------------------------------------------------------------ measures


def scores(prefix: str, learner: Learner, weights: Params, test: Items) -> dict[str, float]:
    """Return accuracy and NLL on the test items, under `prefix`."""
    outputs = learner.outputs(weights, learner.features(test.input))
    log_probs_NK = learner.likelihood.log_probs(outputs).double().cpu()
    rows = torch.arange(len(test))
    right = log_probs_NK.argmax(-1) == test.label
    return {
        f"{prefix}/acc@mean": float(right.double().mean()),
        f"{prefix}/nll@mean": -float(log_probs_NK[rows, test.label].mean()),
    }


def beside(prefix: str, weights: Params, batch: Params) -> dict[str, float]:
    """Return |w| / |w_batch| and |w - w_batch| / |w_batch|."""
    w, reference = flatten(weights).double(), flatten(batch).double()
    scale = float(reference.norm())
    return {
        f"{prefix}/norm_ratio": float(w.norm()) / scale,
        f"{prefix}/distance": float((w - reference).norm()) / scale,
    }


def gradient_error(prefix: str, own: Objective, change: Change, batch: Params) -> dict[str, float]:
    """Return |grad L(w_batch)| over the norm of the change's own gradient there.

    The whole gradient is 0 at w_batch if the past is reconstructed exactly: what is left is the
    reconstruction's error. Another model has no gradient of the change to compare with.
    """
    W = batch[WEIGHT]
    parts = [
        DataTerm.of_labels(items.input, items.label)
        for items in (change.added, change.removed)
        if len(items)
    ]
    alone = sum(
        (t.residual(t.input @ W.mT, change.likelihood).mT @ t.input for t in parts),
        (change.new - change.old) * W,
    )
    scale = float(alone.norm())
    if scale == 0.0:
        return {}
    return {f"{prefix}/gradient_error": float(gradient(own, W).norm()) / scale}


def chosen(own: Setting, indices: Tensor) -> dict[str, Any]:
    """Return a few examples of the memory, the first choices of each label, for a picture."""
    if own.kept.input[0].numel() > _SHOWN_PIXELS:
        return {}
    labels = own.kept.label[indices]
    shown = [indices[labels == k][:_SHOWN] for k in labels.unique().tolist()]
    if not shown:
        return {}
    rows = torch.cat(shown)
    items = own.kept.at(rows)
    return {
        "memory/examples": {
            "shape": list(items.input.shape[1:]),
            "inputs": [[round(float(v), 3) for v in x.flatten()] for x in items.input],
            "labels": items.label.tolist(),
            "classes": items.of_class.tolist(),
        }
    }


def adapt(
    own: Setting,
    method: Method,
    parts: Sequence[float],
    batch: Params,
    *,
    strategy: Strategy,
    seed: int,
    memory_weight: MemoryWeight,
    temperature: float,
    after: Callable[[], None],
) -> tuple[Fitted, dict[str, float], dict[str, Any]]:
    """Fit a method at several memories.

    Args:
        own: The setting.
        method: One with an objective of its own.
        parts: Of the past that stay; the first one is the main one.
        batch: w_batch.
        strategy: Of the selection.
        seed: The run's seed.
        memory_weight: See `objective_of`.
        temperature: Likewise.
        after: Called after every fit.

    Returns:
        The main fit, metrics, and curves for figures.
    """
    main: Fitted | None = None
    metrics: dict[str, float] = {}
    curves: dict[str, Any] = {}
    for part in dict.fromkeys(parts):
        prefix = f"m{part:g}"
        indices = own.indices(strategy, part, seed)
        objective = objective_of(
            method, own.change, indices, memory_weight=memory_weight, temperature=temperature
        )
        weights = own.learner.fit(objective, own.change.start, prefix)
        metrics |= scores(prefix, own.learner, weights, own.test)
        metrics |= beside(prefix, weights, batch) | {f"{prefix}/size": float(len(indices))}
        if isinstance(own.learner, LinearLearner):
            metrics |= gradient_error(prefix, objective, own.change, batch)
        if main is None:
            main, curves = Fitted(own.learner, weights, objective), chosen(own, indices)
        after()
    assert main is not None
    return main, metrics, curves
