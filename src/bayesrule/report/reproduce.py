"""What `bayesrule reproduce` writes and prints when the runs are done."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bayesrule.errors import BayesruleError
from bayesrule.report.records import Records
from bayesrule.report.results import read_table, results_table, verdict_table
from bayesrule.runs import ArmRun, Paper, RunStore, read_claims, read_runs, write_results

__all__ = ["Reproduced", "draw_figures", "report", "verdicts"]


class Reproduced(Protocol):
    """What became of a paper's runs at one scale (`tasks.study.Reproduction`)."""

    paper: Paper
    scale: str
    runs: list[ArmRun]
    store: RunStore


def report(
    outcome: Reproduced,
    folder: Path,
    experiment: Path,
    *,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Judge the runs, write `results/<key>/<scale>/` and draw the figures.

    If only some studies were run, what earlier results in the folder say of the others is kept.

    Args:
        outcome: The runs.
        folder: The results folder.
        experiment: `experiments/<key>`.
        seeds: The seeds that were run instead of those declared.
        overrides: The user's overrides.

    Raises:
        BayesruleError: If a file can't be written, or the paper's figures can't be drawn (the
            verdicts and tables are then written already).
    """
    runs = [*outcome.runs, *_earlier(outcome, folder, seeds)]
    write_results(folder, outcome.paper, outcome.scale, runs, seeds=seeds, overrides=overrides)
    draw_figures(experiment, Records(runs, outcome.store), folder / "figures")


def _earlier(outcome: Reproduced, folder: Path, seeds: Sequence[int] | None) -> list[ArmRun]:
    """Return runs of the studies that were not asked for, from earlier results."""
    asked = {run.study for run in outcome.runs}
    planned = {(r.study, r.arm, r.seed) for r in outcome.paper.planned(outcome.scale, seeds)}
    if not any(study not in asked for study, _, _ in planned):
        return []
    if not (folder / "runs.csv").is_file():
        return []
    stored = set(outcome.store.ids())
    kept = []
    for run in read_runs(folder):
        if run.study in asked or (run.study, run.arm, run.seed) not in planned:
            continue
        if run.run in stored:  # the record has the provenance as well
            record = outcome.store.get(run.run).record()
            run = ArmRun.of(run.study, run.arm, run.seed, run.run, record)
        kept.append(run)
    return kept


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
    fresh = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
    try:
        fresh.mkdir(parents=True)
        _load(path).figures(records, fresh)
        old = out.with_name(f"{fresh.name}-old")
        if out.exists():
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # a paper's own code may fail in any way
        place = "" if isinstance(error, BayesruleError) else f"{type(error).__name__}: "
        line = _line_in(path, error)
        raise BayesruleError(f"{path}{line}: the figures failed: {place}{error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return sorted(one for one in out.iterdir() if one.is_file())


def _load(path: Path) -> Figures:
    spec = importlib.util.spec_from_file_location(f"_figures_{path.parent.name}", path)
    if spec is None or spec.loader is None:
        raise BayesruleError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "figures", None)):
        raise BayesruleError("it defines no function figures(records, out)")
    return module


class Figures(Protocol):
    """A paper's figures.py."""

    def figures(self, records: Records, out: Path) -> None:
        """Draw into `out`."""


def _line_in(path: Path, error: BaseException) -> str:
    """Return `, line n` of the innermost frame in a file, or nothing."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def verdicts(folder: Path, width: int = 110) -> str:
    """Return a results folder's tables and verdicts for the terminal.

    Args:
        folder: `results/<key>/<scale>`.
        width: Characters per line.
    """
    tables = results_table(read_table(folder), width)
    return f"{tables}\n\n{verdict_table(read_claims(folder), width)}"
