"""The figures of the VOGN paper that the studies allow, drawn from records."""

from __future__ import annotations

from pathlib import Path

from bayesrule.report import Records, comparison, ood_entropy, reliability, training

__all__ = ["figures"]


def figures(records: Records, out: Path) -> None:
    """Draw training curves, comparisons, reliability, OOD entropy and the ingredients.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for study in ("digits", "cifar10-alexnet", "cifar10-resnet18", "imagenet-resnet18"):
        if study in studies:
            comparison(records, study, out)
            reliability(records, study, out, arms=["adamw", "ogn", "bbb", "vogn"])
            training(records, study, out)
    if "momentum" in studies:
        training(records, "momentum", out, metrics=("train/epoch_loss", "test/acc@mean"))
        comparison(records, "momentum", out, metrics=("train/acc", "train/nll"), rules=("mean",))
    for study in ("ood", "cifar10-resnet18"):
        if study in studies:
            ood_entropy(records, study, out, arms=["adamw", "vogn"])
