"""Tables for people: one run's metrics, and a sweep's runs side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from bayesrule.report.names import (
    curated,
    headline_metrics,
    is_part,
    largest_mc,
    parse_name,
    rule_order,
    sort_names,
)
from bayesrule.report.text import columns_text, format_number, format_spread, one_line
from bayesrule.runs import RunRecord

__all__ = ["SweepRow", "metrics_table", "sweep_table"]

SweepRow = tuple[Mapping[str, str], RunRecord | str]
"""What varied (key -> value) and the run's record, or its status if there is none."""


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Return one run's metrics: a row per `<split>/<metric>`, a column per prediction rule.

    Of the rules `mc<K>` only the largest K is shown, of the metrics only the best known, and of a
    stream not every task; the last line says how many there are besides.

    Args:
        metrics: Values by name, `<split>/<metric>@<rule>`.
    """
    if not metrics:
        return "no metrics"
    parts = {name: parse_name(name) for name in sort_names(metrics)}
    rules = {part.rule for part in parts.values()}
    largest = largest_mc(rules)
    shown = [rule for rule in sorted(rules, key=rule_order) if rule[:2] != "mc" or rule == largest]
    table: list[list[str]] = []
    n_shown = 0
    for split in dict.fromkeys(part.split for part in parts.values() if not is_part(part.split)):
        own = {
            (part.metric, part.rule): name for name, part in parts.items() if part.split == split
        }
        rows = []
        for metric in curated(metric for metric, _ in own):
            names = [own.get((metric, rule)) for rule in shown]
            n_shown += sum(name is not None for name in names)
            if any(names):
                cells = [format_number(metrics[name]) if name else "" for name in names]
                rows.append([f"{split}/{metric}" if split else metric, *cells])
        table += [[], *rows] if table and rows else rows
    header = ["metric", *(f"@{rule}" if rule else "value" for rule in shown)]
    text = columns_text(header, table)
    more = len(metrics) - n_shown
    return f"{text}\n{more} more in the run's record" if more else text


def _summary_columns(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return the columns (`<split>/<metric>`, rule); the rule `mc` is each record's largest."""
    names = dict.fromkeys(name for record in records for name in record.metrics)
    split, metrics = headline_metrics(names)
    parts = [parse_name(name) for name in names]
    columns: list[tuple[str, str]] = []
    for metric in metrics:
        rules = {part.rule for part in parts if (part.split, part.metric) == (split, metric)}
        columns += [(f"{split}/{metric}", rule) for rule in ("", "mean") if rule in rules]
        if largest_mc(rules):
            columns.append((f"{split}/{metric}", "mc"))
    return columns


def _rule_of(record: RunRecord, stem: str, rule: str) -> str:
    if rule != "mc":
        return rule
    heads = (name.partition("@") for name in record.metrics)
    return largest_mc(found for head, _, found in heads if head == stem) or rule


def _value(record: RunRecord, stem: str, rule: str) -> float | None:
    found = _rule_of(record, stem, rule)
    return record.metrics.get(f"{stem}@{found}" if found else stem)


def _title(records: Sequence[RunRecord], stem: str, rule: str) -> str:
    """Return a column's title; `mc*` where runs differ in their largest K."""
    found = {_rule_of(record, stem, rule) for record in records} - {"mc"}
    label = found.pop() if len(found) == 1 else f"{rule}*" if rule == "mc" else rule
    return f"{stem}@{label}" if label else stem


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """Return a sweep's runs, one line per setting, averaged over `seed` if it varies.

    Cells are mean ± standard deviation over the finished runs of the line. Accuracy, NLL and ECE
    (or what stands for them in other tasks) are shown at the mean and at the largest `mc<K>`, and
    last the median wall time of a training epoch.

    Args:
        rows: For each run the varied keys with their values, and its record; or, for a run without
            a record, its status.

    Raises:
        ValueError: If rows differ in their keys.
    """
    if not rows:
        return "no runs"
    keys = list(rows[0][0])
    if any(set(labels) != set(keys) for labels, _ in rows):
        raise ValueError("all rows of a sweep vary the same keys")
    fixed = [key for key in keys if key != "seed"]
    groups: dict[tuple[str, ...], list[RunRecord | str]] = {}
    for labels, outcome in rows:
        groups.setdefault(tuple(str(labels[key]) for key in fixed), []).append(outcome)
    done = [outcome for _, outcome in rows if _is_done(outcome)]
    columns = _summary_columns(done)
    timed = any(_seconds(record) is not None for record in done)
    header = [*fixed, "runs", *(_title(done, *column) for column in columns)]
    header += ["s/epoch"] if timed else []
    table = [
        [*labels, *_sweep_cells(runs, columns), *([_time_cell(runs)] if timed else [])]
        for labels, runs in groups.items()
    ]
    if not columns:
        header.append("status")
        for line, runs in zip(table, groups.values(), strict=True):
            line.append(", ".join(dict.fromkeys(map(_status, runs))))
    text = columns_text(header, table, left=range(len(fixed)))
    averaged = len(done) > len(groups) or any(len(runs) > 1 for runs in groups.values())
    return f"{text}\nmean ± standard deviation over runs" if averaged and columns else text


def _status(outcome: RunRecord | str) -> str:
    return one_line(outcome) if isinstance(outcome, str) else outcome.status


def _is_done(outcome: RunRecord | str) -> TypeGuard[RunRecord]:
    return isinstance(outcome, RunRecord) and outcome.status == "done"


def _seconds(record: RunRecord) -> float | None:
    value = record.details.get("seconds_per_epoch")
    return float(value) if isinstance(value, int | float) else None


def _time_cell(outcomes: Sequence[RunRecord | str]) -> str:
    """Return the median wall time of a training epoch over runs, in seconds."""
    times = [_seconds(outcome) for outcome in outcomes if _is_done(outcome)]
    known = [seconds for seconds in times if seconds is not None]
    return f"{statistics.median(known):.3g}" if known else ""


def _sweep_cells(
    outcomes: Sequence[RunRecord | str], columns: Sequence[tuple[str, str]]
) -> list[str]:
    """Return the number of runs, what became of the others, and a cell per column."""
    done = [outcome for outcome in outcomes if _is_done(outcome)]
    lost = [_status(outcome) for outcome in outcomes if not _is_done(outcome)]
    counts = [f"{lost.count(status)} {status}" for status in dict.fromkeys(lost)]
    cells = [", ".join([str(len(done)), *counts] if done else counts)]
    for stem, rule in columns:
        values = [_value(record, stem, rule) for record in done]
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        strange = [value for value in values if value is not None and not math.isfinite(value)]
        if not done:
            cells.append(lost[0])
        elif strange:
            cells.append(f"{format_spread(finite)} ({len(strange)} not finite)".strip())
        else:
            cells.append(format_spread(finite))
    return cells
