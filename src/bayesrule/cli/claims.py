"""`bayesrule claims`: judge stored results again; trains nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesrule.config import experiments_dir, results_dir, root_dir
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.report.results import verdict_counts, verdict_table
from bayesrule.report.text import terminal_width
from bayesrule.runs import SCALES, find_papers, load_paper, read_claims, rejudge
from bayesrule.runs.files import jsonable

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule claims                         all papers, all scales
  bayesrule claims ivon --scale cpu
  bayesrule claims ivon --out /tmp/ivon    results that `reproduce --out /tmp/ivon` wrote

Verdicts are computed from runs.csv of the results folder and the claims in paper.yaml as they are
now. claims.json and the tables are written again only if something in them changed. A claim that
does not hold is a result, not an error.
"""


def main(words: Sequence[str]) -> int:
    """Judge stored results again; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="bayesrule claims",
        description="Judge stored results again and print the verdicts; trains nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("key", nargs="?", help="one paper (default: all)")
    parser.add_argument("--scale", choices=SCALES, help="one scale (default: all)")
    parser.add_argument("--out", type=Path, help="a results folder elsewhere; needs KEY")
    args = parser.parse_args(words)
    if args.out is not None and args.key is None:
        raise ConfigError("--out DIR holds the results of one paper: say which, as KEY")
    folders = list(_folders(args.key, args.scale, args.out))
    if not folders:
        where = f"{args.key or 'any paper'}" + (f" at scale {args.scale}" if args.scale else "")
        todo = f"bayesrule reproduce {args.key or 'KEY'} --scale {args.scale or 'cpu'}"
        text = f"no stored results of {where}; `{todo}` makes them"
        if args.key is not None:
            raise BayesruleError(text)
        print(text)
    failed = False
    for key, folder in folders:
        try:
            _judge(key, folder)
        except BayesruleError as error:
            if len(folders) == 1:
                raise
            print(f"bayesrule claims: {key}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


def _folders(key: str | None, scale: str | None, out: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield (key, results folder) of what is to be judged.

    Raises:
        ConfigError: If there is no such paper.
    """
    if key is not None:
        load_paper(experiments_dir() / key)
    if out is not None and key is not None:
        yield key, out
        return
    for name in find_papers(experiments_dir()) if key is None else [key]:
        for each in SCALES if scale is None else [scale]:
            folder = results_dir() / name / each
            if (folder / "runs.csv").is_file():
                yield name, folder


def _judge(key: str, folder: Path) -> None:
    """Judge one folder, write what changed, print the verdicts."""
    paper = load_paper(experiments_dir() / key)
    claims = jsonable(rejudge(folder, paper))
    try:
        before = read_claims(folder)
    except BayesruleError:
        before = []
    changed = before != claims
    if changed:
        rejudge(folder, paper, write=True)
    print(f"{key}, {_short(folder)}" + (": claims.json written anew" if changed else ""))
    for line in _changes(before, claims) if before else []:
        print(f"  {line}")
    if any(claim["verdict"] != "not_at_this_scale" for claim in claims):
        print(f"\n{verdict_table(claims, terminal_width())}\n")
    else:
        print(f"  {verdict_counts(claims)}\n")


def _short(path: Path) -> str:
    """Return a path below the checkout without the checkout's own."""
    root = root_dir()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _changes(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield what changed in the verdicts, a line per claim."""
    old = {claim.get("id"): claim.get("verdict") for claim in before}
    new = {claim["id"]: claim["verdict"] for claim in after}
    for name in dict.fromkeys((*new, *old)):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name, 'new')} -> {new.get(name, 'no claim any more')}"
