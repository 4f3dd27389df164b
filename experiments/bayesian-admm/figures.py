"""The figures of the paper that the studies allow, drawn from records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bayesrule.report import Records, label_mix, round_curves
from bayesrule.report.drawing import PALETTE, canvas, legend_above, note_below, plain_axes, save

__all__ = ["figures"]


def figures(records: Records, out: Path) -> None:
    """Draw errors and bounds by round (fig. 3), site maps (fig. 4), networks by round and bytes.

    Args:
        records: The finished runs.
        out: Folder of the figures.
    """
    for study in records.studies():
        if study == "ridge":
            _lines(records, out, "ridge", "exact", "error", "relative error", first=1)
        elif study == "softmax":
            _lines(records, out, "softmax", "diagonal", "gap", "gap of the bound (nats per item)")
        elif study == "toy":
            _sites(records, out)
        else:
            round_curves(records, study, out)
            label_mix(records, study, out)


def _lines(
    records: Records, out: Path, study: str, arm: str, curve: str, label: str, first: int = 0
) -> None:
    """One line per method against rounds, of the first seed, on a logarithmic axis."""
    seed = records.seeds(study, arm)[0]
    curves: Any = records.curve(study, arm, seed, curve) or {}
    rows: list[list[object]] = []
    with canvas(5.2, 3.2) as figure:
        axes = figure.subplots()
        lines = []
        for i, (name, values) in enumerate(curves.items()):
            x = range(first, first + len(values))
            lines += axes.plot(x, values, "-" if i < 4 else "--", color=PALETTE[i % len(PALETTE)])
            rows += [[name, r, v] for r, v in zip(x, values, strict=True)]
        axes.set_yscale("log")
        if curve == "gap":
            axes.set_ylim(1e-2, 1e3)
        plain_axes(axes, "round", label)
        legend_above(figure, lines, list(curves))
        note_below(figure, f"seed {seed}")
        save(figure, out, f"{study}-{curve}", ["method", "round", curve], rows)


def _sites(records: Records, out: Path) -> None:
    """Standard deviation of the logit over the plane: both clients' sites and the server."""
    seed = records.seeds("toy", "full")[0]
    maps: Any = records.curve("toy", "full", seed, "toy/std") or {}
    points: Any = records.curve("toy", "full", seed, "toy/points") or []
    axis, n = maps["axis"], len(maps["axis"])
    titles = {"client0": "site of client 0", "client1": "site of client 1", "server": "server"}
    rows: list[list[object]] = []
    with canvas(8.4, 2.9) as figure:
        panels = figure.subplots(1, 3)
        for axes, (name, title) in zip(panels, titles.items(), strict=True):
            values = [maps[name][i * n : (i + 1) * n] for i in range(n)]
            shown = axes.pcolormesh(
                axis, axis, values, vmin=0.0, vmax=4.0, cmap="viridis", rasterized=True
            )
            for k, (inputs, labels) in enumerate(points):
                if name in (f"client{k}", "server"):
                    for label, marker in ((0, "o"), (1, "s")):
                        own = [p for p, t in zip(inputs, labels, strict=True) if t == label]
                        axes.plot(*zip(*own, strict=True), marker, ms=2, color="white", alpha=0.8)
            axes.set_title(title)
            axes.set_aspect("equal")
            plain_axes(axes, "x1", "x2" if name == "client0" else None)
            rows += [[name, axis[j], axis[i], values[i][j]] for i in range(n) for j in range(n)]
        figure.colorbar(shown, ax=panels, label="sd of the logit", shrink=0.85)
        note_below(figure, f"seed {seed}")
        save(figure, out, "toy-sites", ["site", "x1", "x2", "sd"], rows)
