"""Plots of one finished run, from what its record holds.

`details.curves` (reliability, confusion, risk-coverage, entropy, curves over steps),
`details.continual` (matrices), `details.rounds` and `details.clients` (federated). What is
malformed is left out; the page says what else the record holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from bayesrule.report.dashboard.histories import slug_of
from bayesrule.report.dashboard.plots import Plot, bars, finite, heat_map, lines, reliability
from bayesrule.report.drawing import metric_label, rule_label
from bayesrule.report.names import headline_metrics, parse_name

__all__ = ["record_plots"]

_MAX_CLASSES = 40
_MEGABYTE = 1e6
_ACROSS = (
    ("round", "rounds", "round"),
    ("MB", "megabytes sent", "megabytes sent, both directions"),
)


def record_plots(
    details: Mapping[str, Any], drawn: Collection[str] = ()
) -> tuple[list[Plot], list[str]]:
    """Return the plots that a record's details give, and the names of curves without a plot.

    Args:
        details: The record's details.
        drawn: Curves that are drawn already, from the history.
    """
    plots: list[Plot] = []
    others: list[str] = []
    curves = details.get("curves")
    for name, curve in (curves if isinstance(curves, Mapping) else {}).items():
        if name in drawn:
            continue
        plot = _safely(_curve, str(name), curve)
        if plot is None:
            others.append(str(name))
        else:
            plots.append(plot)
    for make in (_continual, _rounds, _clients):
        found = _safely(make, details)
        plots += list(found or [])
    return plots, others


def _safely(make: Any, *values: Any) -> Any:
    """Call, and return None if the data are not of the form that a plot needs."""
    try:
        found = make(*values)
        return list(found) if isinstance(found, Iterator) else found
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        return None


def _curve(name: str, curve: Any) -> Plot | None:
    split, metric, rule = parse_name(name)
    where = f"{split or 'run'} set, {rule_label(rule) or 'no rule'}"
    if metric == "reliability":
        return reliability(slug_of(name), f"Reliability: {where}", curve)
    if metric == "confusion":
        return _confusion(name, where, curve)
    if metric == "risk_coverage":
        return _risk_coverage(name, where, curve)
    if metric == "entropy" and split == "ood":
        return _entropy(name, rule, curve)
    if set(curve) == {"step", "value"}:
        pairs = zip(curve["step"], curve["value"], strict=True)
        points = [
            {"x": float(x), "y": y, "s": "run"} for x, v in pairs if (y := finite(v)) is not None
        ]
        label = metric_label(name)
        return lines(slug_of(name), name, points, x="step", y=label) if points else None
    return None


def _confusion(name: str, where: str, curve: Mapping[str, Any]) -> Plot | None:
    counts = [[int(n) for n in row] for row in curve["counts"]]
    K = len(counts)
    if not 1 < K <= _MAX_CLASSES or any(len(row) != K for row in counts):
        return None
    cells = [
        (str(j), str(i), n / max(1, sum(row)), str(n) if n else "")
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
    ]
    right = sum(counts[i][i] for i in range(K))
    worst = max((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j)
    summary = (
        f"{right} of {sum(map(sum, counts))} items are on the diagonal; the most frequent error is "
        f"class {worst[1]} taken for {worst[2]} ({worst[0]} items). Numbers are items."
    )
    return heat_map(
        slug_of(name), f"Confusion: {where}", cells, x="predicted class", y="true class",
        value="share of the true class", summary=summary, domain=(0.0, 1.0),
    )  # fmt: skip


def _risk_coverage(name: str, where: str, curve: Mapping[str, Any]) -> Plot:
    pairs = list(zip(curve["coverage"], curve["risk"], strict=True))
    points = [{"x": float(c), "y": float(r), "s": "error rate"} for c, r in pairs]
    return lines(
        slug_of(name), f"Risk against coverage: {where}", points,
        x="coverage (share of items kept, the most confident first)",
        y="risk (error rate among them)", legend="risk",
    )  # fmt: skip


def _entropy(name: str, rule: str, curve: Mapping[str, Any]) -> Plot:
    edges = [float(edge) for edge in curve["edges"]]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    points = [
        {"x": x, "y": float(y), "s": "in domain" if which == "id" else f"OOD: {which}"}
        for which, heights in curve.items()
        if which != "edges"
        for x, y in zip(middles, heights, strict=True)
    ]
    return lines(
        slug_of(name), f"Predictive entropy in and out of domain, {rule_label(rule)}", points,
        x="predictive entropy (nats)", y="fraction of inputs", legend="inputs",
    )  # fmt: skip


def _continual(details: Mapping[str, Any]) -> Iterator[Plot]:
    matrices = details.get("continual", {}).get("matrices", {})
    for name, rows in list(matrices.items())[:6]:
        cells = [
            (str(j + 1), str(t + 1), float(value), f"{float(value):.3g}")
            for t, row in enumerate(rows)
            for j, value in enumerate(row)
            if finite(value) is not None
        ]
        if not cells:
            continue
        last = [float(v) for v in rows[-1] if finite(v) is not None]
        label = metric_label(name)
        summary = (
            f"{label} on each task's test set after each task of the stream; after the last task "
            f"on average {sum(last) / max(1, len(last)):.4g}."
        )
        unit = name.startswith("acc")
        yield heat_map(
            slug_of(f"matrix {name}"), f"Stream: {name}, after task t on task j", cells,
            x="test set of task j", y="after task t", value=label, summary=summary,
            domain=(0.0, 1.0) if unit else None,
        )  # fmt: skip
    memory = details.get("continual", {}).get("memory", [])
    points = [
        {"x": place + 1, "y": float(one["bytes"]) / _MEGABYTE, "s": "memory"}
        for place, one in enumerate(memory)
        if isinstance(one, Mapping) and finite(one.get("bytes")) is not None
    ]
    if len(points) > 1 and any(point["y"] for point in points):
        yield lines("memory", "Memory kept for the past", points, x="after task", y="megabytes")


def _rounds(details: Mapping[str, Any]) -> Iterator[Plot]:
    rounds = details.get("rounds")
    if not isinstance(rounds, Mapping):
        return
    split, metrics = headline_metrics(name for name in rounds if "/" in name)
    sent = _megabytes(rounds)
    for metric in metrics:
        names = [
            n for n in rounds if (parse_name(n).split, parse_name(n).metric) == (split, metric)
        ]
        for key, title, label in _ACROSS:
            points = [
                {"x": x, "y": y, "s": rule_label(parse_name(name).rule) or "server"}
                for name in names
                for r, value in rounds[name]
                if (y := finite(value)) is not None
                and (x := float(r) if key == "round" else sent.get(float(r))) is not None
            ]
            if points:
                yield lines(
                    slug_of(f"{metric} {key}"), f"Server: {metric} against {title}", points,
                    x=label, y=metric_label(names[0]), legend="rule",
                )  # fmt: skip


def _megabytes(rounds: Mapping[str, Any]) -> dict[float, float]:
    """Return the megabytes sent until each round."""
    pairs = zip(rounds.get("comm/up", []), rounds.get("comm/down", []), strict=True)
    each = [(float(up[0]), (float(up[1]) + float(down[1])) / _MEGABYTE) for up, down in pairs]
    totals = accumulate(mb for _, mb in each)
    return {r: total for (r, _), total in zip(each, totals, strict=True)}


def _clients(details: Mapping[str, Any]) -> Iterator[Plot]:
    mix: Sequence[Sequence[Any]] = details["clients"]["label_mix"]
    parts = [
        (str(client), str(label), float(n))
        for client, row in enumerate(mix)
        for label, n in enumerate(row)
        if n
    ]
    summary = f"{len(mix)} clients, {sum(n for *_, n in parts):.0f} items in all."
    yield bars(
        "clients", "Labels that each client holds", parts, x="client", y="items", legend="class",
        summary=summary,
    )  # fmt: skip
