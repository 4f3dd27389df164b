"""Metric names `<split>/<metric>@<rule>`: taken apart, ordered and chosen for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "MetricName",
    "headline_columns",
    "headline_metrics",
    "largest_mc",
    "parse_name",
    "rule_order",
    "sort_names",
]

_METRICS = (
    *("acc", "top5", "rmse", "nll", "nll_mm", "perplexity", "bits", "ece", "ece20", "brier"),
    *("crps", "mae", "qce", "aurc", "auroc", "aupr_out", "fpr95", "auroc_err", "entropy", "mi"),
    *("return", "auc", "last20"),
    *("forgetting", "bwt", "fwt", "learning_acc", "task_il_acc", "class_il_acc", "items", "bytes"),
)
"""Metrics that a summary shows, in this order."""

_SPLITS = ("test", "ood", "val", "train")
_PART = re.compile(r"(?:after|task)\d+")  # of a stream: one task, or the tasks up to one
_HEADLINES = (
    ("acc", "forgetting", "nll"),  # of a stream
    ("acc", "nll", "ece"),
    ("rmse", "nll", "crps"),
    ("perplexity", "nll"),
)


class MetricName(NamedTuple):
    """A metric's name in its parts; `rule` is empty for a metric without one."""

    split: str
    metric: str
    rule: str


def parse_name(name: str) -> MetricName:
    """Take `<split>/<metric>@<rule>` apart; a missing part is empty."""
    head, _, rule = name.partition("@")
    split, slash, metric = head.rpartition("/")
    return MetricName(split if slash else "", metric, rule)


def mc_samples(rule: str) -> int | None:
    """Return K of the rule `mc<K>`, None for another rule."""
    match = re.fullmatch(r"mc(\d+)", rule)
    return int(match[1]) if match else None


def largest_mc(rules: Iterable[str]) -> str | None:
    """Return the rule `mc<K>` with the largest K, or None."""
    found = [rule for rule in rules if mc_samples(rule) is not None]
    return max(found, key=lambda rule: mc_samples(rule) or 0, default=None)


def rule_order(rule: str) -> tuple[int, int, str]:
    """Return a sort key: no rule, mean, mode, mc<K> by K, lin, others."""
    place = {"": 0, "mean": 1, "mode": 2, "lin": 4}.get(rule, 5)
    samples = mc_samples(rule)
    return (3, samples, rule) if samples is not None else (place, 0, rule)


def _split_order(split: str) -> tuple[int, str]:
    head = split.partition("_")[0]
    return (_SPLITS.index(head) if head in _SPLITS else len(_SPLITS), split)


def _metric_order(metric: str) -> tuple[int, str]:
    return (_METRICS.index(metric) if metric in _METRICS else len(_METRICS), metric)


def sort_names(names: Iterable[str]) -> list[str]:
    """Sort metric names by split, metric and rule, the best known first."""
    parts = {name: parse_name(name) for name in names}
    return sorted(
        parts,
        key=lambda name: (
            _split_order(parts[name].split),
            _metric_order(parts[name].metric),
            rule_order(parts[name].rule),
        ),
    )


def is_part(split: str) -> bool:
    """Return whether a split is a part of a stream (``task3``, ``after3``), of which are many."""
    return _PART.fullmatch(split) is not None


def curated(metrics: Iterable[str]) -> list[str]:
    """Return the metrics of one split that a summary shows; all of them if none is known."""
    ordered = sorted(set(metrics), key=_metric_order)
    return [metric for metric in ordered if metric in _METRICS] or ordered


def headline_metrics(names: Iterable[str]) -> tuple[str, list[str]]:
    """Return the split and the metrics that one line on a run shows.

    Args:
        names: Names of the metrics that runs have.

    Returns:
        The split (`test` where there is one) and at most three metrics: accuracy, NLL and ECE for
        classification; accuracy, forgetting and NLL for a stream; RMSE, NLL and CRPS for
        regression; perplexity and NLL for language.
    """
    parts = [parse_name(name) for name in names]
    splits = sorted({part.split for part in parts}, key=_split_order)
    if not splits:
        return "test", []
    there = {part.metric for part in parts if part.split == splits[0]}
    for choice in _HEADLINES:
        if set(choice[:2]) <= there:
            return splits[0], [metric for metric in choice if metric in there]
    return splits[0], curated(there)[:3]


def headline_columns(names: Iterable[str], most: int) -> list[str]:
    """Return the metrics worth a column: the headline ones at the largest `mc<K>` or the mean."""
    there = list(names)
    split, metrics = headline_metrics(there)
    columns = []
    for metric in metrics[:most]:
        stem = f"{split}/{metric}" if split else metric
        rules = [parse_name(name).rule for name in there if name.partition("@")[0] == stem]
        rule = largest_mc(rules) or ("mean" if "mean" in rules else "")
        columns.append(f"{stem}@{rule}" if rule else stem)
    return columns
