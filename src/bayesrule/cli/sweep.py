"""`bayesrule train -m`: Hydra expands and launches, the run store is the ledger.

Every job looks its run up first, so a sweep that was killed goes on with the rest, and a sweep that
is finished trains nothing. A job that fails says so at once and the others go on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from bayesrule.config import compose, conf_dir, runs_dir
from bayesrule.config.compose import check_overrides, finish, in_hydra_words, people_errors
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import RunStore
from bayesrule.tasks.loggers import SWEEP_VARIABLE, sweep_name

__all__ = ["expand", "sweep"]

Job = list[str]


def expand(overrides: Sequence[str]) -> tuple[list[Job], list[str]]:
    """Return the jobs of a sweep, each a list of overrides, and the keys that vary.

    Raises:
        ConfigError: If an override is wrong, or there is nothing to do.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    check_overrides(overrides, sweep=True)
    own = [word for word in overrides if not word.startswith(("hydra/", "hydra."))]
    with people_errors():
        parser = OverridesParser.create(config_loader=_loader())
        parsed = parser.parse_overrides(in_hydra_words(own))
        jobs = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    varied = [p.get_key_element() for p in parsed if p.is_sweep_override()]
    if not jobs:
        raise ConfigError(f"the sweep has no jobs: {' '.join(own)}")
    _check_values(jobs)
    return jobs, varied


def _check_values(jobs: list[Job]) -> None:
    """Compose the first job, and one job for each further value, before anything is started."""
    seen: set[str] = set()
    for job in jobs:
        if not seen.issuperset(job):
            compose([_from_hydra(word) for word in job])
            seen.update(job)


def _from_hydra(word: str) -> str:
    return word.partition("@")[2] if word.startswith("posterior@") else word


def sweep(overrides: Sequence[str]) -> int:
    """Run all jobs, print one table, return the exit code."""
    jobs, varied = expand(overrides)
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    from bayesrule.report import sweep_table
    from bayesrule.tasks.shared import sharing

    plural = "s" if len(jobs) > 1 else ""
    print(f"{len(jobs)} run{plural}, varying {', '.join(varied) or 'nothing'}", file=sys.stderr)
    GlobalHydra.instance().clear()
    folder = runs_dir() / ".sweeps"
    words = [
        *in_hydra_words(list(overrides)),
        f"hydra.sweep.dir={folder}",
        f"+hydra.job.env_set.{SWEEP_VARIABLE}={sweep_name(overrides)}",
    ]
    hydra = Hydra.create_main_hydra2("bayesrule", _search_path())
    try:
        with people_errors(), sharing():
            results = hydra.multirun(
                "config", run_job, overrides=words, with_log_configuration=False
            )
    except (SystemExit, KeyboardInterrupt) as ending:
        print("the sweep was stopped; the same command does the rest", file=sys.stderr)
        code = getattr(ending, "code", None)
        return code if isinstance(code, int) else 130
    done = [each.return_value for batch in results for each in batch]
    store = RunStore(runs_dir())
    rows = []
    for job, outcome in zip(jobs, done, strict=True):
        words_of = dict(_from_hydra(word).split("=", 1) for word in job)
        labels = {_from_hydra(f"{key}=").rstrip("="): "" for key in varied}
        labels = {key: words_of[key] for key in labels}
        record = store.get(outcome["id"]).record() if outcome["id"] else None
        rows.append((labels, record if record is not None else outcome["status"]))
    print(sweep_table(rows))
    failed = [outcome for outcome in done if outcome["status"] != "done"]
    for outcome in failed:
        print(f"failed: {outcome['id'] or ''} {outcome['error']}", file=sys.stderr)
    return 1 if failed else 0


def run_job(cfg: Any) -> dict[str, str]:
    """Do one job of a sweep (in whatever process the launcher chose)."""
    from bayesrule.tasks.execute import execute
    from bayesrule.tasks.signals import Stopped

    try:
        config = finish(cfg)
        record = execute(config, RunStore(runs_dir()))
    except Stopped as ending:  # any other exception would let Hydra go on with the next job
        print(f"{ending}", file=sys.stderr)
        raise SystemExit(ending.exit_code) from ending
    except BayesruleError as error:
        print(f"job failed: {error}", file=sys.stderr)
        return {"id": "", "status": "failed", "error": str(error)}
    text = "" if record.error is None else ": ".join(record.error)
    return {"id": record.id, "status": record.status, "error": text}


def _search_path() -> Any:
    from hydra._internal.utils import create_config_search_path

    return create_config_search_path(str(conf_dir()))


def _loader() -> Any:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    return ConfigLoaderImpl(_search_path())
