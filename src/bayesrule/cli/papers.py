"""`bayesrule papers`: every paper with its verdicts, and the scoreboard in the README."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bayesrule.config import experiments_dir, results_dir, root_dir
from bayesrule.errors import BayesruleError
from bayesrule.report.results import VERDICT_WORDS
from bayesrule.report.scoreboard import Standing, replace_scoreboard, scoreboard, standings
from bayesrule.report.text import shorten
from bayesrule.runs import write_atomic

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule papers                    every paper, and what its claims came to at each scale
  bayesrule papers --json | jq        the same as data
  bayesrule papers --write-readme     bring the table in README.md up to date
  bayesrule papers --check            exit code 1 if that table is out of date

The verdicts are those in results/KEY/SCALE/claims.json; nothing is run or judged here.
"""


def main(words: Sequence[str]) -> int:
    """List papers, or write or check the scoreboard; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="bayesrule papers",
        description="Every paper: task, posteriors, and the verdict per claim and scale.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print JSON")
    what.add_argument("--write-readme", action="store_true", help="write the table in README.md")
    what.add_argument("--check", action="store_true", help="fail if that table is out of date")
    args = parser.parse_args(words)
    full = args.json or args.check or args.write_readme
    found, problems = standings(experiments_dir(), results_dir(), full=full)
    for problem in problems:
        print(f"bayesrule papers: {problem}", file=sys.stderr)
    if args.write_readme or args.check:
        if problems:
            return 1
        return _readme(root_dir() / "README.md", found, write=args.write_readme)
    if args.json:
        print(json.dumps([standing.to_json() for standing in found], indent=1, ensure_ascii=False))
    elif found:
        print("\n\n".join(map(_block, found)))
    else:
        print(f"no papers in {experiments_dir()}")
    return 1 if problems else 0


def _readme(path: Path, found: Sequence[Standing], *, write: bool) -> int:
    """Write or check the table in the README."""
    try:
        before = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BayesruleError(f"{path} does not exist") from None
    after = replace_scoreboard(before, scoreboard(found))
    if before == after:
        print(f"{path.name}: the scoreboard is up to date")
        return 0
    if not write:
        print(f"{path.name}: the scoreboard is out of date; run `bayesrule papers --write-readme`")
        return 1
    write_atomic(path, after)
    print(f"{path.name}: the scoreboard was written")
    return 0


def _block(standing: Standing) -> str:
    """Return a paper in a few lines: what it is, then one line per scale and verdict."""
    paper = standing.paper
    venue = paper.venue or str(paper.year)
    lines = [f"{paper.key}  {shorten(paper.title, 80)} ({venue})"]
    facts = [paper.task or "", ", ".join(paper.posteriors)]
    if any(facts):
        lines.append(f"  {'; '.join(fact for fact in facts if fact)}")
    for scale, score in standing.scores.items():
        parts = [
            f"{len(score.ids(verdict))} {words} ({', '.join(score.ids(verdict))})"
            for verdict, words in VERDICT_WORDS.items()
            if score.ids(verdict) and verdict != "not_at_this_scale"
        ]
        judged = "; ".join(parts) or "runs are done; no claim is judged at this scale"
        lines.append(f"  {scale:6} {judged}" + (f"  [{score.date}]" if score.date else ""))
    if not standing.scores:
        lines.append(f"  not run yet (bayesrule reproduce {paper.key})")
    return "\n".join(lines)
