"""The committed results of a paper at a scale: `results/<key>/<scale>/`.

    claims.json      verdicts
    table.csv        one row per study, arm, metric
    table.md         the same for people, with the verdicts
    runs.csv         every summary metric of every run: study, arm, seed, run, status, metric, value
    provenance.json  source, versions, machine, data, time

Everything but provenance.json is a function of paper.yaml and runs.csv, so verdicts can be computed
again from committed files alone (`rejudge`), and running again changes provenance.json only. The
readers need JSON and CSV, nothing else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError, CorruptFile
from bayesrule.runs.claims import judge
from bayesrule.runs.files import read_json, remove_leftovers, write_atomic, write_json
from bayesrule.runs.paper import SCALES, Paper
from bayesrule.runs.provenance import combine
from bayesrule.runs.record import ArmRun
from bayesrule.runs.tables import make_cells, render_csv, render_markdown

__all__ = ["SCHEMA", "list_results", "read_claims", "read_runs", "rejudge", "write_results"]

SCHEMA = 1
_COLUMNS = ["study", "arm", "seed", "run", "status", "metric", "value", "error"]
_STATUSES = ("done", "failed", "stopped", "missing")


def _ordered(
    paper: Paper, scale: str, records: Iterable[ArmRun], seeds: Sequence[int] | None
) -> list[ArmRun]:
    """Return one run per planned one, in the paper's order; without a record it is missing."""
    by_key = {(run.study, run.arm, run.seed): run for run in records}
    planned = [
        (run.study, run.arm, run.seed)
        for study in paper.studies.values()
        for run in study.planned(scale, seeds)
    ]
    known = set(planned)
    foreign = [key for key in by_key if key not in known]
    if foreign:
        study, arm, seed = foreign[0]
        raise BayesruleError(
            f"study {study!r}, arm {arm!r}, seed {seed} is not among the runs of {paper.key} at "
            f"scale {scale!r}"
        )
    return [by_key.get(key, ArmRun(*key)) for key in planned]


def _runs_csv(records: Iterable[ArmRun]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for run in records:
        head = [run.study, run.arm, run.seed, run.run or "", run.status]
        tail = [" ".join((run.error or "").split())]
        values = [[name, repr(float(value))] for name, value in sorted(run.metrics.items())]
        writer.writerows([*head, *value, *tail] for value in values or [["", ""]])
    return out.getvalue()


def read_runs(folder: str | Path) -> list[ArmRun]:
    """Read runs.csv.

    Raises:
        BayesruleError: If there is none.
        CorruptFile: If a line does not fit; names it.
    """
    path = Path(folder) / "runs.csv"
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise BayesruleError(f"there are no results in {folder} (no runs.csv)") from None
    except UnicodeDecodeError as cause:
        raise CorruptFile(f"{path} is damaged: {cause}") from None
    runs: dict[tuple[str, str, int], ArmRun] = {}
    metrics: dict[tuple[str, str, int], dict[str, float]] = {}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if next(reader, None) != _COLUMNS:
            raise ValueError(f"the first line must be {','.join(_COLUMNS)}")
        for row in reader:
            study, arm, seed_text, run, status, metric, value, error = row
            if status not in _STATUSES:
                raise ValueError(f"status {status!r}")
            key = (study, arm, int(seed_text))
            own = metrics.setdefault(key, {})
            here = ArmRun(*key, run or None, status, own, error or None)
            if runs.setdefault(key, here) != here:
                raise ValueError("the run differs from its line before")
            if metric in own:
                raise ValueError(f"metric {metric} is given twice")
            if metric:
                own[metric] = float(value)
    except (ValueError, csv.Error) as cause:
        raise CorruptFile(f"{path}, line {reader.line_num}, is damaged: {cause}") from None
    return list(runs.values())


def _write_derived(
    folder: Path,
    paper: Paper,
    scale: str,
    records: Sequence[ArmRun],
    seeds: Sequence[int] | None,
) -> list[dict[str, Any]]:
    claims = judge(paper, scale, records, seeds=seeds)
    cells = make_cells(paper, scale, records, seeds)
    content = {"schema": SCHEMA, "key": paper.key, "scale": scale, "claims": claims}
    write_atomic(folder / "table.csv", render_csv(cells))
    write_atomic(folder / "table.md", render_markdown(paper, scale, cells, claims))
    write_json(folder / "claims.json", content, checksum=False)
    return claims


def write_results(
    folder: str | Path,
    paper: Paper,
    scale: str,
    records: Iterable[ArmRun],
    *,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Judge a paper's runs and write its results, claims.json last.

    Args:
        folder: `results/<key>/<scale>`, or elsewhere for other seeds or overrides.
        paper: The paper.
        scale: The scale.
        records: What became of its runs; planned runs that are not here are written as missing.
        seeds: The seeds run instead of those declared.
        overrides: The user's overrides.

    Returns:
        The claims with their verdicts.

    Raises:
        BayesruleError: If a run is none of the paper's at this scale, or a file can't be written.
    """
    folder = Path(folder)
    ordered = _ordered(paper, scale, records, seeds)
    remove_leftovers(folder, locked=False)
    write_atomic(folder / "runs.csv", _runs_csv(ordered))
    provenance = {
        "key": paper.key,
        "scale": scale,
        "seeds": None if seeds is None else list(seeds),
        "overrides": list(overrides),
        **combine(run.provenance for run in ordered if run.provenance),
    }
    write_json(folder / "provenance.json", provenance, checksum=False)
    return _write_derived(folder, paper, scale, ordered, seeds)


def rejudge(folder: str | Path, paper: Paper, *, write: bool = False) -> list[dict[str, Any]]:
    """Judge stored results again, from runs.csv and the paper's claims as they are now.

    Args:
        folder: A results folder.
        paper: The paper.
        write: Also write claims.json and the tables anew.

    Returns:
        The claims with their verdicts.

    Raises:
        BayesruleError: If there are no results, or they are another paper's.
        CorruptFile: If a file is damaged.
    """
    folder = Path(folder)
    records = read_runs(folder)
    try:
        provenance = read_json(folder / "provenance.json", checksum=False)
    except FileNotFoundError:
        raise BayesruleError(f"there are no results in {folder} (no provenance.json)") from None
    scale, seeds = provenance.get("scale"), provenance.get("seeds")
    if provenance.get("key") != paper.key or scale not in SCALES:
        raise BayesruleError(f"{folder} holds no results of {paper.key}")
    if seeds is None:
        # seeds that paper.yaml no longer declares are not judged
        known = {(run.study, run.arm, run.seed) for run in paper.planned(scale)}
        records = [run for run in records if (run.study, run.arm, run.seed) in known]
    if write:
        ordered = _ordered(paper, scale, records, seeds)
        return _write_derived(folder, paper, scale, ordered, seeds)
    return judge(paper, scale, records, seeds=seeds)


def read_claims(folder: str | Path) -> list[dict[str, Any]]:
    """Read the verdicts of a results folder from claims.json.

    Raises:
        BayesruleError: If there is none.
        CorruptFile: If it is damaged or of a newer schema.
    """
    path = Path(folder) / "claims.json"
    try:
        content = read_json(path, checksum=False)
    except FileNotFoundError:
        raise BayesruleError(f"there are no results in {folder} (no claims.json)") from None
    schema, claims = content.get("schema"), content.get("claims")
    if schema != SCHEMA or not isinstance(claims, list):
        raise CorruptFile(f"{path} is no claims file of schema {SCHEMA} (it says {schema!r})")
    return claims


def list_results(root: str | Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return all stored verdicts: by key, then by scale from the smallest."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(Path(root).glob("*/*/claims.json")):
        if path.parent.name in SCALES:
            found.setdefault(path.parent.parent.name, {})[path.parent.name] = read_claims(
                path.parent
            )
    return {
        key: {scale: scales[scale] for scale in SCALES if scale in scales}
        for key, scales in found.items()
    }
