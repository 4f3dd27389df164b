"""Reading and checking one claim of a paper.yaml; the form is in `paper_yaml`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bayesrule.runs.paper import KINDS, SCALES, TESTS, Claim, Point, Side, Study
from bayesrule.runs.yaml_node import (
    Node,
    one_of,
    read_bool,
    read_list,
    read_mapping,
    read_number,
    read_text,
    some_of,
)

__all__ = ["read_claim", "read_metrics"]

_METRIC = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*(@[A-Za-z0-9_.\-]+)?")
_HEADLINE = re.compile(r"C\d+[a-z]?")


def _metric(value: Any) -> str:
    text = read_text(value)
    if not _METRIC.fullmatch(text):
        raise ValueError(f"{text!r} is no metric name (<split>/<metric>@<rule>)")
    return text


def read_metrics(value: Any) -> tuple[str, ...]:
    """Accept a list of metric names."""
    return tuple(_metric(one) for one in read_list(value))


def _headline(value: Any) -> str:
    if not isinstance(value, str) or not _HEADLINE.fullmatch(value):
        raise ValueError(f"must be the card's letter, C1, C2, ..., got {value!r}")
    return value


def _band(value: Any) -> tuple[float | None, float | None]:
    if not isinstance(value, list) or len(value) != 2 or value == [None, None]:
        raise ValueError(f"must be [low, high] (null for no limit on one side), got {value!r}")
    low, high = (None if one is None else read_number(one) for one in value)
    if low is not None and high is not None and low > high:
        raise ValueError(f"the low end {low} is above the high end {high}")
    return low, high


def _reported(value: Any) -> Mapping[str, Any]:
    mapping = dict(read_mapping(value))
    source = read_text(mapping.pop("source", None) or "") if "source" in mapping else ""
    if not source:
        raise ValueError("needs `source:` (which table or figure)")
    for name, number in mapping.items():
        if not isinstance(number, str):
            read_number(number)
        mapping[name] = number
    return {**mapping, "source": source}


def _side(value: Any, file: str, key: str, arms: Iterable[str]) -> Side:
    node = Node(value, file, key)
    side = Side(node.take("arm", one_of(arms)), node.take("metric", _metric))
    node.done()
    return side


def _point(node: Node, index: int, value: Any, arms: list[str]) -> Point:
    inner = Node(value, node.file, f"{node.key}.points[{index}]")
    point = Point(
        arm=inner.take("arm", one_of(arms)),
        metric=inner.take("metric", _metric),
        x=inner.take("x", read_number, float(index)),
    )
    inner.done()
    return point


def _sides(node: Node, kind: str, arms: list[str]) -> tuple[Side, ...]:
    """Read left/right, or metric(s) with arm(s), or (trend) points."""
    arm = node.take("arm", one_of(arms), None)
    several_arms = node.take("arms", some_of(arms), None)
    metric = node.take("metric", _metric, None)
    several_metrics = node.take("metrics", read_metrics, None)
    left = node.take("left", read_mapping, None)
    right = node.take("right", read_mapping, None)
    points = node.take("points", read_list, None) if kind == "trend" else None
    xs = (
        node.take("x", lambda v: tuple(read_number(one) for one in read_list(v)), None)
        if kind == "trend"
        else None
    )

    sides: list[Side]
    short = (arm, several_arms, metric, several_metrics)
    if points is not None:
        if any(part is not None for part in (*short, left, right, xs)):
            raise node.error(
                "points", "give points alone, without arm(s), metric(s), x, left, right"
            )
        sides = [_point(node, index, value, arms) for index, value in enumerate(points)]
    elif left is not None or right is not None:
        if left is None or any(part is not None for part in short):
            raise node.error("left", "give left (and right), or arm(s) and metric(s), not both")
        sides = [
            _side(value, node.file, f"{node.key}.{name}", arms)
            for name, value in (("left", left), ("right", right))
            if value is not None
        ]
    else:
        if (arm is None) == (several_arms is None):
            raise node.error("arm", "give `arm:` or `arms:`, one of them" + _form(kind))
        if (metric is None) == (several_metrics is None):
            raise node.error("metric", "give `metric:` or `metrics:`, one of them" + _form(kind))
        if several_arms is not None and several_metrics is not None:
            raise node.error(
                "metrics", "several arms and several metrics: use left/right or points"
            )
        of_arms = several_arms if several_arms is not None else (arm or "",)
        of_metrics = several_metrics if several_metrics is not None else (metric or "",)
        sides = [Side(one_arm, one) for one_arm in of_arms for one in of_metrics]
    if kind == "trend":
        return _trend_points(node, sides, xs)
    wanted = {"ordering": (2,), "value": (1, 2), "identity": (1, 2)}[kind]
    if len(sides) not in wanted:
        text = " or ".join(map(str, wanted))
        raise node.error("", f"kind {kind} compares {text} sides, got {len(sides)}" + _form(kind))
    if len(set(sides)) < len(sides):
        raise node.error("", "both sides are the same metric of the same arm")
    return tuple(sides)


def _form(kind: str) -> str:
    if kind == "trend":
        return " (arm: with metrics: [..], or metric: with arms: [..], or points:)"
    return " (metric: with arms: [left, right], or left: {arm:, metric:} and right: ...)"


def _trend_points(node: Node, sides: list[Side], xs: tuple[float, ...] | None) -> tuple[Side, ...]:
    if xs is not None and len(xs) != len(sides):
        raise node.error("x", f"{len(xs)} values for {len(sides)} points")
    placed = [
        side
        if isinstance(side, Point)
        else Point(side.arm, side.metric, float(index) if xs is None else xs[index])
        for index, side in enumerate(sides)
    ]
    if len(placed) < 3:
        raise node.error("", f"a trend needs at least 3 points, got {len(placed)}" + _form("trend"))
    if any(b.x <= a.x for a, b in itertools.pairwise(placed)):
        raise node.error("x", "the points' x must increase")
    return tuple(placed)


def _claim_studies(node: Node, studies: Mapping[str, Study]) -> dict[str, str]:
    """Return study by scale."""
    value = node.take("study", lambda value: value)
    if isinstance(value, str):
        name = node.take("study", one_of(studies))
        return {scale: name for scale in SCALES if scale in studies[name].scales}
    inner = Node(value, node.file, f"{node.key}.study")
    chosen: dict[str, str] = {}
    for scale in SCALES:
        study = inner.take(scale, one_of(studies), None)
        if study is not None:
            if scale not in studies[study].scales:
                raise inner.error(scale, f"study {study!r} is not run at scale {scale!r}")
            chosen[scale] = study
    inner.done()
    return chosen


def read_claim(value: Any, file: str, index: int, studies: Mapping[str, Study]) -> Claim:
    """Read one claim.

    Args:
        value: The claim's mapping.
        file: Name of the file, for errors.
        index: Its place in the list, for errors.
        studies: The paper's studies.

    Raises:
        ConfigError: If something in it is wrong, or no run could ever decide it.
    """
    node = Node(value, file, f"claims[{index}]")
    identifier = node.take("id", read_text)
    node.key = f"claims[{index}] ({identifier})"
    kind = node.take("kind", one_of(KINDS))
    of_scale = _claim_studies(node, studies)
    scale = node.take("scale", one_of(SCALES), "cpu")
    if scale == "smoke":
        raise node.error("scale", "the smoke scale judges nothing; use cpu or paper")
    if scale not in of_scale:
        raise node.error(
            "scale",
            f"the claim's study is not run at its lowest scale, {scale!r}: nothing could decide it",
        )
    arms = list(dict.fromkeys(arm for name in of_scale.values() for arm in studies[name].arms))
    sides = _sides(node, kind, arms)
    absent = [s.arm for s in sides if s.arm not in studies[of_scale[scale]].arms_at(scale)]
    if absent:
        raise node.error(
            "", f"arm {absent[0]!r} is not run by study {of_scale[scale]!r} at scale {scale!r}"
        )
    directions = {"ordering": ("lower", "higher"), "trend": ("decreasing", "increasing")}
    direction, margin = None, 0.0
    if kind in directions:
        direction = node.take("direction", one_of(directions[kind]))
        margin = node.take("margin", read_number, 0.0)
    claim = Claim(
        id=identifier,
        statement=node.take("statement", read_text),
        kind=kind,
        studies=of_scale,
        sides=sides,
        scale=scale,
        test=node.take("test", one_of(TESTS[kind]), TESTS[kind][0]),
        direction=direction,
        margin=margin,
        band=node.take("band", _band) if kind == "value" else None,
        tolerance=node.take("tolerance", read_number) if kind == "identity" else None,
        relation=node.take("relation", one_of(("difference", "ratio")), "difference")
        if kind in ("value", "identity")
        else "difference",
        log_x=node.take("log_x", read_bool, False) if kind == "trend" else False,
        reported=node.take("paper", _reported, None),
        headline=node.take("headline", _headline, None),
        note=node.take("note", read_text, None),
    )
    if claim.tolerance is not None and claim.tolerance < 0:
        raise node.error("tolerance", "must not be negative")
    if claim.log_x and any(isinstance(side, Point) and side.x <= 0 for side in sides):
        raise node.error("log_x", "needs every x above 0")
    node.done()
    return claim
