"""The figures of the FedLap paper that the studies allow, drawn from records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bayesrule.report import Records, label_mix, round_curves
from bayesrule.report.drawing import PALETTE, canvas, legend_above, plain_axes, save

__all__ = ["figures"]


def figures(records: Records, out: Path) -> None:
    """Draw networks by round and by bytes, who holds what, and the convex distances.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    for study in records.studies():
        if study == "convex":
            _distances(records, out)
        else:
            tuned = ("fedavg", "fedprox", "feddyn", "fedlap", "fedlap-cov", "fedlap-func")
            round_curves(records, study, out, arms=tuned)
            label_mix(records, study, out)


def _distances(records: Records, out: Path) -> None:
    """Relative distance to the joint solution by round, one seed."""
    seed = records.seeds("convex", "exact")[0]
    curves: Any = records.curve("convex", "exact", seed, "distance") or {}
    rows: list[list[object]] = []
    with canvas(5.2, 3.2) as figure:
        axes = figure.subplots()
        lines = []
        for i, (name, distances) in enumerate(curves.items()):
            x = range(1, len(distances) + 1)
            dash = "--" if name.startswith("fedlap_cov") else "-"
            lines += axes.plot(x, distances, dash, color=PALETTE[i % len(PALETTE)])
            rows += [[name, r, d] for r, d in zip(x, distances, strict=True)]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(5e-6, 3.0)
        plain_axes(axes, "round", "relative distance to the joint solution")
        legend_above(figure, lines, list(curves))
        save(figure, out, "convex-distance", ["method", "round", "distance"], rows)
