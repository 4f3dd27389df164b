"""Tables of `results/<key>/<scale>/` for the terminal: numbers beside the paper's, verdicts."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError, CorruptFile
from bayesrule.report.text import columns_text, format_number, one_line
from bayesrule.runs import Interval
from bayesrule.runs.tables import format_interval

__all__ = ["ResultCell", "read_table", "results_table", "verdict_counts", "verdict_table"]

_Column = tuple[str, Sequence[str]]  # title, cells

VERDICT_WORDS = {
    "shown": "shown",
    "not_shown": "not shown",
    "contradicted": "contradicted",
    "not_enough_seeds": "too few seeds",
    "not_at_this_scale": "not at this scale",
}
"""Verdicts as they are shown to people, in the order of counting."""


@dataclass(frozen=True)
class ResultCell:
    """One line of table.csv.

    Attributes:
        study: The study's name.
        arm: The arm's name.
        metric: The metric's name.
        mean: Mean over seeds; None if no run gave a finite value.
        half: Half the width of the 95 % interval; None for fewer than two values.
        n: Number of finite values.
        planned: Number of planned seeds.
        failed: How many failed or gave no finite value.
        paper: The paper's own number.
    """

    study: str
    arm: str
    metric: str
    mean: float | None
    half: float | None
    n: int
    planned: int
    failed: int
    paper: float | None

    def text(self) -> str:
        """Return `mean ± half-width`, with what is amiss behind."""
        parts = []
        if self.mean is not None:
            ends = None if self.half is None else (self.mean - self.half, self.mean + self.half)
            parts.append(format_interval(Interval(self.mean, math.nan, self.n, ends)))
        if self.n < self.planned:
            parts.append(f"({self.failed} failed)" if self.failed else f"({self.n}/{self.planned})")
        return " ".join(parts)


def read_table(folder: str | Path) -> list[ResultCell]:
    """Read table.csv of a results folder.

    Raises:
        BayesruleError: If there is none.
        CorruptFile: If a line does not fit.
    """
    path = Path(folder) / "table.csv"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BayesruleError(f"there are no results in {folder} (no table.csv)") from None

    def number(field: str) -> float | None:
        return float(field) if field else None

    try:
        return [
            ResultCell(
                study=row["study"],
                arm=row["arm"],
                metric=row["metric"],
                mean=number(row["mean"]),
                half=number(row["half_width"]),
                n=int(row["n"]),
                planned=int(row["planned"]),
                failed=int(row["failed"]),
                paper=number(row["paper"]),
            )
            for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as cause:
        raise CorruptFile(f"{path} is damaged: {cause!r}") from None


def _blocks(units: Sequence[Sequence[_Column]], first: int, width: int) -> list[list[_Column]]:
    """Divide columns into blocks that fit into `width` beside a first one; units stay whole."""
    blocks: list[list[_Column]] = []
    used = 0
    for unit in units:
        own = sum(2 + max(len(text) for text in (title, *cells)) for title, cells in unit)
        if not blocks or used + own > width:
            blocks.append([])
            used = first
        blocks[-1] += unit
        used += own
    return blocks


def results_table(cells: Sequence[ResultCell], width: int = 110) -> str:
    """Return the tables of all studies: arms as rows, metrics as columns.

    Cells are the mean over seeds ± half the width of its 95 % t interval; the paper's own numbers,
    where paper.yaml has them, stand in a column beside. Metrics that no run has are named below.

    Args:
        cells: See `read_table`.
        width: Characters per line; wider tables are cut into blocks of columns.
    """
    parts = []
    for study in dict.fromkeys(cell.study for cell in cells):
        own = [cell for cell in cells if cell.study == study]
        arms = list(dict.fromkeys(cell.arm for cell in own))
        units: list[list[_Column]] = []
        absent: list[str] = []
        anything = any(cell.n or cell.failed for cell in own)
        for metric in dict.fromkeys(cell.metric for cell in own):
            by_arm = {cell.arm: cell for cell in own if cell.metric == metric}
            if anything and not any(cell.n or cell.failed for cell in by_arm.values()):
                absent.append(metric)
                continue
            column = [by_arm[arm].text() if arm in by_arm else "" for arm in arms]
            units.append([(metric, column)])
            paper = [format_number(by_arm[arm].paper) if arm in by_arm else "" for arm in arms]
            if any(paper):
                units[-1].append(("paper", paper))
        texts = []
        for block in _blocks(units, max(map(len, (*arms, study))), width):
            rows = [[arm, *(column[i] for _, column in block)] for i, arm in enumerate(arms)]
            texts.append(columns_text([study, *(title for title, _ in block)], rows))
        seeds = max(cell.planned for cell in own)
        note = f"mean ± half-width of the 95% interval over {seeds} seeds"
        text = "\n\n".join(texts) + "\n" + (note if seeds > 1 else "one seed")
        parts.append(text + (f"; no run has {', '.join(absent)}" if absent else ""))
    return "\n\n".join(parts) if parts else "no results"


def _interval_text(claim: Mapping[str, Any]) -> str:
    if claim["effect"] is None:
        return ""
    text = f"{claim['effect']:.3g}"
    if claim["ci95"] is not None:
        text += " [{:.3g}, {:.3g}]".format(*claim["ci95"])
    return text


def _paper_text(claim: Mapping[str, Any]) -> str:
    """Return the paper's own numbers in one line: `Table 1: ivon 0.912, sgd 1.083`."""
    reported = claim["paper"]
    if not reported:
        return ""
    numbers = [f"{key} {value}" for key, value in reported.items() if key != "source"]
    head = f"{reported['source']}: " if "source" in reported else ""
    return one_line(head + ", ".join(numbers))


def verdict_table(claims: Sequence[Mapping[str, Any]], width: int = 110) -> str:
    """Return claims with verdict, effect and its 95 % interval, seeds, p-value and statement.

    Args:
        claims: As in claims.json.
        width: Characters per line, for wrapping statements.
    """
    if not claims:
        return "no claims"
    header = ["claim", "verdict", "effect [95% CI]", "n", "p", "statement"]
    heads = []
    for claim in claims:
        p = claim["p_value"]
        verdict = VERDICT_WORDS.get(claim["verdict"], claim["verdict"])
        seeds = str(claim["n_seeds"]) if claim["n_seeds"] else ""
        p_text = "" if p is None else f"{p:.1g}" if p >= 1e-4 else "<1e-4"
        heads.append([one_line(claim["id"]), verdict, _interval_text(claim), seeds, p_text])
    used = sum(max(map(len, column)) + 2 for column in zip(header[:-1], *heads, strict=True))
    rows: list[list[str]] = []
    for head, claim in zip(heads, claims, strict=True):
        texts = [one_line(claim["statement"])]
        if paper := _paper_text(claim):
            texts.append(f"paper: {paper}")
        if claim["note"] and claim["verdict"] != "not_at_this_scale":
            texts.append(f"({one_line(claim['note'])})")
        lines = [line for text in texts for line in textwrap.wrap(text, max(36, width - used))]
        rows.append([*head, lines[0] if lines else ""])
        rows += [[*[""] * len(head), line] for line in lines[1:]]
    return f"{columns_text(header, rows, left=(0, 1, 2, 5))}\n{verdict_counts(claims)}"


def verdict_counts(claims: Sequence[Mapping[str, Any]]) -> str:
    """Return how many claims have each verdict: `3 shown, 1 not shown`."""
    given = [claim["verdict"] for claim in claims]
    counts = [(given.count(verdict), words) for verdict, words in VERDICT_WORDS.items()]
    return ", ".join(f"{count} {words}" for count, words in counts if count) or "no claims"
