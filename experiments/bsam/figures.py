"""The figures of the bSAM paper that the studies allow, drawn from records."""

from __future__ import annotations

from pathlib import Path

from bayesrule.report import Records, comparison, reliability, samples, training
from bayesrule.report.drawing import PALETTE, canvas, legend_above, plain_axes, save

__all__ = ["figures"]


def figures(records: Records, out: Path) -> None:
    """Draw comparisons, reliability, training, the relaxed objective, and entropy in the plane.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    studies = records.studies()
    for study in ("digits", "fashion", "cifar10-resnet18", "tinyimagenet-resnet20"):
        if study in studies:
            comparison(records, study, out)
            reliability(records, study, out, arms=["sgd", "sam", "bsam"])
            samples(records, study, out, arms=["bsam", "bsam-untuned"])
    if "digits" in studies:
        training(records, "digits", out)
    if "relaxation" in studies:
        _objectives(records, out)
    if "moons" in studies:
        _plane(records, out)


def _objectives(records: Records, out: Path) -> None:
    """Bayes, relaxed and SAM objectives against the mean, for three losses (sec. 3)."""
    seeds = records.seeds("relaxation", "gaussian")[:3]
    names = ("loss", "bayes", "relaxed", "penalised")
    rows: list[list[object]] = []
    with canvas(2.6 * len(seeds) + 0.6, 2.6) as figure:
        every = figure.subplots(1, len(seeds), squeeze=False)[0]
        for axes, seed in zip(every, seeds, strict=True):
            curve = records.curve("relaxation", "gaussian", seed, "relaxation/objectives") or {}
            lines = [
                axes.plot(curve["mean"], curve[name], color=color, label=name)[0]
                for name, color in zip(names, ("#999999", *PALETTE), strict=False)
            ]
            rows += [
                [seed, m, *values]
                for m, *values in zip(curve["mean"], *(curve[n] for n in names), strict=True)
            ]
            plain_axes(axes, "mean m", "objective" if seed == seeds[0] else None)
        legend_above(figure, lines, ["loss at m", "Bayes", "relaxed", "SAM (penalised)"])
        save(figure, out, "relaxation-objectives", ["seed", "mean", *names], rows)


def _plane(records: Records, out: Path) -> None:
    """Predictive entropy in the plane, and the training points."""
    arms = records.arms("moons")
    rows: list[list[object]] = []
    with canvas(2.7 * len(arms) + 0.7, 2.7) as figure:
        every = figure.subplots(1, len(arms), squeeze=False)[0]
        for axes, arm in zip(every, arms, strict=True):
            seed = records.seeds("moons", arm)[0]
            rule = records.rule("moons", arm, "far/entropy")
            curve = records.curve("moons", arm, seed, f"grid/entropy@{rule}") or {}
            points = records.curve("moons", arm, seed, "grid/points") or {}
            axis, n = curve["axis"], len(curve["axis"])
            values = [curve["values"][i * n : (i + 1) * n] for i in range(n)]
            columns = list(zip(*values, strict=True))  # rows of the picture run along x2
            shown = axes.pcolormesh(axis, axis, columns, vmin=0.0, vmax=0.6932, cmap="viridis")
            for label, marker in ((0, "o"), (1, "s")):
                own = [
                    p
                    for p, t in zip(points["inputs"], points["targets"], strict=True)
                    if t == label
                ]
                axes.plot(*zip(*own, strict=True), marker, ms=2, color="white", alpha=0.8)
            axes.set_title(arm)
            axes.set_aspect("equal")
            plain_axes(axes, "x1", "x2" if arm == arms[0] else None)
            rows += [[arm, axis[i], axis[j], values[i][j]] for i in range(n) for j in range(n)]
        figure.colorbar(shown, ax=list(every), label="predictive entropy (nats)", shrink=0.85)
        save(figure, out, "moons-entropy", ["arm", "x1", "x2", "entropy"], rows)
