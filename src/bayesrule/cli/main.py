"""The command line: parse, then import only what the command needs."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bayesrule import __version__
from bayesrule.errors import BayesruleError

__all__ = ["main"]


@dataclass(frozen=True)
class _Command:
    module: str
    summary: str


_COMMANDS: dict[str, _Command] = {
    "train": _Command("train", "one run, or with -m a sweep over values"),
    "tune": _Command("tune", "search settings for the best validation metric"),
    "reproduce": _Command("reproduce", "run a paper's studies, judge its claims, write results/"),
    "claims": _Command("claims", "judge the stored results again; trains nothing"),
    "papers": _Command("papers", "every paper: task, posteriors, verdict per claim and scale"),
    "plan": _Command("plan", "what a paper's runs would need: steps, parameters, memory, data"),
    "runs": _Command("runs", "the local run store: ls, show, rm, verify"),
    "rule": _Command("rule", "the algorithms that the rule contains, each beside an oracle"),
    "evaluate": _Command("evaluate", "a stored posterior on other data or metrics"),
    "merge": _Command("merge", "model folders of one architecture become one"),
    "dashboard": _Command("dashboard", "a local page over papers, claims and runs"),
    "report": _Command("report", "the scoreboard and the papers' pages as files to host"),
    "doctor": _Command("doctor", "devices, versions, data sources, loggers"),
}

_EPILOG = """\
examples:
  bayesrule train posterior=ivon model=mlp data=digits
  bayesrule train -m posterior=adamw,sgd,ivon seed=0,1,2
  bayesrule tune data.val_fraction=0.2 'posterior.lr=tag(log,interval(0.01,1))' --trials 20
  bayesrule reproduce ivon --scale smoke
  bayesrule papers

A run is described by key=value words: `bayesrule train --help` lists the groups. A finished run is
never repeated, and a killed one goes on from its last checkpoint: repeat the same command.
Exit codes: 0 done, 1 a run or check failed, 2 wrong usage, 130/143 stopped by a signal.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesrule",
        description="The Bayesian learning rule: posteriors, optimisers, tasks, papers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bayesrule {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in _COMMANDS.items():
        commands.add_parser(name, help=command.summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # letters that a terminal cannot show
    parser = _parser()
    if not words:
        parser.print_help()
        return 2
    if words[0] not in _COMMANDS:
        return _top_level(parser, words)
    try:
        module = importlib.import_module(f"bayesrule.cli.{_COMMANDS[words[0]].module}")
        return int(module.main(words[1:]))
    except BayesruleError as error:
        print(f"bayesrule {words[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `bayesrule ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"bayesrule {words[0]}: {_file_trouble(error)}", file=sys.stderr)
        return 1


def _file_trouble(error: OSError) -> str:
    """Say which file could not be read or written, and why."""
    from bayesrule.runs.files import storage_reason

    return f"{error.filename}: {storage_reason(error)}"


def _top_level(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Answer --help and --version; suggest the nearest command for a mistyped one."""
    if not words[0].startswith("-"):
        import difflib

        close = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        print(
            f"bayesrule: no command '{words[0]}'{hint} (one of: {', '.join(_COMMANDS)})",
            file=sys.stderr,
        )
        return 2
    try:
        parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 2


if __name__ == "__main__":
    sys.exit(main())
