"""`bayesrule reproduce KEY`: run what is missing, judge the claims, write results/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayesrule.config import experiments_dir, results_dir, root_dir, runs_dir
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import SCALES, RunStore, parse_seeds, write_results

if TYPE_CHECKING:
    from bayesrule.tasks.study import Reproduction

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule reproduce ivon --scale smoke        the path, in seconds
  bayesrule reproduce ivon                      cpu scale: judges the claims
  bayesrule reproduce ivon --seeds 100:105 --out /tmp/ivon
  bayesrule reproduce ivon --study p2 trainer.epochs=50 --out /tmp/ivon50
  bayesrule reproduce fedlap engine=flower      the same on Ray, into results-flower/

Runs that are done are not repeated; a killed command goes on where it was.
"""


def main(words: Sequence[str]) -> int:
    """Reproduce one paper; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="bayesrule reproduce",
        description="Run a paper's studies, judge its claims and write results/KEY/SCALE/.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("key", help="the paper's key, see `bayesrule papers`")
    parser.add_argument("--scale", default="cpu", choices=SCALES)
    parser.add_argument("--seeds", help="other seeds than the paper's, e.g. 100:105 or 10,11,12")
    parser.add_argument("--study", action="append", help="only this study (may be repeated)")
    parser.add_argument("--jobs", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument("--only", choices=("failed",), help="do again only the runs that failed")
    parser.add_argument("--out", type=Path, help="where results go instead of results/KEY/SCALE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    args = parser.parse_intermixed_args(words)
    if args.jobs < 0:
        raise ConfigError(f"--jobs {args.jobs}: give a number of processes >= 1")
    engine = _engine(args.overrides)
    changed = bool(args.seeds or args.study or (args.overrides and engine is None))
    if changed and args.out is None:
        raise ConfigError(
            "other seeds, studies or overrides give other results than the committed ones: say "
            "where they go with --out DIR"
        )
    from bayesrule.tasks.signals import Stopped
    from bayesrule.tasks.study import reproduce

    seeds = None if args.seeds is None else parse_seeds(args.seeds)
    folder = experiments_dir() / args.key
    try:
        outcome = reproduce(
            folder,
            RunStore(runs_dir()),
            args.scale,
            seeds=seeds,
            studies=args.study,
            overrides=args.overrides,
            jobs=args.jobs,
            only=args.only,
        )
    except Stopped as ending:
        print(f"{args.key}: {ending}", file=sys.stderr)
        return ending.exit_code
    committed = results_dir() if engine is None else root_dir() / f"results-{engine}"
    out = args.out or committed / args.key / args.scale
    claims = write_results(
        out, outcome.paper, args.scale, outcome.runs, seeds=seeds, overrides=args.overrides
    )
    from bayesrule.report import read_table, results_table, verdict_counts, verdict_table

    failures = [*outcome.failures, *_figures(folder, outcome, out)]
    ran = {run.study for run in outcome.runs}
    print(results_table([cell for cell in read_table(out) if cell.study in ran]))
    judged = [claim for claim in claims if claim["verdict"] != "not_at_this_scale"]
    if judged:
        print(f"\n{verdict_table(judged)}")
    print(f"\n{args.key} at scale {args.scale}: {verdict_counts(claims)}")
    print(f"results: {_short(out)}  ({outcome.wall_seconds:.0f} s in this call)")
    for text in outcome.left_out:
        print(f"left out: {text}", file=sys.stderr)
    for text in failures:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if failures else 0


def _engine(overrides: Sequence[str]) -> str | None:
    """Return the engine that all overrides are about, which has a results folder of its own."""
    if not overrides or not all(word.startswith(("engine=", "engine.")) for word in overrides):
        return None
    chosen = [word.partition("=")[2] for word in overrides if word.startswith("engine=")]
    return chosen[-1] if chosen else None


def _figures(folder: Path, outcome: Reproduction, out: Path) -> list[str]:
    """Draw the paper's figures; a figure that cannot be drawn loses no result."""
    from bayesrule.report import Records, draw_figures

    try:
        draw_figures(folder, Records(outcome.runs, outcome.store), out / "figures")
    except BayesruleError as error:
        return [f"figures: {error}"]
    return []


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(root_dir()))
    except (ValueError, BayesruleError):
        return str(path)
