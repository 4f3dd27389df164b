"""`bayesrule train -m`: many runs by one command; Hydra's launchers start them.

The jobs are all combinations of the words' values (ranges, globs, choices), or points drawn from
intervals (`--sampler`). The run store is the ledger: every job looks its run up first, so a sweep
that was killed goes on with the rest, and a sweep that is finished trains nothing. A job that fails
says so at once and the others go on; all failures are listed at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesrule.config import compose, conf_dir, runs_dir
from bayesrule.config.compose import (
    check_overrides,
    finish,
    from_hydra_word,
    in_hydra_words,
    people_errors,
)
from bayesrule.config.space import Points, config_loader, read_space
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import RunStore
from bayesrule.tasks.loggers import SWEEP_VARIABLE, sweep_name

__all__ = ["draw", "expand", "sweep"]

Job = list[str]
Outcome = dict[str, str]
_HYDRA = ("hydra/", "hydra.", "+hydra.")


def expand(overrides: Sequence[str]) -> tuple[list[Job], list[str]]:
    """Return the jobs of a sweep, each a list of overrides, and the keys that vary.

    Raises:
        ConfigError: If an override is wrong, or there is nothing to do.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    check_overrides(overrides, sweep=True)
    with people_errors():
        parser = OverridesParser.create(config_loader=config_loader())
        parsed = parser.parse_overrides(in_hydra_words(overrides))
    for word, each in zip(overrides, parsed, strict=True):
        if each.is_interval_sweep():
            raise ConfigError(
                f"'{word}' has infinitely many values: draw some with --sampler random or "
                "--sampler sobol and --samples N, or search with `bayesrule tune`"
            )
    with people_errors():
        jobs = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    varied = [from_hydra_word(p.get_key_element()) for p in parsed if p.is_sweep_override()]
    if not jobs:
        raise ConfigError(f"the sweep has no jobs: {' '.join(overrides)}")
    _check_values(jobs)
    return jobs, varied


def draw(
    overrides: Sequence[str], sampler: str, samples: int, seed: int = 0
) -> tuple[list[Job], list[str]]:
    """Return the jobs of a sampled sweep: points of the space of all words, each with every seed.

    Args:
        overrides: Words; those with several values (``seed`` apart) are dimensions.
        sampler: ``random`` or ``sobol``.
        samples: Number of points.
        seed: Of the sampler.

    Raises:
        ConfigError: If an override is wrong, or there is nothing to draw.
    """
    if samples < 1:
        raise ConfigError(f"the sweep has no jobs: --samples {samples}")
    space = read_space(overrides)
    if not space.dimensions:
        raise ConfigError("--sampler draws values, but no key has several")
    space.check()
    points = Points(sampler, space.dimensions, seed)
    jobs = [
        in_hydra_words([*space.words(points(number)), f"seed={each}"])
        for number in range(samples)
        for each in space.seeds
    ]
    return jobs, [*(each.key for each in space.dimensions), "seed"]


def _check_values(jobs: list[Job]) -> None:
    """Compose the first job, and one job for each further value, before anything is started."""
    seen: set[str] = set()
    for job in jobs:
        if not seen.issuperset(job):
            compose([from_hydra_word(word) for word in job])
            seen.update(job)


def sweep(
    overrides: Sequence[str],
    *,
    only: str | None = None,
    sampler: str | None = None,
    samples: int = 16,
) -> int:
    """Run all jobs, print one table, return the exit code.

    Args:
        overrides: Words as given, Hydra's own (launcher) included.
        only: ``failed``: only the jobs whose run has failed.
        sampler: Draw points instead of taking all combinations, see `draw`.
        samples: How many points.
    """
    own = [word for word in overrides if not word.startswith(_HYDRA)]
    hydra_words = [word for word in overrides if word.startswith(_HYDRA)]
    if any(word.startswith(("hydra/sweeper", "hydra.sweeper")) for word in hydra_words):
        raise ConfigError("hydra/sweeper: a sweep has its own; use --sampler or `bayesrule tune`")
    jobs, varied = expand(own) if sampler is None else draw(own, sampler, samples)
    if only is not None:
        every = len(jobs)
        jobs = [job for job in jobs if _status(job) == only]
        if not jobs:
            print(f"no run of the {every} has {only}: nothing to do")
            return 0
    plural = "s" if len(jobs) > 1 else ""
    print(f"{len(jobs)} run{plural}, varying {', '.join(varied) or 'nothing'}", file=sys.stderr)
    folder = str(runs_dir() / ".sweeps").replace("'", "\\'").replace("${", "\\${")
    hydra_words += [
        f"hydra.sweep.dir='{folder}'",
        f"+hydra.job.env_set.{SWEEP_VARIABLE}={sweep_name(overrides)}",
    ]
    from bayesrule.tasks.shared import sharing

    try:
        with sharing():
            outcomes = _launch(jobs, hydra_words)
    except (SystemExit, KeyboardInterrupt) as ending:
        print("the sweep was stopped; the same command does the rest", file=sys.stderr)
        code = getattr(ending, "code", None)
        return code if isinstance(code, int) else 130
    return _report(jobs, outcomes, varied)


def _report(jobs: Sequence[Job], outcomes: Sequence[Outcome], varied: Sequence[str]) -> int:
    from bayesrule.report import sweep_table

    store = RunStore(runs_dir())
    rows = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        words = dict(from_hydra_word(word).split("=", 1) for word in job)
        record = store.get(outcome["id"]).record() if outcome["id"] else None
        rows.append(({key: words[key] for key in varied}, record or outcome["status"]))
    print(sweep_table(rows))
    failed = [outcome for outcome in outcomes if outcome["status"] != "done"]
    for outcome in failed:
        log = f"  (log: {outcome['log']})" if outcome.get("log") else ""
        print(f"failed: {outcome['id']} {outcome['error']}{log}", file=sys.stderr)
    if failed:
        print("the same command tries them again, --only failed nothing else", file=sys.stderr)
    return 1 if failed else 0


def _config(job: Job) -> Mapping[str, Any]:
    return compose([from_hydra_word(word) for word in job])


def _status(job: Job) -> str:
    store = RunStore(runs_dir())
    return store.summary(store.folder(_config(job)).id).status


# ------------------------------------------------------------------ launching


def _launch(jobs: Sequence[Job], hydra_words: Sequence[str]) -> list[Outcome]:
    """Hand the jobs to the launcher; what a launcher loses is read from the records."""
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobStatus
    from hydra.types import HydraContext, RunMode

    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("bayesrule", create_config_search_path(str(conf_dir())))
    with people_errors(hydra_words):
        config = hydra.compose_config("config", list(hydra_words), RunMode.MULTIRUN)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(hydra.config_loader, Callbacks(config)),
            task_function=run_job,
            config=config,
        )
    try:
        results = launcher.launch(jobs, initial_job_idx=0)
    except Exception as error:  # a job's process died: whatever the launcher raises for it
        return _from_records(jobs, error, config)
    outcomes = []
    for result in results:
        value = result._return_value
        if result.status != JobStatus.COMPLETED:
            value = {"id": "", "status": "failed", "error": f"{type(value).__name__}: {value}"}
        outcomes.append(value)
    return outcomes


def _from_records(jobs: Sequence[Job], error: Exception, config: Any) -> list[Outcome]:
    """Say what became of each job whose launcher gave up."""
    first = str(error).strip().split("\n")[0]
    print(f"the launcher gave up: {type(error).__name__}: {first}", file=sys.stderr)
    if logs := _launcher_logs(config):
        print(f"its log files: {logs}", file=sys.stderr)
    store, outcomes = RunStore(runs_dir()), []
    for job in jobs:
        found = store.summary(store.folder(_config(job)).id)
        error_of = found.record.error if found.record is not None else None
        text = ": ".join(error_of or ()) or "its process ended without a record"
        known = found.id if found.folder.path.is_dir() else ""
        outcomes.append({"id": known, "status": found.status, "error": text})
    return outcomes


def _launcher_logs(config: Any) -> str:
    """Return where the chosen launcher keeps what its jobs print, if not on the terminal."""
    target = str(config.hydra.launcher.get("_target_", ""))
    if "submitit" in target:
        return f"{Path(str(config.hydra.sweep.dir)) / '.submitit'}/*/*.err"
    return "/tmp/ray/session_latest/logs" if "ray" in target else ""


def run_job(cfg: Any) -> Outcome:
    """Do one job of a sweep (in whatever process the launcher chose)."""
    from bayesrule.tasks.execute import execute
    from bayesrule.tasks.signals import Stopped

    store = RunStore(runs_dir())
    try:
        config = finish(cfg)
        record = execute(config, store)
    except Stopped as ending:  # any other exception would let Hydra go on with the next job
        print(f"{ending}", file=sys.stderr)
        raise SystemExit(ending.exit_code) from ending
    except BayesruleError as error:
        print(f"job failed: {error}", file=sys.stderr)
        return {"id": "", "status": "failed", "error": str(error), "log": _job_log()}
    text = "" if record.error is None else ": ".join(record.error)
    trace = store.get(record.id).path / "traceback.txt"
    log = _job_log() or (str(trace) if record.status == "failed" and trace.exists() else "")
    return {"id": record.id, "status": record.status, "error": text, "log": log}


def _job_log() -> str:
    """Return the file that this job's process prints to, if a scheduler chose one."""
    import os

    if os.environ.get("SUBMITIT_EXECUTOR"):
        import submitit

        return str(submitit.JobEnvironment().paths.stderr)
    return ""
