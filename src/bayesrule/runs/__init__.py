"""runs: identity, store, checkpoints, provenance, papers, statistics and claims of runs.

Nothing here trains, and importing it loads no torch: verdicts and tables are pure functions of
records.
"""

from bayesrule.runs.checkpoint import CheckpointFolder, load_verified, save_verified
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
from bayesrule.runs.provenance import collect, combine
from bayesrule.runs.record import RunRecord
from bayesrule.runs.store import Problem, RunFolder, RunStore, RunSummary

__all__ = [
    "VOLATILE",
    "CheckpointFolder",
    "JsonlWriter",
    "Problem",
    "RunFolder",
    "RunRecord",
    "RunStore",
    "RunSummary",
    "atomic_writer",
    "canonical_json",
    "collect",
    "combine",
    "is_run_id",
    "load_verified",
    "read_json",
    "read_jsonl",
    "run_id",
    "save_verified",
    "sha256_file",
    "truncate_to",
    "write_atomic",
    "write_json",
]
