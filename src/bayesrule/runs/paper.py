"""What a paper claims and which runs decide it: `experiments/<key>/paper.yaml`, typed.

A `Study` says which runs are made (arms x seeds, per scale), a `Claim` what must be true of them.
`paper_yaml.load_paper` reads and checks the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayesrule.errors import ConfigError

__all__ = [
    "KINDS",
    "MIN_SEEDS",
    "SCALES",
    "TESTS",
    "Claim",
    "Paper",
    "PlannedRun",
    "Point",
    "ScaleSpec",
    "Side",
    "Study",
]

SCALES = ("smoke", "cpu", "paper")
"""Scales from the smallest; smoke judges nothing."""

MIN_SEEDS = 3
"""Fewest complete seeds for any verdict."""

TESTS: Mapping[str, tuple[str, ...]] = {
    "ordering": ("paired-t",),
    "value": ("t",),
    "trend": ("spearman", "slope"),
    "identity": ("max-abs",),
}
"""Tests of each kind of claim, the default first."""

KINDS = tuple(TESTS)


@dataclass(frozen=True)
class Side:
    """One metric of one arm."""

    arm: str
    metric: str


@dataclass(frozen=True)
class Point(Side):
    """A side at a place `x` of a trend."""

    x: float


@dataclass(frozen=True)
class ScaleSpec:
    """How a study is run at one scale.

    Attributes:
        seeds: Seeds that are run and judged.
        overrides: Overrides of every run.
        arms: The arms that are run; None: all.
        arm_overrides: Further overrides of single arms, applied last.
        experiment: The base experiment, where it differs from the study's.
    """

    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] | None = None
    arm_overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experiment: str | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: its overrides in order, the experiment first and the seed last."""

    study: str
    arm: str
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A set of runs: arms that differ in overrides, the same seeds for each.

    Attributes:
        name: Key in paper.yaml.
        title: For people.
        experiment: Base configuration, `<key>/<study>`.
        arms: Overrides by arm, in table order.
        scales: How it is run at each scale; a scale that is not here is not run.
        metrics: Columns of the table; empty: those that claims name.
        reported: The paper's own numbers by arm and metric, shown beside ours.
        source: Where those numbers stand.
        note: For people.
    """

    name: str
    title: str
    experiment: str
    arms: Mapping[str, tuple[str, ...]]
    scales: Mapping[str, ScaleSpec]
    metrics: tuple[str, ...] = ()
    reported: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str | None = None
    note: str | None = None

    def arms_at(self, scale: str) -> tuple[str, ...]:
        """Return the arms that are run at a scale, in table order."""
        spec = self.scales[scale]
        return tuple(arm for arm in self.arms if spec.arms is None or arm in spec.arms)

    def planned(self, scale: str, seeds: Sequence[int] | None = None) -> Iterator[PlannedRun]:
        """Yield the runs at a scale, arm by arm.

        Args:
            scale: One of `SCALES`; yields nothing if the study is not run there.
            seeds: Instead of the scale's own.
        """
        spec = self.scales.get(scale)
        if spec is None:
            return
        for arm in self.arms_at(scale):
            for seed in spec.seeds if seeds is None else seeds:
                yield PlannedRun(
                    study=self.name,
                    arm=arm,
                    seed=seed,
                    overrides=(
                        f"experiment={spec.experiment or self.experiment}",
                        f"scale={scale}",
                        *self.arms[arm],
                        *spec.overrides,
                        *spec.arm_overrides.get(arm, ()),
                        f"seed={seed}",
                    ),
                )


@dataclass(frozen=True)
class Claim:
    """Something that must be true of a study's runs.

    Attributes:
        id: Unique in the paper.
        statement: One sentence.
        kind: `ordering` (left better than right by more than the margin), `value` (the mean lies in
            a band), `trend` (monotone over ordered points) or `identity` (zero up to a tolerance).
        studies: Study by scale; at scales that are not here nothing is judged.
        sides: One side, or left and right; for a trend the points in order.
        scale: Lowest scale at which the claim means something.
        test: One of `TESTS[kind]`.
        direction: `lower` or `higher` (ordering: left against right), `decreasing` or `increasing`
            (trend).
        margin: Ordering: left must be better by more than this; negative: non-inferiority. Trend:
            the statistic must be beyond this, in the claimed direction.
        band: Value: lowest and highest, None for no limit.
        tolerance: Identity: the largest absolute value allowed.
        relation: Of two sides of a value or identity: `difference` or `ratio` (left to right).
        log_x: Slope of a trend: against the logarithm of x.
        reported: The paper's own numbers with `source`.
        headline: The card's letter, `C1`, `C2`, ...
        note: For people.
    """

    id: str
    statement: str
    kind: str
    studies: Mapping[str, str]
    sides: tuple[Side, ...]
    scale: str = "cpu"
    test: str = ""
    direction: str | None = None
    margin: float = 0.0
    band: tuple[float | None, float | None] | None = None
    tolerance: float | None = None
    relation: str = "difference"
    log_x: bool = False
    reported: Mapping[str, Any] | None = None
    headline: str | None = None
    note: str | None = None

    @property
    def metric(self) -> str:
        """The metrics' names, each once, as they are written in claims.json."""
        return " vs ".join(dict.fromkeys(side.metric for side in self.sides))


@dataclass(frozen=True)
class Paper:
    """One paper: who wrote it, what is run, what is claimed.

    Attributes:
        key: Name of its folder.
        title: Title.
        authors: Authors.
        year: Year.
        venue: Where it appeared.
        arxiv: arXiv number.
        official_code: Where the authors' code is.
        task: The kind of task, for `bayesrule papers`.
        posteriors: The posterior families, for `bayesrule papers`.
        studies: Studies by name.
        claims: Claims in order.
        note: For people.
    """

    key: str
    title: str
    authors: str
    year: int
    venue: str | None
    arxiv: str | None
    official_code: str | None
    task: str | None
    posteriors: tuple[str, ...]
    studies: Mapping[str, Study]
    claims: tuple[Claim, ...]
    note: str | None = None

    @property
    def scales(self) -> tuple[str, ...]:
        """The scales at which some study is run, the smallest first."""
        return tuple(s for s in SCALES if any(s in study.scales for study in self.studies.values()))

    def planned(self, scale: str, seeds: Sequence[int] | None = None) -> list[PlannedRun]:
        """Return all runs at a scale, study by study.

        Args:
            scale: One of `SCALES`.
            seeds: Instead of the studies' own.

        Raises:
            ConfigError: If no study is run at that scale.
        """
        runs = [run for study in self.studies.values() for run in study.planned(scale, seeds)]
        if not runs:
            raise ConfigError(
                f"{self.key} has no runs at scale {scale!r}; it has: {', '.join(self.scales)}"
            )
        return runs
