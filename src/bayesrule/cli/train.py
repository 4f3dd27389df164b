"""`bayesrule train`: one run, or a Hydra sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bayesrule.config import compose, conf_dir, runs_dir
from bayesrule.config.compose import check_overrides, group_options
from bayesrule.errors import ConfigError
from bayesrule.runs import RunStore

__all__ = ["main"]

_GROUPS = (
    *("posterior", "model", "data", "env", "merge", "scenario", "correction", "task", "trainer"),
    *("metrics", "callbacks", "logger", "scale"),
)


def _help() -> str:
    lines = ["groups (GROUP=NAME chooses one; its options are GROUP.OPTION=VALUE):", ""]
    for group in _GROUPS:
        names = ", ".join(group_options(group))
        lines.append(f"  {group:10} {names}")
    lines += [
        "",
        "  experiment experiment=<paper>/<study> starts from a paper's settings",
        "  seed       the one seed of the run",
        "",
        "examples:",
        "  bayesrule train posterior=ivon posterior.lr=0.1 data=digits trainer.epochs=30",
        "  bayesrule train -m posterior=adamw,sgd,ivon seed=0,1,2",
        "  bayesrule train -m posterior=ivon posterior.lr=0.05,0.1,0.2 hydra/launcher=joblib",
        "  bayesrule train -m 'posterior.lr=tag(log,interval(0.01,1))' --sampler sobol --samples 8",
        "",
        f"All values with their ranges and sources: {conf_dir()}",
    ]
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Train; return the exit code."""
    if any(word in ("-h", "--help") for word in words):
        _parser(_help()).print_help()
        return 0
    args = _parser("").parse_intermixed_args(words)
    if args.multirun:
        from bayesrule.cli.sweep import sweep

        return sweep(args.overrides, only=args.only, sampler=args.sampler, samples=args.samples)
    if args.only or args.sampler:
        raise ConfigError("--only and --sampler are for sweeps: add -m")
    check_overrides(args.overrides)
    config = compose(args.overrides)
    if args.cfg:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False), end="")
        return 0
    from bayesrule.report import metrics_table
    from bayesrule.tasks.execute import execute
    from bayesrule.tasks.signals import Stopped

    store = RunStore(runs_dir())
    folder = store.folder(config)
    if folder.is_done():
        print(f"run {folder.id} is done already; its record:")
    try:
        record = execute(config, store)
    except Stopped as ending:
        print(f"run {folder.id}: {ending}", file=sys.stderr)
        return ending.exit_code
    if record.status != "done":
        return 1
    if not record.metrics:  # another rank than the first one has nothing to say
        return 0
    print(metrics_table(record.metrics))
    print(f"\nrun {record.id}  {folder.path}")
    return 0


def _parser(epilog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesrule train",
        description="Learn a posterior and evaluate it; the same command resumes or reports.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="sweep over a,b,c values")
    parser.add_argument("--only", choices=("failed",), help="with -m: only runs that failed")
    parser.add_argument(
        "--sampler", choices=("random", "sobol"), help="with -m: draw points, not all combinations"
    )
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="points (16)")
    parser.add_argument("--cfg", action="store_true", help="print the configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="see below")
    return parser
