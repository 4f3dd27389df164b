"""The figures of the IVON paper that the studies allow, drawn from records."""

from __future__ import annotations

from pathlib import Path

from bayesrule.report import Records, comparison, ood_entropy, reliability, samples, training

__all__ = ["figures"]


def figures(records: Records, out: Path) -> None:
    """Draw reliability, samples, training curves, OOD entropy and comparisons.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for study in ("p2", "fashion", "cifar10-small", "cifar100-resnet18"):
        if study in studies:
            arms = ["adamw", "sgd", "ivon"]
            reliability(records, study, out, arms=arms)
            samples(records, study, out, arms=["ivon"])
            comparison(records, study, out)
    for study in ("p2", "fashion", "shakespeare", "cifar100-resnet18"):
        if study in studies:
            training(records, study, out)
    if "p2-baselines" in studies:
        comparison(records, "p2-baselines", out)
    if "fashion" in studies:
        ood_entropy(records, "fashion", out, arms=["sgd", "ivon"])
