"""The figures of the FROMP paper that the studies allow, drawn from records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bayesrule.report import (
    Records,
    boundaries,
    memory_curve,
    stream_curves,
    stream_matrix,
)
from bayesrule.report.drawing import canvas, note_below, save

__all__ = ["figures"]

LABELS = {
    "sequential": "no correction",
    "ewc": "EWC",
    "si": "SI",
    "er": "replay",
    "vcl": "VCL",
    "joint": "joint",
    "separate": "separate",
    "fromp": "FROMP",
    "fromp-l2": "FROMP-L2",
    "frorp": "FRORP",
    "frorp-l2": "FRORP-L2",
    "least": "least memorable",
}
BASELINES = ("sequential", "ewc", "si", "er", "vcl", "joint", "fromp")
VARIANTS = ("fromp", "frorp", "fromp-l2", "frorp-l2")
MATRICES = ("sequential", "ewc", "er", "fromp")
STREAMS = (
    "permuted",
    "parity",
    "multihead-4",
    "multihead-40",
    "permuted-mnist",
    "split-mnist",
    "split-cifar",
)


def figures(records: Records, out: Path) -> None:
    """Draw matrices, accuracy over the stream and over memory sizes, boundaries, digits.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for study in STREAMS:
        if study in studies:
            stream_matrix(records, study, out, arms=MATRICES, labels=LABELS)
            stream_curves(records, study, out, arms=BASELINES, labels=LABELS)
            if set(records.arms(study, VARIANTS)) > {"fromp"}:
                name = f"{study}-variants"
                arms = (*VARIANTS, "least")
                stream_curves(records, study, out, arms=arms, labels=LABELS, name=name)
    for study in ("memory", "memory-split-mnist"):
        if study in studies:
            memory_curve(records, study, out, series=_series(records.arms(study)))
    for study in ("toy", "toy-full"):
        if study in studies:
            boundaries(records, study, out, labels=LABELS)
    if "memorable" in studies:
        memorable(records, out)


def _series(arms: Iterable[str]) -> dict[str, dict[float, str]]:
    """Return method -> size -> arm, of arms named ``<method>-<size>``."""
    found: dict[str, dict[float, str]] = {}
    for arm in arms:
        method, _, size = arm.rpartition("-")
        found.setdefault(LABELS[method], {})[float(size)] = arm
    return found


def memorable(records: Records, out: Path) -> None:
    """Draw the most and the least memorable digits of each class, of one seed."""
    study = "memorable"
    arm = records.arms(study)[0]
    seed, kept = next(iter(records.curves(study, arm, "memorable/pictures").items()))
    classes = sorted({row["class"] for row in kept["most"]})
    shown = max(sum(row["class"] == c for row in kept["most"]) for c in classes)
    rows = []
    with canvas(0.62 * len(classes) + 0.6, 0.62 * 2 * shown + 0.9) as figure:
        parts = figure.subfigures(2, 1)
        for part, (name, pictures) in zip(parts, kept.items(), strict=True):
            part.suptitle(f"{name} memorable")
            panels = part.subplots(shown, len(classes), squeeze=False)
            for axes in panels.flat:
                axes.set_axis_off()
            for column, c in enumerate(classes):
                own = [row for row in pictures if row["class"] == c]
                for rank, row in enumerate(own):
                    panels[rank][column].imshow(row["pixels"], cmap="gray_r", vmin=0, vmax=99)
                    rows.append((name, seed, c, rank + 1, row["item"], row["score"]))
        note_below(figure, "one seed; by tr Λ of the network that has learnt them")
        header = ["kind", "seed", "class", "rank", "item", "score"]
        save(figure, out, "memorable-digits", header, rows)
