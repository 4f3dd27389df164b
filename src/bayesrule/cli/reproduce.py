"""`bayesrule reproduce KEY`: run what is missing, judge the claims, write results/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bayesrule.config import experiments_dir, results_dir, root_dir, runs_dir
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import SCALES, RunStore, parse_seeds

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule reproduce ivon --scale smoke        the path, in seconds
  bayesrule reproduce ivon                      cpu scale: judges the claims
  bayesrule reproduce ivon --seeds 100:105 --out /tmp/ivon
  bayesrule reproduce ivon --study p2 trainer.epochs=50 --out /tmp/ivon50

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
    parser.add_argument("--out", type=Path, help="where results go instead of results/KEY/SCALE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    args = parser.parse_args(words)
    if args.jobs < 0:
        raise ConfigError(f"--jobs {args.jobs}: give a number of processes >= 1")
    changed = bool(args.seeds or args.overrides)
    if changed and args.out is None:
        raise ConfigError(
            "other seeds, studies or overrides give other results than the committed ones: say "
            "where they go with --out DIR"
        )
    from bayesrule.report.reproduce import report, verdicts
    from bayesrule.tasks.signals import Stopped
    from bayesrule.tasks.study import reproduce

    out = args.out or results_dir() / args.key / args.scale
    try:
        outcome = reproduce(
            experiments_dir() / args.key,
            RunStore(runs_dir()),
            args.scale,
            seeds=None if args.seeds is None else parse_seeds(args.seeds),
            studies=args.study,
            overrides=args.overrides,
            jobs=args.jobs,
        )
    except Stopped as ending:
        print(f"{args.key}: {ending}", file=sys.stderr)
        return ending.exit_code
    report(outcome, out, experiments_dir() / args.key)
    print(verdicts(out))
    print(f"\nresults: {_short(out)}")
    for text in outcome.left_out:
        print(f"left out: {text}", file=sys.stderr)
    for text in outcome.failures:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(root_dir()))
    except (ValueError, BayesruleError):
        return str(path)
