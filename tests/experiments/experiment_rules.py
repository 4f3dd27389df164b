"""Which prediction rules a configuration's run is measured under, as far as its posterior tells."""

from __future__ import annotations

import typing
from typing import Any

from bayesrule.config import locate
from bayesrule.optim import PosteriorOptimizer


def is_optimiser(options: dict[str, Any]) -> bool:
    """Return whether the posterior is learnt by one training of one optimiser."""
    return issubclass(locate(options["_target_"]), PosteriorOptimizer)


def rules(config: dict[str, Any]) -> set[str]:
    """Return the rules ``test/nll@<rule>`` of a configuration."""
    if "posterior" not in config:  # adaptation of linear models: the exact solution
        return {"mean"}
    options, metrics = config["posterior"], config["metrics"]
    if options["_target_"].startswith("bayesrule.tasks.gp."):
        classes = config["data"]["n_outputs"] if config["data"]["kind"] == "classification" else 1
        draws = classes > 2 or config["task"]["likelihood"] == "softmax"
        return {"mean", f"mc{metrics['mc_samples']}" if draws else "quad"}
    found = {f"mc{metrics['mc_samples']}", *(f"mc{k}" for k in metrics["prefixes"])}
    if not options["_target_"].endswith("DeepEnsemble"):
        found.add("mean")
    if is_optimiser(options):
        family = typing.get_type_hints(locate(options["_target_"]).posterior)["return"]
        found |= {"mode"} if family.own_mode else set()
    return found | ({"lin"} if metrics["linearised"] else set())
