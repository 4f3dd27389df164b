"""runs: identity, store, checkpoints, provenance, papers, statistics and claims of runs.

Nothing here trains, and importing it loads no torch: verdicts and tables are pure functions of
records.
"""

from bayesrule.runs.checkpoint import CheckpointFolder, load_verified, save_verified
from bayesrule.runs.claims import VERDICTS, judge
from bayesrule.runs.files import (
    JsonlWriter,
    atomic_writer,
    read_json,
    read_jsonl,
    sha256_file,
    truncate_to,
    write_atomic,
    write_json,
)
from bayesrule.runs.identity import VOLATILE, canonical_json, is_run_id, run_id
from bayesrule.runs.paper import (
    SCALES,
    Claim,
    Paper,
    PlannedRun,
    Point,
    ScaleSpec,
    Side,
    Study,
)
from bayesrule.runs.paper_yaml import find_papers, load_paper, parse_paper
from bayesrule.runs.provenance import collect, combine
from bayesrule.runs.record import ArmRun, RunRecord
from bayesrule.runs.results import (
    list_results,
    read_claims,
    read_runs,
    rejudge,
    write_results,
)
from bayesrule.runs.seeds import parse_seeds
from bayesrule.runs.statistics import Interval, mean_interval
from bayesrule.runs.store import Problem, RunFolder, RunStore, RunSummary
from bayesrule.runs.tables import Cell, make_cells, render_csv, render_markdown

__all__ = [
    "SCALES",
    "VERDICTS",
    "VOLATILE",
    "ArmRun",
    "Cell",
    "CheckpointFolder",
    "Claim",
    "Interval",
    "JsonlWriter",
    "Paper",
    "PlannedRun",
    "Point",
    "Problem",
    "RunFolder",
    "RunRecord",
    "RunStore",
    "RunSummary",
    "ScaleSpec",
    "Side",
    "Study",
    "atomic_writer",
    "canonical_json",
    "collect",
    "combine",
    "find_papers",
    "is_run_id",
    "judge",
    "list_results",
    "load_paper",
    "load_verified",
    "make_cells",
    "mean_interval",
    "parse_paper",
    "parse_seeds",
    "read_claims",
    "read_json",
    "read_jsonl",
    "read_runs",
    "rejudge",
    "render_csv",
    "render_markdown",
    "run_id",
    "save_verified",
    "sha256_file",
    "truncate_to",
    "write_atomic",
    "write_json",
    "write_results",
]
