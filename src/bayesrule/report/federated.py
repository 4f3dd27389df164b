"""Figures of federated runs: metrics against rounds and bytes, and who holds which labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from bayesrule.report.drawing import (
    Style,
    band,
    canvas,
    legend_above,
    metric_label,
    note_below,
    plain_axes,
    save,
    seeds_note,
)
from bayesrule.report.names import parse_name
from bayesrule.report.records import Records

__all__ = ["label_mix", "round_curves"]

MEGABYTE = 1e6


def round_curves(
    records: Records,
    study: str,
    out: Path,
    *,
    arms: Sequence[str] | None = None,
    metrics: Sequence[str] = ("test/acc@mean", "test/nll@mean"),
    labels: Mapping[str, str] | None = None,
    log: Sequence[str] = (),
) -> list[Path]:
    """Draw metrics of the server against rounds and against the megabytes sent so far.

    One row of panels per metric; bytes are those of all clients in both directions, averaged over
    seeds.

    Args:
        records: The runs.
        study: The study.
        out: Folder for the files.
        arms: Which arms; None: all.
        metrics: Names in the records' ``rounds``.
        labels: Names of arms for people.
        log: Metrics with a logarithmic axis.
    """
    style = Style(records, study, labels)
    rows: list[list[object]] = []
    chosen = records.arms(study, arms)
    with canvas(7.0, 2.6 * len(metrics) + 0.5) as figure:
        panels = figure.subplots(len(metrics), 2, squeeze=False, sharey="row")
        handles: dict[str, Any] = {}
        for arm in chosen:
            runs = [records.record(study, arm, seed).details["rounds"] for seed in
                    records.seeds(study, arm)]  # fmt: skip
            sent = _megabytes(runs)
            for (by_round, by_bytes), metric in zip(panels, metrics, strict=True):
                curve = band(_values(runs, metric))
                if not curve:
                    continue
                x, mean, low, high = zip(*curve, strict=True)
                look = {"color": style.color(arm), "ls": style.dashes(arm)}
                (handles[arm],) = by_round.plot(x, mean, **look)
                by_round.fill_between(x, low, high, color=style.color(arm), alpha=0.12, lw=0)
                by_bytes.plot([sent[r] for r in x], mean, **look)
                rows += [[metric, arm, int(r), sent[r], m, lo, hi] for r, m, lo, hi in curve]
        for (by_round, by_bytes), metric in zip(panels, metrics, strict=True):
            plain_axes(by_round, "round", metric_label(metric))
            plain_axes(by_bytes, "megabytes sent, both directions")
            by_round.set_title(f"at the {parse_name(metric).rule}")
            if metric in log:
                by_round.set_yscale("log")
        legend_above(figure, list(handles.values()), [style.label(arm) for arm in handles])
        note_below(figure, seeds_note([len(records.seeds(study, arm)) for arm in handles]))
        header = ["metric", "arm", "round", "megabytes", "mean", "low", "high"]
        return save(figure, out, f"{study}-rounds", header, rows)


def _values(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[float, list[float]]:
    values: dict[float, list[float]] = {}
    for run in runs:
        for r, value in run.get(metric, []):
            values.setdefault(float(r), []).append(float(value))
    return values


def _megabytes(runs: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    """Return the megabytes sent until each round, averaged over runs."""
    totals: dict[float, list[float]] = {}
    for run in runs:
        pairs = zip(run["comm/up"], run["comm/down"], strict=True)
        each = [(up[0], (up[1] + down[1]) / MEGABYTE) for up, down in pairs]
        for (r, _), total in zip(each, accumulate(mb for _, mb in each), strict=True):
            totals.setdefault(float(r), []).append(total)
    return {r: sum(values) / len(values) for r, values in totals.items()}


def label_mix(
    records: Records, study: str, out: Path, *, arm: str | None = None, seed: int | None = None
) -> list[Path]:
    """Draw how many items of each class every client holds, as stacked bars.

    Args:
        records: The runs.
        study: The study.
        out: Folder for the files.
        arm: Whose run; None: the first (all arms of a seed share the partition).
        seed: Which seed; None: the first.
    """
    arm = arm or records.arms(study)[0]
    seed = records.seeds(study, arm)[0] if seed is None else seed
    counts = records.record(study, arm, seed).details["clients"]["label_mix"]
    K, C = len(counts), len(counts[0])
    rows = [[k, c, counts[k][c]] for k in range(K) for c in range(C)]
    with canvas(max(3.6, 0.34 * K + 1.8), 2.8) as figure:
        import matplotlib as mpl

        axes = figure.subplots()
        colors = mpl.colormaps["tab20" if C > 10 else "tab10"]
        below = [0] * K
        for c in range(C):
            heights = [counts[k][c] for k in range(K)]
            axes.bar(range(K), heights, bottom=below, width=0.8, color=colors(c % 20), label=str(c))
            below = [b + h for b, h in zip(below, heights, strict=True)]
        plain_axes(axes, "client", "items")
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        if C <= 20:
            axes.legend(title="class", ncols=1 + C // 11, bbox_to_anchor=(1.01, 1), fontsize=7)
        note_below(figure, f"seed {seed}")
        return save(figure, out, f"{study}-clients", ["client", "class", "items"], rows)
