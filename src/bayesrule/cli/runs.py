"""`bayesrule runs`: list, show, remove and verify the runs of the local store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bayesrule.config import cache_dir, runs_dir
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.report.run_pages import DEFAULT_COLUMNS, list_columns, run_list, run_page
from bayesrule.runs import RunStore
from bayesrule.runs.index import IndexedRun, RunIndex
from bayesrule.runs.query import Query

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule runs ls                                     the newest 20
  bayesrule runs ls data.name=digits 'seed=1?' --limit 0
  bayesrule runs ls status=failed --columns id,error
  bayesrule runs show 3f2a --config
  bayesrule runs rm status=failed --yes
  bayesrule runs verify

A run is named by its id or the first digits of it. A filter is KEY=PATTERN: the key is id, status,
paper, arm, a metric (test/nll@mean) or a key of the configuration (posterior.lr), and the pattern
may have *, ? and [...]; case does not count. KEY!=PATTERN and, for numbers, 'KEY<1' work as well.
The store is runs/ of the checkout, or $BAYESRULE_RUNS.
"""


def main(words: Sequence[str]) -> int:
    """Do one of ls, show, rm, verify; return the exit code."""
    args = _parser().parse_args(words)
    act: Callable[[RunStore, argparse.Namespace], int] = args.act
    return act(RunStore(runs_dir()), args)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="bayesrule runs",
        description="The local run store.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, summary: str, act: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=summary, description=summary, epilog=_EPILOG, formatter_class=raw
        )
        added.set_defaults(act=act)
        return added

    ls = command("ls", "list runs, the newest first", _ls)
    ls.add_argument("filters", nargs="*", metavar="KEY=PATTERN")
    ls.add_argument("--limit", type=int, default=20, help="how many (0: all; default 20)")
    ls.add_argument("--columns", help=f"default: {','.join(DEFAULT_COLUMNS)},...")
    show = command("show", "one run: state, metrics, history, files", _show)
    show.add_argument("run", metavar="ID")
    show.add_argument("--config", action="store_true", help="also what differs from the defaults")
    show.add_argument("--history", type=int, default=5, metavar="N", help="last N rows (default 5)")
    rm = command("rm", "remove runs", _rm)
    rm.add_argument("chosen", nargs="+", metavar="ID|KEY=PATTERN")
    rm.add_argument("--yes", action="store_true", help="do not ask")
    verify = command("verify", "check checksums and contents; exit code 1 on problems", _verify)
    verify.add_argument("run", nargs="?", metavar="ID", help="one run (default: all)")
    return parser


def _index(store: RunStore) -> RunIndex:
    """Return the index of the store, brought up to date; says how far it is when that is long."""

    def progress(done: int, total: int) -> None:
        if total > 1000:
            print(f"reading new runs: {done} of {total}", file=sys.stderr)

    index = RunIndex(store.root, cache_dir() / "index")
    index.refresh(progress)
    return index


def _ls(store: RunStore, args: argparse.Namespace) -> int:
    if args.limit < 0:
        raise ConfigError(f"--limit {args.limit}: give a number >= 0 (0: all)")
    index = _index(store)
    query = Query.of_filters(args.filters)
    columns = args.columns.split(",") if args.columns else list_columns(index, query)
    found, total = index.find(query, columns, limit=args.limit or None)
    if not found:
        all_runs = index.count()
        there = f"no run fits ({all_runs} in {store.root})"
        print(there if all_runs else f"no runs in {store.root}")
        return 0
    print(run_list(found, columns))
    if len(found) < total:
        print(f"{total - len(found)} more (--limit 0 shows all)")
    return 0


def _show(store: RunStore, args: argparse.Namespace) -> int:
    summary = store.summary(store.get(args.run).id)
    print(run_page(summary, args.history))
    if args.config:
        from bayesrule.cli.differences import from_defaults

        config = summary.record.config if summary.record is not None else summary.folder.config()
        base, lines = from_defaults(config)
        print(f"\nas: bayesrule train {' '.join(base)}" if base else "\nthe configuration")
        print("\n".join(f"  {line}" for line in lines) if lines else "  with no further change")
    return 1 if summary.status == "corrupt" else 0


def _rm(store: RunStore, args: argparse.Namespace) -> int:
    chosen = _chosen(store, args.chosen)
    if not chosen:
        print("no run fits; nothing was removed")
        return 0
    print(run_list(chosen, DEFAULT_COLUMNS))
    if not args.yes and not _confirmed(len(chosen)):
        print("nothing was removed")
        return 1
    failed = 0
    for summary in chosen:
        try:
            store.rm(summary.id)
        except BayesruleError as error:
            print(f"bayesrule runs: {error}", file=sys.stderr)
            failed += 1
    print(f"removed {len(chosen) - failed}")
    return 1 if failed else 0


def _chosen(store: RunStore, words: Sequence[str]) -> list[IndexedRun]:
    """Return the runs named by ids, or those that fit all filters."""
    filters = [word for word in words if "=" in word]
    if filters and len(filters) < len(words):
        raise ConfigError("name runs by ids or by KEY=PATTERN, not by both")
    if filters:
        return _index(store).find(Query.of_filters(filters), DEFAULT_COLUMNS)[0]
    named = dict.fromkeys(store.get(word).id for word in words)
    index = _index(store)
    return [run for each in named if (run := index.get(each)) is not None]


def _confirmed(number: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("removing asks first, and there is nobody to ask: add --yes")
    plural = "s" if number > 1 else ""
    return input(f"remove {number} run{plural}? [y/N] ").strip().lower() in ("y", "yes")


def _verify(store: RunStore, args: argparse.Namespace) -> int:
    problems = store.verify(args.run)
    for problem in problems:
        print(f"{problem.id}  {problem.message}")
    checked = 1 if args.run is not None else len(store.ids())
    plural = "s" if checked != 1 else ""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "all well"
    print(f"{checked} run{plural} in {store.root}: {count}")
    return 1 if problems else 0
