"""All runs of a paper at one scale: composed, looked up, and the missing ones done."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from bayesrule.config import Config, compose, conf_dir
from bayesrule.errors import BayesruleError, ConfigError, CorruptFile
from bayesrule.runs import ArmRun, Paper, PlannedRun, RunStore, load_paper, run_id
from bayesrule.tasks.shared import sharing
from bayesrule.tasks.signals import Stopped, StopRequest, stop_request

__all__ = ["Reproduction", "configurations", "reproduce"]


@dataclass
class Reproduction:
    """What became of a paper's runs at one scale.

    Attributes:
        paper: The paper.
        scale: The scale.
        runs: One entry per planned run.
        store: Where the runs are.
        left_out: Studies that could not be run, with the reason.
        failures: Runs that failed, one line each.
        wall_seconds: Time of this call.
    """

    paper: Paper
    scale: str
    runs: list[ArmRun]
    store: RunStore
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    wall_seconds: float = 0.0


def configurations(
    paper: Paper, planned: Sequence[PlannedRun], overrides: Sequence[str] = ()
) -> list[Config]:
    """Compose the runs: once per arm, since seeds differ in one number only.

    An override that chooses an option of a group (``engine=flower``) is left out for studies that
    do not have this group, if another study of the paper has it.

    Args:
        paper: The paper.
        planned: The runs.
        overrides: Further overrides of every run.

    Raises:
        ConfigError: If an arm does not compose; the message names study and arm.
    """
    by_arm: dict[tuple[str, str], Config] = {}
    configs = []
    groups = _partial_groups(planned, overrides)
    for run in planned:
        arm = (run.study, run.arm)
        if arm not in by_arm:
            own = [word for word in overrides if run.study not in groups.get(_group(word), ())]
            try:
                by_arm[arm] = compose([*run.overrides, *own])
            except ConfigError as error:
                raise ConfigError(f"{paper.key}/{run.study}, arm {run.arm}: {error}") from error
        config = copy.deepcopy(by_arm[arm])
        config["seed"] = run.seed
        config["study"] = f"{paper.key}/{run.study}/{run.arm}"
        configs.append(config)
    return configs


def _group(word: str) -> str:
    """Return ``engine`` for ``engine=flower`` and for ``engine.workers=2``."""
    return word.partition("=")[0].partition(".")[0]


def _partial_groups(planned: Sequence[PlannedRun], overrides: Sequence[str]) -> dict[str, set[str]]:
    """Return the groups of `overrides` that some studies lack and others have, with those studies.

    A group is what a task brings in its defaults, such as ``engine`` or ``federated``.
    """
    wanted = {_group(word) for word in overrides if (conf_dir() / _group(word)).is_dir()}
    if not wanted:
        return {}
    first = {run.study: run for run in reversed(planned)}
    has = {study: compose(run.overrides).keys() for study, run in first.items()}
    return {
        group: lacking
        for group in wanted
        if (lacking := {study for study, keys in has.items() if group not in keys})
        and len(lacking) < len(has)
    }


def reproduce(
    folder: Path,
    store: RunStore,
    scale: str,
    *,
    seeds: Sequence[int] | None = None,
    studies: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    jobs: int = 0,
    only: str | None = None,
) -> Reproduction:
    """Do what is missing of a paper's runs.

    Args:
        folder: ``experiments/<key>``.
        store: Where runs live; those that are done are not repeated.
        scale: ``smoke``, ``cpu`` or ``paper``.
        seeds: Instead of the paper's.
        studies: Only these.
        overrides: Further overrides of every run.
        jobs: Processes; 0 means one per core.
        only: ``failed``: of the missing runs only those that failed before.

    Raises:
        ConfigError: If there is no such paper or study, or a configuration is wrong (before
            anything is run).
        Stopped: By a signal, after checkpoints.
    """
    start = time.monotonic()
    paper = load_paper(folder)
    planned = paper.planned(scale, seeds)
    if studies:
        unknown = [name for name in studies if name not in paper.studies]
        if unknown:
            raise ConfigError(
                f"{paper.key} has no study {unknown[0]!r} (one of: {', '.join(paper.studies)})"
            )
        planned = [run for run in planned if run.study in studies]
        if not planned:
            raise ConfigError(f"{', '.join(studies)} of {paper.key} is not run at scale {scale}")
    configs = configurations(paper, planned, overrides)
    for group, lacking in _partial_groups(planned, overrides).items():
        names = ", ".join(sorted(lacking))
        print(f"{paper.key}: {group}=... means nothing for {names}", file=sys.stderr)
    out = Reproduction(paper, scale, [], store)
    unavailable = _unavailable(planned, configs)
    out.left_out = [f"study {name}: {reason}" for name, reason in unavailable.items()]
    wanted = [
        config for run, config in zip(planned, configs, strict=True) if run.study not in unavailable
    ]
    missing = _missing(wanted, store)
    if only is not None:
        missing = [config for config in missing if _has(store, config, only)]
    _do(missing, store, jobs or _default_jobs(wanted), paper.key)
    for run, config in zip(planned, configs, strict=True):
        record = store.folder(config).record()
        arm_run = ArmRun.of(run.study, run.arm, run.seed, run_id(config), record)
        out.runs.append(arm_run)
        if arm_run.status in ("failed", "stopped"):
            out.failures.append(f"{run.study}/{run.arm} seed {run.seed}: {arm_run.error}")
    out.wall_seconds = time.monotonic() - start
    return out


def _default_jobs(configs: Sequence[Config]) -> int:
    """Return one process per core, or one in all where runs use accelerators or processes."""
    trainers = [config["trainer"] for config in configs]
    small = all(t["accelerator"] == "cpu" and t["devices"] * t["nodes"] == 1 for t in trainers)
    small &= all(config.get("engine", {"name": "local"})["name"] == "local" for config in configs)
    return (os.cpu_count() or 1) if small else 1


def _unavailable(planned: Sequence[PlannedRun], configs: Sequence[Config]) -> dict[str, str]:
    """Return, by study, why what it needs cannot be had."""
    from bayesrule.tasks.availability import unavailable

    reasons: dict[str, str] = {}
    known: dict[str, str | None] = {}
    for run, config in zip(planned, configs, strict=True):
        reason = unavailable(config, known)
        if reason is not None:
            reasons.setdefault(run.study, reason)
    return reasons


def _missing(configs: Sequence[Config], store: RunStore) -> list[Config]:
    """Return each configuration once that has no finished run."""
    by_id = {run_id(config): config for config in configs}
    return [config for config in by_id.values() if not store.folder(config).is_done()]


def _has(store: RunStore, config: Config, status: str) -> bool:
    """Return whether a run's record has a status; a damaged record has none."""
    try:
        record = store.folder(config).record()
    except CorruptFile:
        return False
    return record is not None and record.status == status


# ------------------------------------------------------------------- processes


def _do(configs: list[Config], store: RunStore, jobs: int, key: str) -> None:
    if not configs:
        return
    with stop_request() as stop:
        if jobs == 1 or len(configs) == 1:
            _here(configs, store, key)
        else:
            _in_pool(configs, store, min(jobs, len(configs)), key, stop)


def _here(configs: list[Config], store: RunStore, key: str) -> None:
    from bayesrule.tasks.execute import execute

    start = time.monotonic()
    with sharing():
        for number, config in enumerate(configs):
            record = execute(config, store)
            _tell(key, number + 1, len(configs), config, record.status, start)


def _in_pool(
    configs: list[Config], store: RunStore, jobs: int, key: str, stop: StopRequest
) -> None:
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    queue = list(reversed(configs))
    running: dict[Future[str], Config] = {}
    done = 0
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_worker_start) as pool:
        try:
            while (queue or running) and stop.signum is None:
                while queue and len(running) < jobs:
                    config = queue.pop()
                    running[pool.submit(_worker, config, str(store.root))] = config
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    config = running.pop(future)
                    status = future.result()
                    done += 1
                    _tell(key, done, len(configs), config, status, start)
        except BrokenProcessPool as error:
            raise BayesruleError(
                "a worker process was killed (out of memory?); finished runs are kept, the same "
                "command goes on with the rest; --jobs 1 needs less memory"
            ) from error
        if stop.signum is not None:
            for process in list((pool._processes or {}).values()):
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGTERM)
            wait(running)
    stop.check()


def _worker_start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between runs; a run has its own handler
    os.environ["OMP_NUM_THREADS"] = "1"


def _worker(config: Config, root: str) -> str:
    from bayesrule.tasks.execute import execute

    config["trainer"]["progress"] = False
    try:
        return execute(config, RunStore(root)).status
    except Stopped:
        return "stopped"


def _tell(key: str, done: int, total: int, config: Config, status: str, start: float) -> None:
    spent = time.monotonic() - start
    left = spent / done * (total - done)
    print(
        f"{key}: {done}/{total} runs, {config['study']} seed {config['seed']} {status}, "
        f"{spent:.0f}s, about {left:.0f}s left",
        file=sys.stderr,
        flush=True,
    )
