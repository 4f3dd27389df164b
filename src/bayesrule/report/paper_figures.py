"""A paper's own figures: `experiments/<key>/figures.py`, called with its records."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
from pathlib import Path
from typing import Protocol

from bayesrule.errors import BayesruleError
from bayesrule.report.records import Records
from bayesrule.runs.files import is_gone, storage_reason

__all__ = ["draw_figures"]


class _FiguresModule(Protocol):
    """A paper's figures.py."""

    def figures(self, records: Records, out: Path) -> None:
        """Draw into `out`."""


def draw_figures(experiment: Path, records: Records, out: Path) -> list[Path]:
    """Let `<experiment>/figures.py` draw into `out`, replacing what was there.

    The module defines `def figures(records: Records, out: Path) -> None`. Figures that it does not
    draw any more vanish; if it fails, the old ones stay.

    Returns:
        The files; empty if the paper has no figures.py.

    Raises:
        BayesruleError: If it fails; says where.
    """
    path = experiment / "figures.py"
    if not path.is_file():
        return []
    _remove_leftovers(out)
    fresh = out.with_name(f".{out.name}-{os.getpid()}-{secrets.token_hex(4)}")
    old = out.with_name(f"{fresh.name}-old")
    try:
        fresh.mkdir(parents=True)
        _load(path).figures(records, fresh)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # a paper's own code may fail in any way
        if old.exists() and not out.exists():
            with contextlib.suppress(OSError):
                old.rename(out)
        place = "" if isinstance(error, BayesruleError) else f"{type(error).__name__}: "
        reason = storage_reason(error) if isinstance(error, OSError) else error
        line = _line_in(path, error)
        raise BayesruleError(f"{path}{line}: the figures failed: {place}{reason}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return sorted(one for one in out.iterdir() if one.is_file())


def _remove_leftovers(out: Path) -> None:
    """Remove the unfinished figures of processes that were killed."""
    for left in out.parent.glob(f".{out.name}-*"):
        pid = left.name.removeprefix(f".{out.name}-").partition("-")[0]
        if is_gone(pid):
            shutil.rmtree(left, ignore_errors=True)


def _load(path: Path) -> _FiguresModule:
    spec = importlib.util.spec_from_file_location(f"_figures_{path.parent.name}", path)
    if spec is None or spec.loader is None:
        raise BayesruleError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "figures", None)):
        raise BayesruleError("it defines no function figures(records, out)")
    return module


def _line_in(path: Path, error: BaseException) -> str:
    """Return `, line n` of the innermost frame in a file, or nothing."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
