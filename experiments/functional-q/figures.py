"""The figures of the paper that the studies allow, drawn from records."""

from __future__ import annotations

import math
from pathlib import Path

from bayesrule.report import Records, comparison, sample_efficiency
from bayesrule.report.drawing import canvas, note_below, save

__all__ = ["figures"]

LABELS = {
    "none": "no target",
    "tn": "TN",
    "fr": "FR",
    "tn-100": "TN, T=100",
    "tn-500": "TN, T=500",
    "tn-2000": "TN, T=2000",
    "polyak": "TN, Polyak",
    "fr0.25-100": "FR(0.25), T=100",
    "fr-100": "FR(0.5), T=100",
    "fr1-100": "FR(1), T=100",
    "fr-500": "FR(0.5), T=500",
    "fr-2000": "FR(0.5), T=2000",
    "fr1-500": "FR(1), T=500",
    "fr1-2000": "FR(1), T=2000",
    "both-500": "TN + FR(0.5), T=500",
}
METHODS = {"td": "TD(0)", "tn": "target network", "fr": "functional regularisation"}


def figures(records: Records, out: Path) -> None:
    """Draw convergence disks, learning curves and comparisons.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    if "linear" in studies:
        disks(records, out)
    for study, curves in (
        ("four-rooms", {"train/return": "return", "q/log_mse": "log MSE to Q*"}),
        ("cartpole", {"train/return": "return", "q/max": "mean of max Q"}),
    ):
        for curve, label in curves.items():
            if study in studies:
                name = f"{study}-{curve.replace('/', '-')}"
                sample_efficiency(
                    records, [study], out, curve=curve, ylabel=label, labels=LABELS, name=name
                )
    both = [study for study in ("cartpole", "acrobot") if study in studies]
    if len(both) == 2:
        sample_efficiency(records, both, out, labels=LABELS, name="control-efficiency")
    games = [study for study in studies if study.startswith("atari-")]
    if games:
        sample_efficiency(records, games, out, labels=LABELS, name="atari-efficiency")
    for study in ("four-rooms", "four-rooms-kappa"):
        if study in studies:
            measured = ("test/return@mean", "q/log_mse", "replay/rewarded")
            comparison(records, study, out, metrics=measured, labels=LABELS)
    for study in ("cartpole", "acrobot"):
        if study in studies:
            measured = ("train/auc", "train/last20", "q/max")
            comparison(records, study, out, metrics=measured, labels=LABELS)


def disks(records: Records, out: Path) -> None:
    """Draw the stability of all two-state problems: angle the feature, radius the distribution.

    Colour: spectral radius per update, with one (neither stable nor unstable) in the middle; the
    circle is the on-policy distribution.
    """
    seeds = records.seeds("linear", "disks")
    maps = None if not seeds else records.curve("linear", "disks", seeds[0], "disks")
    if maps is None:
        return
    rows = []
    with canvas(8.4, 3.3) as figure:
        panels = figure.subplots(1, 3, subplot_kw={"projection": "polar"})
        for axes, (name, title) in zip(panels, METHODS.items(), strict=True):
            grid = maps[name]
            size = len(grid)
            edges = [2.0 * math.pi * i / size for i in range(size + 1)]
            radii = [i / size for i in range(size + 1)]
            by_radius = [list(column) for column in zip(*grid, strict=True)]
            colours = axes.pcolormesh(
                edges, radii, by_radius, cmap="RdBu_r", vmin=0.9999, vmax=1.0001, rasterized=True
            )
            axes.plot(edges, [0.5] * len(edges), color="black", linewidth=0.8)
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            rows += [
                (name, edges[i], radii[j], grid[i][j]) for i in range(size) for j in range(size)
            ]
        bar = figure.colorbar(colours, ax=panels, shrink=0.75, extend="both")
        bar.set_ticks([0.9999, 1.0, 1.0001], labels=["0.9999", "1", "1.0001"])
        bar.set_label("spectral radius per update")
        note_below(figure, "angle: the feature; radius: probability of the first state")
        header = ["method", "angle", "radius", "spectral_radius"]
        save(figure, out, "convergence-disks", header, rows)
