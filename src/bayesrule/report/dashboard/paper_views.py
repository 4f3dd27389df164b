"""What the scoreboard and the pages of papers show, from experiments/ and results/ alone.

Files are read when they changed and kept otherwise, so that hundreds of papers answer at once. A
damaged file is a sentence where its content would be, never an error page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError
from bayesrule.report.dashboard.intervals import Interval, claimed_region, paper_effect, small_svg
from bayesrule.report.drawing import metric_label, rule_label
from bayesrule.report.names import parse_name
from bayesrule.report.results import VERDICT_WORDS
from bayesrule.report.scoreboard import Score, read_header, read_score
from bayesrule.runs import SCALES, Paper, find_papers, load_paper

__all__ = [
    "VERDICT_SYMBOLS",
    "ClaimView",
    "Filter",
    "PaperView",
    "ScaleView",
    "Shelf",
    "SideView",
    "choices",
    "claim_rows",
    "claim_view",
    "interval_groups",
    "paper_rows",
]

VERDICT_SYMBOLS = {
    "shown": "✓",
    "not_shown": "○",
    "contradicted": "✗",
    "not_enough_seeds": "…",
    "not_at_this_scale": "–",
}
"""Beside the word and the colour."""


@dataclass(frozen=True)
class SideView:
    """One arm's number in a claim: `ivon, NLL (nats), 64 samples: 0.81 [0.78, 0.84]`."""

    arm: str
    metric: str
    mean: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class ClaimView:
    """One claim at one scale, ready to be shown.

    Attributes:
        id: The claim's id.
        statement: One sentence.
        verdict: As in claims.json.
        kind: `ordering`, `value`, `trend` or `identity`.
        sides: What was measured, arm by arm.
        what: What the effect is: `left - right`, `Spearman's rho`, ...
        effect: The number that the claim is about.
        ci95: Its 95 % interval.
        n: Seeds.
        p_value: Of the test, if it has one.
        test: The test in words.
        note: What else is to be said.
        reported: The paper's numbers by name.
        source: The paper's table or figure.
        interval: For the interval plot; None if there is no number.
        unit: What effects share an axis with.
    """

    id: str
    statement: str
    verdict: str
    kind: str
    sides: tuple[SideView, ...]
    what: str
    effect: float | None
    ci95: tuple[float, float] | None
    n: int
    p_value: float | None
    test: str
    note: str
    reported: Mapping[str, Any]
    source: str
    interval: Interval | None
    unit: str

    @property
    def symbol(self) -> str:
        """The verdict's symbol."""
        return VERDICT_SYMBOLS[self.verdict]

    @property
    def words(self) -> str:
        """The verdict for people."""
        return VERDICT_WORDS[self.verdict]

    @property
    def small_plot(self) -> Any:
        """The interval as a drawing for a table cell (its texts are escaped)."""
        from markupsafe import Markup

        return Markup("" if self.interval is None else small_svg(self.interval))


@dataclass(frozen=True)
class ScaleView:
    """A paper's results at one scale; `problem` says what could not be read.

    Attributes:
        scale: The scale.
        claims: Its claims.
        date: When the last run ended.
        commit: With what code.
        problem: Why claims are missing, or nothing.
    """

    scale: str
    claims: tuple[ClaimView, ...] = ()
    date: str = ""
    commit: str = ""
    problem: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have each verdict, in the order of `VERDICT_WORDS`."""
        given = [claim.verdict for claim in self.claims]
        return {verdict: given.count(verdict) for verdict in VERDICT_WORDS}

    @property
    def judges(self) -> bool:
        """Whether some claim was judged here."""
        return any(claim.verdict != "not_at_this_scale" for claim in self.claims)


@dataclass(frozen=True)
class PaperView:
    """A paper with its results.

    Attributes:
        key: Name of its folder.
        paper: What the first block of paper.yaml says; None if that can't be read.
        scales: Results by scale, the smallest first.
        problem: Why `paper` is missing, or nothing.
    """

    key: str
    paper: Paper | None
    scales: Mapping[str, ScaleView] = field(default_factory=dict)
    problem: str = ""

    @property
    def title(self) -> str:
        """The paper's title, or its key."""
        return self.paper.title if self.paper else self.key

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its kinds of task."""
        task = (self.paper.task if self.paper else None) or ""
        return tuple(part.strip() for part in task.split(",") if part.strip())

    @property
    def posteriors(self) -> tuple[str, ...]:
        """Its posterior families."""
        return self.paper.posteriors if self.paper else ()

    @property
    def best_scale(self) -> str | None:
        """The largest scale at which claims are judged, else the largest with results."""
        judged = [scale for scale, view in self.scales.items() if view.judges]
        found = judged or list(self.scales)
        return found[-1] if found else None


def _pair(value: Any) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)


@lru_cache(maxsize=4096)
def _labels(metric: str) -> tuple[str, str]:
    """Return a metric for people, without and with its prediction rule."""
    rule, label = parse_name(metric).rule, metric_label(metric)
    return label, f"{label}, {rule_label(rule)}" if rule else label


def _side(value: Mapping[str, Any]) -> SideView:
    label = _labels(str(value["metric"]))[1]
    at = f", x = {value['x']:g}" if "x" in value else ""
    mean, ci95 = _maybe(value.get("mean")), _pair(value.get("ci95"))
    return SideView(str(value["arm"]), label + at, mean, ci95)


def claim_view(claim: Mapping[str, Any]) -> ClaimView:
    """Return one claim of claims.json for showing.

    Raises:
        ValueError: If it is no claim; says what is wrong.
    """
    try:
        ours, kind, verdict = claim["ours"], str(claim["kind"]), str(claim["verdict"])
        if verdict not in VERDICT_WORDS:
            raise ValueError(f"unknown verdict {verdict!r}")
        sides = [ours[side] for side in ("left", "right") if ours.get(side)]
        sides += ours.get("points") or []
        effect, ci95 = _maybe(claim["effect"]), _pair(claim["ci95"])
        what = _what(kind, ours, str(claim["test"]))
        reported = dict(claim["paper"] or {})
        low, high = ci95 or (None, None)
        interval = None
        if effect is not None and math.isfinite(effect):
            region = claimed_region(str(claim["test"]))
            number = paper_effect(claim)
            interval = Interval(str(claim["id"]), effect, low, high, region, number, verdict)
        return ClaimView(
            id=str(claim["id"]),
            statement=str(claim["statement"]),
            verdict=verdict,
            kind=kind,
            sides=tuple(_side(side) for side in sides),
            what=what,
            effect=effect,
            ci95=ci95,
            n=int(claim["n_seeds"]),
            p_value=_maybe(claim["p_value"]),
            test=str(claim["test"]),
            note=str(claim["note"] or ""),
            reported={str(k): v for k, v in reported.items() if k != "source"},
            source=str(reported.get("source", "")),
            interval=interval,
            unit=_unit(kind, what, sides),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as cause:
        raise ValueError(f"{type(cause).__name__}: {cause}") from cause


def _what(kind: str, ours: Mapping[str, Any], test: str) -> str:
    """Return what a claim's effect is, in words."""
    if kind == "trend":
        return "slope" if "slope" in test else "Spearman's ρ"
    relation = str(ours.get("relation", ""))
    return {"left": "value", "left - right": "difference", "left / right": "ratio"}.get(
        relation, relation
    )


def _unit(kind: str, what: str, sides: Sequence[Mapping[str, Any]]) -> str:
    """Return the title of the axis that a claim's effect is drawn on."""
    metrics = list(dict.fromkeys(_labels(str(side["metric"]))[0] for side in sides))
    metric = metrics[0] if metrics else ""
    if kind == "trend":
        return f"{what} of {metric} over the points" if len(metrics) == 1 else f"{what} over points"
    if what == "ratio":
        return f"ratio of {' to '.join(metrics)} (no unit)"
    if what == "difference":
        return f"difference in {metric}" if len(metrics) == 1 else " − ".join(metrics)
    return f"largest |{metric}|" if kind == "identity" else metric


def _scale_view(folder: Path, scale: str) -> ScaleView:
    """Read one results folder; whatever is wrong with it becomes a sentence."""
    try:
        score: Score = read_score(folder, scale)
    except (BayesruleError, OSError) as error:
        return ScaleView(scale, problem=str(error))
    views: list[ClaimView] = []
    for place, claim in enumerate(score.claims, start=1):
        try:
            views.append(claim_view(claim))
        except ValueError as error:
            where = folder / "claims.json"
            return ScaleView(scale, problem=f"{where}: claim {place} is damaged: {error}")
    return ScaleView(scale, tuple(views), score.date, score.commit)


_Signature = tuple[tuple[str, int, int], ...]


def _signature(paths: Iterable[Path]) -> _Signature:
    """Return what changes when one of the files does; files that are not there are left out."""
    found = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError:
            continue
        found.append((str(path), facts.st_mtime_ns, facts.st_size))
    return tuple(found)


class Shelf:
    """All papers with their results; a paper is read again when a file of its has changed.

    Args:
        experiments: Folder with a folder per paper.
        results: Folder of committed results.
    """

    def __init__(self, experiments: Path, results: Path) -> None:
        self.experiments, self.results = Path(experiments), Path(results)
        self._papers: dict[str, tuple[_Signature, PaperView]] = {}

    def papers(self) -> list[PaperView]:
        """Return every paper by key."""
        return [self._read(key) for key in find_papers(self.experiments)]

    def paper(self, key: str) -> PaperView | None:
        """Return one paper; None if there is none of this name among the folders."""
        return self._read(key) if key in find_papers(self.experiments) else None

    def full(self, paper: PaperView) -> Paper | None:
        """Return all that a paper's paper.yaml says, studies included; None if it is wrong."""
        try:
            return load_paper(self.experiments / paper.key)
        except (BayesruleError, OSError, UnicodeDecodeError):
            return None

    def folder(self, key: str, scale: str) -> Path:
        """Return the folder of results of a paper that `paper` has returned."""
        return self.results / key / scale

    def _read(self, key: str) -> PaperView:
        files = [self.experiments / key / "paper.yaml"]
        files += [
            self.results / key / scale / name
            for scale in SCALES
            for name in ("claims.json", "provenance.json")
        ]
        signature = _signature(files)
        known = self._papers.get(key)
        if known is None or known[0] != signature:
            known = (signature, self._build(key, {path for path, *_ in signature}))
            self._papers[key] = known
        return known[1]

    def _build(self, key: str, there: set[str]) -> PaperView:
        paper, problem = None, ""
        try:
            paper = read_header(self.experiments / key)
        except (BayesruleError, OSError, UnicodeDecodeError) as error:
            problem = str(error)
        folders = {scale: self.folder(key, scale) for scale in SCALES}
        scales = {
            scale: _scale_view(folder, scale)
            for scale, folder in folders.items()
            if str(folder / "claims.json") in there
        }
        return PaperView(key, paper, scales, problem)


@dataclass(frozen=True)
class Filter:
    """What the scoreboard shows: empty fields let everything through.

    Attributes:
        task: A kind of task.
        posterior: A posterior family.
        scale: A scale; empty: the scales that judge claims.
        verdict: A verdict of claims.
        q: Words in title, key, id or statement.
    """

    task: str = ""
    posterior: str = ""
    scale: str = ""
    verdict: str = ""
    q: str = ""

    def query(self) -> dict[str, str]:
        """Return the fields that are set, for a URL."""
        return {name: value for name, value in vars(self).items() if value}

    def takes_paper(self, paper: PaperView) -> bool:
        """Return whether a paper's task and posteriors fit."""
        return (not self.task or self.task in paper.tasks) and (
            not self.posterior or self.posterior in paper.posteriors
        )

    def scales(self, paper: PaperView) -> list[ScaleView]:
        """Return a paper's results that are shown; damaged ones always are."""
        if self.scale:
            return [view for scale, view in paper.scales.items() if scale == self.scale]
        return [view for view in paper.scales.values() if view.judges or view.problem]


def _fits(words: str, *texts: str) -> bool:
    whole = " ".join(texts).casefold()
    return all(word in whole for word in words.casefold().split())


def paper_rows(
    papers: Iterable[PaperView], wanted: Filter
) -> list[tuple[PaperView, ScaleView | None]]:
    """Return the rows of the scoreboard: a paper at a scale, or a paper that has no results.

    Args:
        papers: All papers.
        wanted: What is shown; `verdict` keeps rows with such a claim.
    """
    rows: list[tuple[PaperView, ScaleView | None]] = []
    for paper in papers:
        authors = paper.paper.authors if paper.paper else ""
        if not wanted.takes_paper(paper) or not _fits(wanted.q, paper.key, paper.title, authors):
            continue
        views = wanted.scales(paper)
        if wanted.verdict:
            views = [view for view in views if view.counts[wanted.verdict]]
        elif not views and not wanted.scale:
            rows.append((paper, None))
        rows += [(paper, view) for view in views]
    return rows


def claim_rows(
    papers: Iterable[PaperView], wanted: Filter
) -> list[tuple[PaperView, ScaleView, ClaimView]]:
    """Return all claims that fit, paper by paper; those not judged only where asked for."""
    rows = []
    for paper in papers:
        if not wanted.takes_paper(paper):
            continue
        for view in wanted.scales(paper):
            for claim in view.claims:
                if wanted.verdict and claim.verdict != wanted.verdict:
                    continue
                if not (wanted.verdict or wanted.scale) and claim.verdict == "not_at_this_scale":
                    continue
                if _fits(wanted.q, paper.key, paper.title, claim.id, claim.statement):
                    rows.append((paper, view, claim))
    return rows


def choices(papers: Iterable[PaperView]) -> dict[str, list[str]]:
    """Return the values that the fields of a filter can take, as they occur."""
    papers = list(papers)
    return {
        "task": sorted({task for paper in papers for task in paper.tasks}),
        "posterior": sorted({name for paper in papers for name in paper.posteriors}),
        "scale": [scale for scale in SCALES if any(scale in paper.scales for paper in papers)],
        "verdict": list(VERDICT_WORDS),
    }


def interval_groups(view: ScaleView) -> list[tuple[str, list[Interval]]]:
    """Return the interval plots of a scale: claims whose effects share a unit, by axis title.

    Claims that are alone with their unit are left out (the table draws each by itself), and so are
    identities, whose deviations span ten orders of magnitude.
    """
    groups: dict[str, list[Interval]] = {}
    for claim in view.claims:
        if claim.interval is not None and claim.kind != "identity":
            groups.setdefault(claim.unit, []).append(claim.interval)
    return [(unit, rows) for unit, rows in groups.items() if len(rows) > 1]
