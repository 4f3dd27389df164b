"""Tables of a paper's runs: arms as rows, metrics as columns, mean and 95 % half-width over seeds.

Formatting is deterministic: the same records give the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bayesrule.runs.paper import Paper, Study
from bayesrule.runs.record import ArmRun
from bayesrule.runs.statistics import Interval, mean_interval

__all__ = ["Cell", "columns", "format_interval", "make_cells", "render_csv", "render_markdown"]


@dataclass(frozen=True)
class Cell:
    """One metric of one arm over the seeds of a scale.

    Attributes:
        study: The study's name.
        arm: The arm's name.
        metric: The metric's name.
        interval: Over the finite values; None if there is none.
        planned: How many seeds were to be run.
        lost: How many of them failed or gave a value that is not finite.
        reported: The paper's own number, where paper.yaml has it.
        absent: Whether every run is done and the arm does not measure this.
    """

    study: str
    arm: str
    metric: str
    interval: Interval | None
    planned: int
    lost: int
    reported: float | None
    absent: bool = False

    @property
    def n(self) -> int:
        """Number of finite values."""
        return 0 if self.interval is None else self.interval.n

    def text(self) -> str:
        """Return the cell for people: `0.735 ± 0.012`, with what is amiss behind."""
        parts = [] if self.interval is None else [format_interval(self.interval)]
        if self.absent:
            parts.append("–")
        elif self.n < self.planned:
            failed = f", {self.lost} failed" if self.lost else ""
            parts.append(f"({self.n} of {self.planned} seeds{failed})")
        if self.reported is not None:
            parts.append(f"[{self.reported:g}]")
        return " ".join(parts)


def format_interval(interval: Interval) -> str:
    """Return `mean ± half-width` with two significant digits of the half-width.

    One value, or equal values, are shown with four significant digits.
    """
    half = interval.half_width
    if half is None:
        return f"{interval.mean:.4g}"
    if half == 0:
        return f"{interval.mean:.4g} ± 0"
    digits = 1 - math.floor(math.log10(half))
    largest = max(abs(interval.mean), half)
    if digits > 6 or largest >= 1e6:
        shown = max(2, 2 + math.floor(math.log10(largest)) - math.floor(math.log10(half)))
        return f"{interval.mean:.{min(shown, 17)}g} ± {half:.2g}"
    places = max(digits, 0)
    return f"{interval.mean:.{places}f} ± {half:.{places}f}"


def columns(paper: Paper, study: Study, scale: str, records: Iterable[ArmRun]) -> list[str]:
    """Return a study's columns: those it names, else those its claims name, else all there are."""
    if study.metrics:
        return list(study.metrics)
    claimed = [
        side.metric
        for claim in paper.claims
        if claim.studies.get(scale) == study.name
        for side in claim.sides
    ]
    if claimed:
        return list(dict.fromkeys(claimed))
    return sorted({name for run in records if run.study == study.name for name in run.metrics})


def make_cells(
    paper: Paper, scale: str, records: Sequence[ArmRun], seeds: Sequence[int] | None = None
) -> list[Cell]:
    """Return the table's cells: study by study, arm by arm, metric by metric.

    Args:
        paper: The paper.
        scale: The scale.
        records: Its runs.
        seeds: The seeds shown, instead of those declared.
    """
    by_key = {(run.study, run.arm, run.seed): run for run in records}
    cells = []
    for study in paper.studies.values():
        if scale not in study.scales:
            continue
        wanted = study.scales[scale].seeds if seeds is None else tuple(seeds)
        names = columns(paper, study, scale, records)
        for arm in study.arms_at(scale):
            runs = [by_key.get((study.name, arm, seed)) for seed in wanted]
            for metric in names:
                done = [run.metrics.get(metric) for run in runs if run and run.status == "done"]
                finite = [float(x) for x in done if x is not None and math.isfinite(x)]
                strange = sum(1 for x in done if x is not None and not math.isfinite(x))
                cells.append(
                    Cell(
                        study=study.name,
                        arm=arm,
                        metric=metric,
                        interval=mean_interval(finite) if finite else None,
                        planned=len(wanted),
                        lost=strange + sum(1 for run in runs if run and run.status == "failed"),
                        reported=study.reported.get(arm, {}).get(metric),
                        absent=len(done) == len(wanted) and all(x is None for x in done),
                    )
                )
    return cells


def render_csv(cells: Iterable[Cell]) -> str:
    """Return the cells as CSV, one per row, numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["study", "arm", "metric", "mean", "half_width", "n", "planned", "failed", "paper"]
    )

    def number(value: float | None) -> str:
        return "" if value is None else repr(float(value))

    for cell in cells:
        mean = None if cell.interval is None else cell.interval.mean
        half = None if cell.interval is None else cell.interval.half_width
        writer.writerow(
            [
                cell.study,
                cell.arm,
                cell.metric,
                number(mean),
                number(half),
                cell.n,
                cell.planned,
                cell.lost,
                number(cell.reported),
            ]
        )
    return out.getvalue()


def _row(parts: Iterable[str]) -> str:
    cleaned = (" ".join(part.replace("|", "\\|").split()) for part in parts)
    return "| " + " | ".join(cleaned) + " |"


def _claim_rows(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## Claims", "", _row(["claim", "verdict", "effect, 95% CI", "n", "p", "note"])]
    lines.append("|---|---|---|---|---|---|")
    for claim in claims:
        effect = "" if claim["effect"] is None else f"{claim['effect']:.4g}"
        if claim["ci95"] is not None:
            effect += " [{:.4g}, {:.4g}]".format(*claim["ci95"])
        p = "" if claim["p_value"] is None else f"{claim['p_value']:.2g}"
        name = f"**{claim['id']}** {claim['statement']}"
        lines.append(
            _row([name, claim["verdict"], effect, str(claim["n_seeds"]), p, claim["note"]])
        )
    return [*lines, ""]


def render_markdown(
    paper: Paper, scale: str, cells: Sequence[Cell], claims: Sequence[Mapping[str, Any]]
) -> str:
    """Return the tables of all studies and the verdicts as Markdown."""
    lines = [
        f"# {paper.title} ({paper.key}, scale {scale})",
        "",
        "Mean ± half-width of the 95% t interval over seeds"
        + ("; –: not measured by that arm" if any(c.absent for c in cells) else "")
        + ("; the paper's own number in [brackets]." if any(c.reported for c in cells) else "."),
        "",
    ]
    for study in paper.studies.values():
        own = [cell for cell in cells if cell.study == study.name]
        if not own:
            continue
        names = list(dict.fromkeys(cell.metric for cell in own))
        seeds = own[0].planned
        lines += [f"## {study.title}", "", f"Study `{study.name}`, {seeds} seeds."]
        if study.source and any(cell.reported is not None for cell in own):
            lines[-1] += f" Paper: {study.source}."
        lines += ["", _row(["arm", *names]), "|---" * (len(names) + 1) + "|"]
        for arm in dict.fromkeys(cell.arm for cell in own):
            lines.append(_row([arm, *(cell.text() for cell in own if cell.arm == arm)]))
        lines.append("")
    if claims:
        lines += _claim_rows(claims)
    return "\n".join(lines)
