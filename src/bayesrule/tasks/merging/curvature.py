"""Diagonal curvature of a network on data, and the folder that `bayesrule merge` takes.

Kinds are those of `bayesrule.merging.curvature_file`. All are sums: where n of N items are used,
N/n times their sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesrule.curvature import fisher_diag, ggn_diag, trainable
from bayesrule.data import Split
from bayesrule.errors import ConfigError
from bayesrule.merging import linear_grams, save_curvature
from bayesrule.merging.folders import SINGLE
from bayesrule.posteriors import DiagonalGaussian, Params, Posterior
from bayesrule.seeding import generator
from bayesrule.tasks.problem import Problem

__all__ = ["KINDS", "data_curvature", "export", "prior_precision"]

KINDS = ("ggn", "sampled", "observed", "gram", "posterior")


def data_curvature(
    problem: Problem, model: nn.Module, split: Split, kind: str, limit: int | None, name: str
) -> tuple[Params, int]:
    """Return the curvature of the summed loss of a split, and how many items were used.

    Args:
        problem: Gives batches, likelihood and the seed.
        model: The network; with respect to its trainable parameters.
        split: The data.
        kind: ``ggn``, ``sampled``, ``observed`` or ``gram``.
        limit: Items that are used at most, drawn by the seed; None: all.
        name: Name of the draws.
    """
    n, seed = len(split), problem.config["seed"]
    used = n if limit is None else min(n, limit)
    if used < n:
        drawn = torch.randperm(n, generator=generator(seed, "curvature", name))[:used]
        split = split.subset(drawn.sort().values)
    batches = problem.batches(split)
    if kind == "ggn":
        H = ggn_diag(model, problem.likelihood, batches)
    elif kind == "gram":
        H = linear_grams(model, (batch["input"] for batch in batches), trainable(model))
    else:
        labels = generator(seed, "labels", name) if kind == "sampled" else None
        H = fisher_diag(model, problem.likelihood, batches, generator=labels)
    return ({key: (n / used) * h for key, h in H.items()} if used < n else H), used


def export(
    problem: Problem,
    model: nn.Module,
    posterior: Posterior,
    out: Path,
    kind: str,
    limit: int | None,
) -> list[Path]:
    """Write a run's mean as a plain model folder, with its curvature beside it.

    Args:
        problem: The run's; curvature is that of its training data.
        model: The network at the mean.
        posterior: What the run learnt.
        out: The folder.
        kind: One of `KINDS`.
        limit: See `data_curvature`.

    Returns:
        The files.
    """
    from safetensors.torch import save_file

    data, n = problem.data, len(problem.data.train)
    if kind == "posterior":
        H, used = _learnt(posterior, problem.config["posterior"], n), n
    else:
        H, used = data_curvature(problem, model, data.train, kind, limit, "evaluate")
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in posterior.mean_state().items()}
    save_file(state, out / SINGLE, {"format": "pt"})
    about = {"name": data.name, "fingerprint": data.fingerprint}
    path = save_curvature(H, out, kind=kind, n_used=used, n_data=n, data=about)
    return [out / SINGLE, path, path.with_suffix(".json")]


def _learnt(posterior: Posterior, options: Mapping[str, Any], n_train: int) -> Params:
    """Return the precision that the optimiser learnt, less that of its prior."""
    prior = prior_precision(options, n_train)
    if not isinstance(posterior, DiagonalGaussian) or prior is None:
        raise ConfigError(
            "--curvature posterior needs a run that learnt a diagonal Gaussian with a prior "
            "(posterior=ivon, vogn or bbb); choose ggn, sampled or observed"
        )
    return {name: (s - prior).clamp_min(0.0) for name, s in posterior.precision.items()}


def prior_precision(options: Mapping[str, Any], n_train: int) -> float | None:
    """Return the precision of an optimiser's own prior; None where its options name none.

    It is ess times the weight decay for IVON, `prior_prec` for VOGN and BBB.

    Args:
        options: The ``posterior`` group.
        n_train: Training items.
    """
    if "ess_factor" in options and options.get("weight_decay") is not None:
        ess = options.get("ess") or options["ess_factor"] * n_train
        return float(ess) * float(options["weight_decay"])
    prior = options.get("prior_prec")
    return None if prior is None else float(prior)
