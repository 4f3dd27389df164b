"""`bayesrule tune`: search settings for the best validation metric; every trial is a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bayesrule.config import compose, runs_dir
from bayesrule.errors import ConfigError
from bayesrule.runs import RunStore

__all__ = ["main"]

_EPILOG = """\
search space (Hydra's own grammar; a word with one value is fixed):
  posterior.lr=interval(0.01,1)            a number between the two
  posterior.lr=tag(log,interval(0.01,1))   uniform in its logarithm; or --log posterior.lr
  posterior.mc_samples=int(interval(1,8))  a whole number, both ends included
  trainer.batch_size=range(25,101,25)      equally spaced, the end left out
  posterior=ivon,adamw                     one of several; also choice(...), glob(...)
  seed=0,1,2                               every setting is run with each; the mean counts

examples:
  bayesrule tune posterior=ivon data=digits data.val_fraction=0.2 seed=0,1,2 \\
      'posterior.lr=tag(log,interval(0.01,1))' --trials 30
  bayesrule tune ... trainer.eval_every=1 --trials 100 --jobs 4     hopeless runs are stopped early
  bayesrule tune ... --sampler sobol --trials 64                    a space-filling sweep

The same command goes on with a search that was stopped or killed; started several times, on several
machines with one run store, the commands share the work. Trials are ordinary runs: `bayesrule runs
ls` shows them, and one that was pruned goes on with `bayesrule train` and its words.
"""


def main(words: Sequence[str]) -> int:
    """Search; return the exit code."""
    args = _parser().parse_intermixed_args(words)
    if args.trials < 1 or args.jobs < 1 or args.reduction < 2 or args.first_rung < 1:
        raise ConfigError(
            "--trials, --jobs and --first-rung are numbers >= 1, --reduction is one >= 2"
        )
    launchers = [word for word in args.overrides if word.startswith(("hydra/", "hydra."))]
    if launchers:
        raise ConfigError(
            f"{launchers[0]}: Hydra's launchers are for `train -m`; a search has --jobs, and the "
            "same command may be started on several machines"
        )
    from bayesrule.config.space import read_space

    space = read_space(args.overrides, args.log)
    if not space.dimensions:
        raise ConfigError(
            "nothing to search: give at least one key several values, for example "
            "'posterior.lr=tag(log,interval(0.01,1))'"
        )
    space.check()
    first = compose(space.words({each.key: each.at(0.0) for each in space.dimensions}))
    from bayesrule.tasks.tuning.objective import Objective

    objective = Objective.of(args.metric, args.direction)
    objective.check(first)
    prune = _prune(args.pruner, first)
    from bayesrule.report.tuning import tuning_report
    from bayesrule.tasks.signals import Stopped
    from bayesrule.tasks.tuning import Search, Settings, tune

    settings = Settings(
        *(space, objective, args.sampler, args.sampler_seed, args.startup),
        *(prune, args.reduction, args.first_rung),
    )
    store = RunStore(runs_dir())
    search = Search(store.root, settings, args.name)
    print(f"search {search.name} in {search.folder}", file=sys.stderr)
    if search.limit(args.trials) < args.trials:
        print(f"the grid has {search.limit(args.trials)} points", file=sys.stderr)
    try:
        summary = tune(search, store, args.trials, args.jobs)
    except Stopped as ending:
        print("the search was stopped; the same command goes on with it", file=sys.stderr)
        return ending.exit_code
    print(tuning_report(summary))
    for failed in summary["failed"]:
        print(f"failed: trial {failed['number']}: {failed['error']}", file=sys.stderr)
    unfinished = search.ended() < search.limit(args.trials)
    return 1 if summary["failed"] or (unfinished and not summary["counts"]["running"]) else 0


def _prune(choice: str | None, config: dict[str, object]) -> bool:
    """Return whether trials are stopped early; without a choice: where something is measured."""
    from bayesrule.tasks.tuning.pruning import check_pruning

    if choice == "none":
        return False
    if choice is None:
        try:
            check_pruning(config)
        except ConfigError:
            return False
        return True
    check_pruning(config)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesrule tune",
        description="Search settings for the best validation metric (Optuna, resumable).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--metric", default="val/nll@mean", help="what counts (default: val/nll@mean)")
    add("--direction", choices=("minimize", "maximize"), help="default: what the name says")
    add("--trials", type=int, default=20, metavar="N", help="over all workers (default: 20)")
    add("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--sampler", choices=("tpe", "random", "sobol", "grid"), default="tpe")
    add("--sampler-seed", type=int, default=0, metavar="N", help="default: 0")
    add("--startup", type=int, default=10, metavar="N", help="random trials before TPE (10)")
    add("--log", action="append", default=[], metavar="KEY", help="search KEY in its logarithm")
    add("--pruner", choices=("asha", "none"), help="default: asha if trainer.eval_every is set")
    add("--reduction", type=int, default=3, metavar="N", help="one in N goes on at a rung (3)")
    add("--first-rung", type=int, default=1, metavar="N", help="evaluations before it (1)")
    add("--name", help="the search's name in runs/.tune (default: from its settings)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="see below")
    return parser
