"""What a run leaves beside its metrics, as tables and figures for other loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesrule.config import Config
from bayesrule.report.names import parse_name, sort_names
from bayesrule.runs import RunFolder, RunRecord

__all__ = ["Table", "run_figures", "run_tables"]

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Column titles, and rows as long."""

_MOST_ROWS = 10_000


def run_tables(metrics: Mapping[str, float], details: Mapping[str, Any]) -> dict[str, Table]:
    """Return the final metrics, every stored curve and every matrix of a stream as tables.

    Args:
        metrics: The run's final metrics.
        details: The record's further data.

    Returns:
        Tables by name. A curve's columns are its fields of one length; curves of another form
        (grids, pictures) are left out.
    """
    rows = [[*parse_name(name), float(metrics[name])] for name in sort_names(metrics)]
    tables: dict[str, Table] = {"metrics": (["split", "metric", "rule", "value"], rows)}
    for name, curve in details.get("curves", {}).items():
        if (table := _curve_table(curve)) is not None:
            tables[name] = table
    for name, matrix in details.get("continual", {}).get("matrices", {}).items():
        columns = ["after task", *(f"task {j + 1}" for j in range(len(matrix)))]
        tables[f"matrix/{name}"] = (columns, [[t + 1, *row] for t, row in enumerate(matrix)])
    return tables


def _curve_table(curve: Any) -> Table | None:
    """Return a curve as columns (fields of one length) or as rows of pairs; None for others."""
    if isinstance(curve, Mapping) and curve.keys() >= {"counts", "sum_conf", "sum_acc"}:
        return _reliability_table(curve)
    if isinstance(curve, Mapping) and curve.keys() == {"counts"}:
        matrix = curve["counts"]  # confusion: rows are the truth
        names = ["true class", *(f"chosen {k}" for k in range(len(matrix)))]
        return names, [[k, *row] for k, row in enumerate(matrix)]
    if isinstance(curve, Mapping):
        columns = {k: v for k, v in curve.items() if isinstance(v, list) and _is_flat(v)}
        lengths = {len(values) for values in columns.values()}
        if len(columns) != len(curve) or len(lengths) != 1 or max(lengths) > _MOST_ROWS:
            return None
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
    if (
        isinstance(curve, list)
        and curve
        and all(isinstance(r, list) and _is_flat(r) for r in curve)
    ):
        width = len(curve[0])
        if len(curve) <= _MOST_ROWS and all(len(row) == width for row in curve):
            names = ["x", "value"] if width == 2 else [f"column {i + 1}" for i in range(width)]
            return names, curve
    return None


def _is_flat(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, (list, Mapping)) for value in values)


def _reliability_table(curve: Mapping[str, Any]) -> Table:
    """Return bins with their mean confidence and accuracy; an empty bin has neither."""
    m = len(curve["counts"])
    rows = []
    for b, n in enumerate(curve["counts"]):
        conf, acc = (curve[f][b] / n if n else None for f in ("sum_conf", "sum_acc"))
        rows.append([b / m, (b + 1) / m, n, conf, acc])
    return ["bin_low", "bin_high", "count", "confidence", "accuracy"], rows


def run_figures(
    folder: RunFolder,
    config: Config,
    metrics: Mapping[str, float],
    details: Mapping[str, Any],
    out: Path,
) -> dict[str, Path]:
    """Draw training curves, reliability diagrams, entropies and matrices of one run.

    Args:
        folder: The run's folder, for its history.
        config: The run's configuration.
        metrics: The run's final metrics.
        details: The record's further data.
        out: Folder for the files.

    Returns:
        PNG files by name; what a run has no data for is left out.
    """
    from bayesrule.report import ood_entropy, reliability, stream_matrix, training
    from bayesrule.report.records import Records

    record = RunRecord(folder.id, "done", dict(metrics), config=config, details=dict(details))
    records = Records.of(record, folder.path.parent)
    study, rules = records.studies()[0], ("mean", "mc")
    drawings: dict[str, Callable[[], list[Path]]] = {
        "training": lambda: training(records, study, out, name="training"),
        "reliability": lambda: reliability(records, study, out, rules=rules, name="reliability"),
        "ood_entropy": lambda: ood_entropy(records, study, out, name="ood_entropy"),
        "matrix": lambda: stream_matrix(records, study, out, name="matrix"),
    }
    drawn = {}
    for name, draw in drawings.items():
        paths = [path for path in draw() if path.suffix == ".png"]
        if paths:
            drawn[name] = paths[0]
    return drawn
