"""Where a number comes from: source, versions, machine, threads, data, time.

`collect` describes one run; `combine` says the same of many in one record, each value once.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bayesrule

__all__ = ["PACKAGES", "collect", "combine", "git_state", "machine", "source_tree", "versions"]

PACKAGES = (
    "bayesrule",
    "torch",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "datasets",
    "transformers",
    "numpy",
    "scipy",
    "scikit-learn",
    "gymnasium",
    "gpytorch",
    "linear_operator",
)
"""Distributions whose versions are recorded."""

_SOURCES = ("src", "conf", "experiments", "pyproject.toml", "constraints.txt", ":(exclude)*.md")
"""What makes a tree dirty: files that decide numbers; not results, documents or tests."""


def source_tree() -> Path | None:
    """Return the root of the checkout which the running package lies in, or None.

    An installed wheel inside some other repository's virtual environment is no checkout of ours.
    """
    package = Path(bayesrule.__file__).resolve().parent
    root = package.parents[1]
    inside = package == root / "src" / "bayesrule" and (root / ".git").exists()
    return root if inside else None


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of a read-only git command, or None if it can't be run."""
    import subprocess

    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def git_state(root: Path | None) -> tuple[str | None, bool | None]:
    """Return commit and dirty flag of a checkout.

    Dirty means: a tracked file below src, conf or experiments (or pyproject.toml or
    constraints.txt) differs from the commit, or an untracked one lies there that git does not
    ignore. Documents (`*.md`) don't count.

    Args:
        root: The checkout, or None.

    Returns:
        `(commit, dirty)`; both None outside a checkout, or where git can't be asked.
    """
    if root is None:
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *_SOURCES)
    if commit is None or status is None:
        return None, None
    return commit.strip(), bool(status.strip())


@functools.cache
def _own_git_state() -> tuple[str | None, bool | None]:
    """Return the state when first asked: later edits do not change the code that is loaded."""
    return git_state(source_tree())


def versions() -> dict[str, str]:
    """Return the installed versions of Python and of the main packages."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return platform, processor, cores and, if torch is loaded and sees them, accelerators."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described: dict[str, Any] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": cores,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        count = torch.cuda.device_count()
        described["accelerators"] = [torch.cuda.get_device_name(index) for index in range(count)]
    return described


def _threads() -> int | None:
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() else None


def collect(
    *, data: Mapping[str, Any] | None = None, wall_seconds: float | None = None
) -> dict[str, Any]:
    """Describe where and how the current process produced a run.

    Args:
        data: Description of the data (source, fingerprint, scaling).
        wall_seconds: How long the run took.

    Returns:
        Plain data: `commit`, `dirty`, `versions`, `machine`, `threads`, `data`, `wall_seconds`,
        `date` (UTC, ISO 8601).
    """
    commit, dirty = _own_git_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "machine": machine(),
        "threads": _threads(),
        "data": dict(data) if data is not None else None,
        "wall_seconds": None if wall_seconds is None else round(float(wall_seconds), 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _distinct(values: Iterable[Any]) -> Any:
    """Return the one value, or the list of different ones in order of appearance."""
    different: list[Any] = []
    for value in values:
        if value is not None and value not in different:
            different.append(value)
    if not different:
        return None
    return different[0] if len(different) == 1 else different


def combine(provenances: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe many runs in one record.

    Args:
        provenances: What `collect` returned for each run.

    Returns:
        The same fields; a field in which runs differ is the list of its values. `dirty` is true if
        any run's tree was, `wall_seconds` is the sum, `date` the latest, `runs` the number.
    """
    all_of = list(provenances)
    flags = [one.get("dirty") for one in all_of if one.get("dirty") is not None]
    dates = [str(one["date"]) for one in all_of if one.get("date")]
    return {
        "runs": len(all_of),
        "commit": _distinct(one.get("commit") for one in all_of),
        "dirty": any(flags) if flags else None,
        "versions": _distinct(one.get("versions") for one in all_of),
        "machine": _distinct(one.get("machine") for one in all_of),
        "threads": _distinct(one.get("threads") for one in all_of),
        "data": _distinct(one.get("data") for one in all_of),
        "wall_seconds": round(sum(float(one.get("wall_seconds") or 0.0) for one in all_of), 3),
        "date": max(dates) if dates else None,
    }
