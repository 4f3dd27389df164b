"""`bayesrule dashboard`: the local page over results/ and runs/."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayesrule.config import cache_dir, experiments_dir, results_dir, runs_dir
from bayesrule.errors import BayesruleError, ConfigError

if TYPE_CHECKING:
    from bayesrule.report.dashboard.site import Site

__all__ = ["main"]

HOST = "127.0.0.1"
PORT = 8420

_EPILOG = """\
examples:
  bayesrule dashboard                     then open http://127.0.0.1:8420/
  bayesrule dashboard --port 0            any free port
  bayesrule dashboard --runs /data/runs   another run store
  bayesrule dashboard --once              bring the index up to date and leave

The page is read-only, answers this machine only, and loads nothing from outside it. To see it
from elsewhere, forward the port: ssh -L 8420:127.0.0.1:8420 HOST. Ctrl-C ends it. The index over
the runs is a cache (.cache/ or $BAYESRULE_CACHE); it may be removed at any time.
"""


def main(words: Sequence[str]) -> int:
    """Serve until interrupted; return the exit code."""
    args = _parser().parse_args(words)
    site = _site(args)
    _index(site)
    if args.once:
        return 0
    listener = _listen(args.port)
    return _serve(site, listener)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesrule dashboard",
        description="A local, read-only page over papers, claims and runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port on {HOST} (0: any free one; default {PORT})"
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run store (default: runs/)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="results (default: results/)")
    parser.add_argument("--once", action="store_true", help="only bring the index up to date")
    return parser


def _site(args: argparse.Namespace) -> Site:
    """Return what is shown; a folder that was named must be there."""
    for option in ("runs", "results"):
        folder = getattr(args, option)
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"--{option} {folder}: there is no such folder")
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port {args.port}: give a number from 0 to 65535")
    try:
        from bayesrule.report.dashboard.site import Site
    except ModuleNotFoundError as missing:
        raise BayesruleError(
            f"the dashboard needs {missing.name}: pip install 'bayesrule[dashboard]'"
        ) from None
    return Site(
        runs=(args.runs or runs_dir()).resolve(),
        results=(args.results or results_dir()).resolve(),
        experiments=experiments_dir(),
        cache=cache_dir() / "index",
    )


def _index(site: Site) -> None:
    """Read what is new in the store, saying how far it is."""

    def progress(done: int, total: int) -> None:
        if total > 500:
            print(f"reading runs: {done} of {total}", file=sys.stderr)

    site.index.refresh(progress)
    print(f"{site.index.count()} runs in {site.runs}", file=sys.stderr)


def _listen(port: int) -> socket.socket:
    """Return a listening socket of this machine.

    Raises:
        BayesruleError: If the port is taken or may not be used.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as cause:
        listener.close()
        if cause.errno == errno.EADDRINUSE:
            raise BayesruleError(
                f"port {port} is in use, perhaps by another dashboard; choose another one with "
                "--port (0 takes any free one)"
            ) from None
        reason = os.strerror(cause.errno or 0)
        raise BayesruleError(f"cannot use port {port}: {reason}; choose another one") from None
    return listener


def _serve(site: Site, listener: socket.socket) -> int:
    try:
        import uvicorn

        from bayesrule.report.dashboard.app import create_app
    except ModuleNotFoundError as missing:
        raise BayesruleError(
            f"the dashboard needs {missing.name}: pip install 'bayesrule[dashboard]'"
        ) from None
    config = uvicorn.Config(
        create_app(site),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        lifespan="off",
    )
    print(f"http://{HOST}:{listener.getsockname()[1]}/   (Ctrl-C ends it)", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 0
