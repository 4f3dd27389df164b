"""Every paper with what its claims came to: for `bayesrule papers` and the table in the README.

Read from `experiments/*/paper.yaml` and `results/*/*/` only; needs PyYAML and JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.report.results import VERDICT_WORDS
from bayesrule.runs import (
    SCALES,
    Paper,
    find_papers,
    list_results,
    load_paper,
    read_claims,
    read_json,
)

__all__ = [
    "BEGIN",
    "END",
    "Score",
    "Standing",
    "read_header",
    "read_score",
    "replace_scoreboard",
    "scoreboard",
    "standings",
]

BEGIN = "<!-- scoreboard:begin -->"
END = "<!-- scoreboard:end -->"


@dataclass(frozen=True)
class Score:
    """A paper's committed results at one scale.

    Attributes:
        scale: The scale.
        claims: As in claims.json.
        date: When the last run ended (YYYY-MM-DD), if known.
        commit: Commits that the runs were made with; a mark says that files differed from it.
    """

    scale: str
    claims: Sequence[Mapping[str, Any]]
    date: str = ""
    commit: str = ""

    def ids(self, verdict: str) -> list[str]:
        """Return the ids of the claims with a verdict."""
        return [claim["id"] for claim in self.claims if claim["verdict"] == verdict]

    def verdict(self, claim: str) -> str | None:
        """Return the verdict on a claim, None if it was not judged."""
        found = [each["verdict"] for each in self.claims if each["id"] == claim]
        return found[0] if found else None


@dataclass(frozen=True)
class Standing:
    """A paper and its results at every scale.

    Attributes:
        paper: The paper; without studies and claims unless they were asked for.
        scores: Results by scale, the smallest first.
    """

    paper: Paper
    scores: Mapping[str, Score] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the paper and its verdicts as plain data; the paper must be read in full."""
        paper = self.paper
        facts = ("key", "title", "authors", "year", "venue", "arxiv", "official_code", "task")
        return {
            **{name: getattr(paper, name) for name in facts},
            "posteriors": list(paper.posteriors),
            "scales": list(paper.scales),
            "claims": [
                {
                    "id": claim.id,
                    "headline": claim.headline,
                    "statement": claim.statement,
                    "kind": claim.kind,
                    "scale": claim.scale,
                    "verdicts": {s: score.verdict(claim.id) for s, score in self.scores.items()},
                }
                for claim in paper.claims
            ],
            "results": {
                scale: {"date": score.date, "commit": score.commit}
                for scale, score in self.scores.items()
            },
        }


def _texts(value: Any) -> list[str]:
    """Return a combined provenance field, one value or a list, as texts."""
    values = value if isinstance(value, list) else [value]
    return [str(one) for one in values if one is not None]


def _score(folder: Path, scale: str, claims: Sequence[Mapping[str, Any]]) -> Score:
    try:
        provenance = read_json(folder / "provenance.json", checksum=False)
    except FileNotFoundError:
        return Score(scale, claims)
    commits = [text[:8] for text in _texts(provenance.get("commit"))]
    shown = ", ".join(commits[:2]) + (f" and {len(commits) - 2} more" if commits[2:] else "")
    mark = "+" if provenance.get("dirty") else ""
    return Score(scale, claims, str(provenance.get("date") or "")[:10], shown + mark)


def read_score(folder: Path, scale: str) -> Score:
    """Read the verdicts of `results/<key>/<scale>` with their date and commit.

    Raises:
        BayesruleError: If there are none.
        CorruptFile: If claims.json or provenance.json is damaged.
    """
    return _score(folder, scale, read_claims(folder))


def read_header(folder: Path) -> Paper:
    """Return a paper without its studies and claims, from the first block of paper.yaml alone.

    That block is a hundredth of the file, and a list of papers needs no more. Whatever looks
    unusual is left to `load_paper`, which knows how to complain.

    Raises:
        ConfigError: If the file is wrong.
    """
    import yaml

    text = (folder / "paper.yaml").read_text(encoding="utf-8", errors="replace")
    block = re.search(r"^paper:.*?(?=^[^\s#]|\Z)", text, re.MULTILINE | re.DOTALL)
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        facts: Any = yaml.load(block[0], Loader=loader)["paper"] if block else None
        posteriors = tuple(facts.get("posteriors", ()))
        authors = facts["authors"]
        return Paper(
            key=folder.name,
            title=" ".join(facts["title"].split()),
            authors=authors if isinstance(authors, str) else ", ".join(authors),
            year=int(facts["year"]),
            venue=facts.get("venue"),
            arxiv=facts.get("arxiv"),
            official_code=facts.get("official_code"),
            task=facts.get("task"),
            posteriors=tuple(str(name) for name in posteriors),
            studies={},
            claims=(),
        )
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return load_paper(folder)


def standings(
    experiments: Path, results: Path, *, full: bool = False
) -> tuple[list[Standing], list[str]]:
    """Return every paper with its results, and what could not be read.

    Args:
        experiments: Folder with a folder per paper.
        results: Folder of committed results.
        full: Also read and check studies and claims.

    Returns:
        Standings by key, and one sentence per paper.yaml that is wrong.

    Raises:
        CorruptFile: If a claims.json or provenance.json is damaged.
    """
    stored = list_results(results)
    found, problems = [], []
    for key in find_papers(experiments):
        try:
            paper = load_paper(experiments / key) if full else read_header(experiments / key)
        except ConfigError as error:
            problems.append(str(error))
            continue
        own = stored.get(key, {})
        scores = {
            scale: _score(results / key / scale, scale, own[scale])
            for scale in SCALES
            if scale in own
        }
        found.append(Standing(paper, scores))
    return found, problems


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _counted(ids: Sequence[str]) -> str:
    return f"{len(ids)}: {', '.join(f'`{name}`' for name in ids)}" if ids else "0"


def scoreboard(found: Sequence[Standing]) -> str:
    """Return the scoreboard as a Markdown table: a row per paper and scale that judges claims.

    Args:
        found: See `standings`.
    """
    verdicts = ("shown", "not_shown", "contradicted")
    titles = ["paper", "venue", "scale", *(VERDICT_WORDS[v] for v in verdicts), "date", "commit"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for standing in found:
        paper = standing.paper
        name = f"[{_cell(paper.title)}](experiments/{paper.key}/README.md) (`{paper.key}`)"
        venue = _cell(paper.venue or str(paper.year))
        judged = [score for scale, score in standing.scores.items() if scale != "smoke"]
        rows = [
            [
                f"[{score.scale}](results/{paper.key}/{score.scale}/table.md)",
                *(_counted(score.ids(verdict)) for verdict in verdicts),
                score.date,
                f"`{score.commit}`" if score.commit else "",
            ]
            for score in judged
        ]
        for row in rows or [["not run yet", "", "", "", "", ""]]:
            lines.append("| " + " | ".join([name, venue, *row]) + " |")
    if not found:
        return "No papers yet."
    return "\n".join(lines)


def replace_scoreboard(readme: str, table: str) -> str:
    """Return a README with the text between the scoreboard's marks replaced.

    Raises:
        BayesruleError: If the marks are not there once each, in order.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head or END in tail:
        raise BayesruleError(f"README.md must have one line {BEGIN} and, below it, one line {END}")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"
