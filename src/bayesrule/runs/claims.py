"""Verdicts: pure functions of records.

| verdict | when |
|---|---|
| `shown` | the 95 % interval lies wholly on the claimed side, from at least 3 complete seeds |
| `contradicted` | it lies wholly on the other side |
| `not_shown` | neither; or it would be shown, but a run that the claim speaks for failed |
| `not_enough_seeds` | fewer than 3 complete seeds |
| `not_at_this_scale` | below the claim's lowest scale, or no study of it is run there |

The claimed side, with d = left - right by seed:

    ordering, lower    d < -margin          ordering, higher     d > margin
    value              low <= mean <= high  (other side: the interval lies wholly outside)
    trend, decreasing  statistic < -margin  trend, increasing    statistic > margin
                       and no step whose own interval lies wholly on the wrong side
    identity           max |x| <= tolerance (other side: some |x| above it)

A seed counts if every run that the claim needs has a finite value. What is left out, and why, is
in the note. A failed or non-finite run of the side that the claim speaks for (ordering: left; else
any) is evidence against it: such a claim is never `shown`. A failed run of the other side of an
ordering is only stated.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bayesrule.runs.paper import MIN_SEEDS, SCALES, Claim, Paper, Point, Side
from bayesrule.runs.record import ArmRun
from bayesrule.runs.statistics import (
    Interval,
    least_squares_slope,
    mean_interval,
    p_greater,
    p_less,
    spearman,
)

__all__ = ["VERDICTS", "judge", "judge_claim"]

VERDICTS = ("shown", "not_shown", "contradicted", "not_enough_seeds", "not_at_this_scale")

_Key = tuple[str, str, int]


@dataclass
class _Evidence:
    """The values of a claim's sides by seed, and why others are absent.

    Attributes:
        values: Per side: finite value by seed.
        complete: Seeds for which every side has one.
        reasons: Why a value is absent -> arm -> seeds.
        failed: Per side: whether a run failed or gave a non-finite value.
    """

    values: list[dict[int, float]]
    complete: list[int]
    reasons: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    failed: list[bool] = field(default_factory=list)

    def note(self) -> str:
        parts = [
            f"{arm} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {reason}"
            for reason, arms in self.reasons.items()
            for arm, seeds in arms.items()
        ]
        return "; ".join(parts)


def _absence(run: ArmRun | None, metric: str) -> tuple[str, bool]:
    """Return why a run gives no value of a metric, and whether that is a failure."""
    if run is None or run.status == "missing":
        return "not run", False
    if run.status == "failed":
        return f"failed ({run.error})" if run.error else "failed", True
    if run.status != "done":
        return run.status, False
    if metric not in run.metrics:
        close = difflib.get_close_matches(metric, list(run.metrics), 1)
        nearest = f" (nearest: {close[0]})" if close else ""
        return f"its record has no {metric}{nearest}", False
    return f"{metric} is {run.metrics[metric]}", True


def _gather(
    claim: Claim, study: str, seeds: Sequence[int], runs: Mapping[_Key, ArmRun]
) -> _Evidence:
    evidence = _Evidence([{} for _ in claim.sides], [], failed=[False for _ in claim.sides])
    for index, side in enumerate(claim.sides):
        for seed in seeds:
            run = runs.get((study, side.arm, seed))
            value = None
            if run is not None and run.status == "done":
                value = run.metrics.get(side.metric)
            if value is not None and math.isfinite(value):
                evidence.values[index][seed] = float(value)
                continue
            reason, failed = _absence(run, side.metric)
            evidence.failed[index] |= failed
            absent = evidence.reasons.setdefault(reason, {}).setdefault(side.arm, [])
            if seed not in absent:
                absent.append(seed)
    evidence.complete = [s for s in seeds if all(s in values for values in evidence.values)]
    return evidence


def _list(interval: Interval | None) -> list[float] | None:
    return None if interval is None or interval.ci95 is None else list(interval.ci95)


def _describe_side(side: Side, values: Mapping[int, float], seeds: Sequence[int]) -> dict[str, Any]:
    """Return one side's own mean, interval and value per seed (null where there is none)."""
    interval = mean_interval(list(values.values())) if values else None
    described: dict[str, Any] = {"arm": side.arm, "metric": side.metric}
    if isinstance(side, Point):
        described["x"] = side.x
    described["mean"] = None if interval is None else interval.mean
    described["ci95"] = _list(interval)
    described["n"] = len(values)
    described["values"] = {str(seed): values.get(seed) for seed in seeds}
    return described


def _combined(claim: Claim, evidence: _Evidence) -> list[float]:
    """Return the number per complete seed that an ordering, value or identity is about."""
    left = [evidence.values[0][seed] for seed in evidence.complete]
    if len(claim.sides) == 1:
        return left
    right = [evidence.values[1][seed] for seed in evidence.complete]
    pairs = zip(left, right, strict=True)
    if claim.relation == "ratio":
        return [a / b if b else math.nan for a, b in pairs]
    return [a - b for a, b in pairs]


def _relation(claim: Claim) -> str:
    if len(claim.sides) == 1:
        return "left"
    return "left / right" if claim.relation == "ratio" else "left - right"


@dataclass(frozen=True)
class _Outcome:
    """What a test says: verdict, the number it is about, p-value, wording, extra fields."""

    verdict: str
    interval: Interval | None
    p_value: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def _side_of(interval: Interval, direction: str, margin: float) -> tuple[str, float]:
    """Return the verdict of "beyond the margin in this direction", and its p-value."""
    assert interval.ci95 is not None
    low, high = interval.ci95
    if direction in ("lower", "decreasing"):
        shown, contradicted, p = high < -margin, low > -margin, p_less(interval, -margin)
    else:
        shown, contradicted, p = low > margin, high < margin, p_greater(interval, margin)
    return ("shown" if shown else "contradicted" if contradicted else "not_shown"), p


def _ordering(claim: Claim, numbers: list[float]) -> _Outcome:
    interval = mean_interval(numbers)
    verdict, p = _side_of(interval, claim.direction or "lower", claim.margin)
    return _Outcome(verdict, interval, p, {"cohens_d": interval.effect_size})


def _value(claim: Claim, numbers: list[float]) -> _Outcome:
    interval = mean_interval(numbers)
    assert interval.ci95 is not None
    assert claim.band is not None
    low, high = claim.band
    inside = (low is None or interval.ci95[0] >= low) and (high is None or interval.ci95[1] <= high)
    outside = (low is not None and interval.ci95[1] < low) or (
        high is not None and interval.ci95[0] > high
    )
    # two one-sided tests: the mean is above low and below high
    tests = [] if low is None else [p_greater(interval, low)]
    tests += [] if high is None else [p_less(interval, high)]
    verdict = "shown" if inside else "contradicted" if outside else "not_shown"
    p = None if interval.sd == 0 else max(tests)
    return _Outcome(verdict, interval, p)


def _identity(claim: Claim, numbers: list[float]) -> _Outcome:
    interval = mean_interval(numbers)
    assert claim.tolerance is not None
    largest = max(abs(number) for number in numbers)
    verdict = "shown" if largest <= claim.tolerance else "contradicted"
    return _Outcome(verdict, interval, None, {"max_abs": largest})


def _trend(claim: Claim, evidence: _Evidence) -> _Outcome:
    xs = [side.x for side in claim.sides if isinstance(side, Point)]
    if claim.log_x:
        xs = [math.log(x) for x in xs]
    statistic = least_squares_slope if claim.test == "slope" else spearman
    curves = [[values[seed] for values in evidence.values] for seed in evidence.complete]
    interval = mean_interval([statistic(xs, curve) for curve in curves])
    direction = claim.direction or "decreasing"
    verdict, p = _side_of(interval, direction, claim.margin)
    steps, wrong = [], []
    for index in range(len(xs) - 1):
        step = mean_interval([curve[index + 1] - curve[index] for curve in curves])
        names = [_point_name(claim, claim.sides[place]) for place in (index, index + 1)]
        steps.append({"from": names[0], "to": names[1], "mean": step.mean, "ci95": _list(step)})
        if _side_of(step, direction, 0.0)[0] == "contradicted":
            wrong.append(f"{names[0]} to {names[1]}")
    note = ""
    if wrong and verdict == "shown":
        verdict = "not_shown"
        note = f"not monotone: the interval of the step {', '.join(wrong)} is on the wrong side"
    return _Outcome(verdict, interval, p, {"statistic": claim.test, "steps": steps}, note)


def _point_name(claim: Claim, side: Side) -> str:
    """Name a point by what differs between points."""
    one_arm = len({other.arm for other in claim.sides}) == 1
    one_metric = len({other.metric for other in claim.sides}) == 1
    if one_arm:
        return side.metric
    return side.arm if one_metric else f"{side.arm} {side.metric}"


def _test_text(claim: Claim) -> str:
    """Say in words which test decides the claim."""
    if claim.kind == "ordering":
        sign = f"< {0.0 - claim.margin:g}" if claim.direction == "lower" else f"> {claim.margin:g}"
        return f"paired t by seed: 95% CI of left - right {sign}"
    if claim.kind == "value":
        low, high = ("none" if end is None else f"{end:g}" for end in claim.band or ())
        return f"t over seeds: 95% CI of {_relation(claim)} in [{low}, {high}]"
    if claim.kind == "identity":
        return f"max over seeds of |{_relation(claim)}| <= {claim.tolerance:g}"
    sign = f"< {0.0 - claim.margin:g}" if claim.direction == "decreasing" else f"> {claim.margin:g}"
    name = "Spearman's rho" if claim.test == "spearman" else "least-squares slope"
    against = " in log x" if claim.log_x else ""
    return f"t over seeds: 95% CI of {name} per seed{against} {sign}, no step back"


def _decide(claim: Claim, evidence: _Evidence) -> _Outcome:
    """Apply the claim's test to the complete seeds."""
    n = len(evidence.complete)
    numbers = [] if claim.kind == "trend" else _combined(claim, evidence)
    finite = all(math.isfinite(number) for number in numbers)
    if n < MIN_SEEDS:
        interval = mean_interval(numbers) if numbers and finite else None
        note = f"{n} complete seed{'' if n == 1 else 's'}, at least {MIN_SEEDS} are needed"
        return _Outcome("not_enough_seeds", interval, note=note)
    if not finite:
        seeds = [s for s, x in zip(evidence.complete, numbers, strict=True) if not math.isfinite(x)]
        note = f"{_relation(claim)} is not finite at seed {', '.join(map(str, seeds))}"
        return _Outcome("not_shown", None, note=note)
    if claim.kind == "trend":
        outcome = _trend(claim, evidence)
    else:
        test = {"ordering": _ordering, "value": _value, "identity": _identity}[claim.kind]
        outcome = test(claim, numbers)
    spoken_for = evidence.failed[:1] if claim.kind == "ordering" else evidence.failed
    if outcome.verdict == "shown" and any(spoken_for):
        note = "a run that the claim speaks for failed: the others cannot show it"
        return replace(outcome, verdict="not_shown", note=note)
    return outcome


def judge_claim(
    claim: Claim, paper: Paper, scale: str, runs: Mapping[_Key, ArmRun], seeds: Sequence[int] | None
) -> dict[str, Any]:
    """Judge one claim; see `judge`. `runs` is keyed by (study, arm, seed)."""
    study = claim.studies.get(scale)
    reason = ""
    if scale == "smoke":
        reason = "the smoke scale judges nothing"
    elif SCALES.index(scale) < SCALES.index(claim.scale):
        reason = f"means something from scale {claim.scale} on"
    elif study is None:
        reason = f"no study of this claim is run at scale {scale}"
    else:
        there = paper.studies[study].arms_at(scale)
        absent = [side.arm for side in claim.sides if side.arm not in there]
        if absent:
            reason = f"arm {absent[0]} is not run at scale {scale}"
    ours: dict[str, Any] = {"mean": None, "ci95": None, "n": 0}
    notes = [claim.note or ""]
    outcome = _Outcome("not_at_this_scale", None, note=reason)
    n_seeds = 0
    if study is not None:
        wanted = paper.studies[study].scales[scale].seeds if seeds is None else seeds
        evidence = _gather(claim, study, wanted, runs)
        n_seeds = len(evidence.complete)
        if not reason:
            outcome = _decide(claim, evidence)
            if absent_text := evidence.note():
                notes.append(f"left out: {absent_text}")
        ours = {
            "mean": None if outcome.interval is None else outcome.interval.mean,
            "ci95": _list(outcome.interval),
            "n": n_seeds,
            "study": study,
            **outcome.extra,
        }
        pairs = zip(claim.sides, evidence.values, strict=True)
        described = [_describe_side(side, values, wanted) for side, values in pairs]
        if claim.kind == "trend":
            ours["points"] = described
        else:
            ours["relation"] = _relation(claim)
            ours.update(zip(("left", "right"), described, strict=False))
    notes.append(outcome.note)
    return {
        "id": claim.id,
        "statement": claim.statement,
        "kind": claim.kind,
        "metric": claim.metric,
        "ours": ours,
        "paper": None if claim.reported is None else dict(claim.reported),
        "test": _test_text(claim),
        "p_value": outcome.p_value,
        "effect": None if outcome.interval is None else outcome.interval.mean,
        "ci95": _list(outcome.interval),
        "n_seeds": n_seeds,
        "verdict": outcome.verdict,
        "note": ". ".join(note.rstrip(".") for note in notes if note),
    }


def judge(
    paper: Paper, scale: str, records: Iterable[ArmRun], *, seeds: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Judge all claims of a paper at a scale.

    `effect` is the mean of the number that the test is about (left - right, the value, the trend's
    statistic) and `ci95` its interval; `ours` has both sides with their values by seed.

    Args:
        paper: The paper.
        scale: One of `SCALES`.
        records: The runs of its studies at that scale; others are ignored.
        seeds: The seeds judged, instead of those that each study declares for the scale.

    Returns:
        One mapping per claim, in order, as in claims.json.

    Raises:
        ValueError: If two records are of the same study, arm and seed.
    """
    runs: dict[_Key, ArmRun] = {}
    for run in records:
        key = (run.study, run.arm, run.seed)
        if key in runs:
            raise ValueError(f"two records of study {key[0]}, arm {key[1]}, seed {key[2]}")
        runs[key] = run
    return [judge_claim(claim, paper, scale, runs, seeds) for claim in paper.claims]
