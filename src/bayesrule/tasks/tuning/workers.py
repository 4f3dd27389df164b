"""Workers of a search: one in this process, or several processes; more may be started elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bayesrule.runs import RunStore
from bayesrule.tasks.loggers import SWEEP_VARIABLE
from bayesrule.tasks.shared import sharing
from bayesrule.tasks.signals import Stopped, StopRequest, stop_request
from bayesrule.tasks.tuning.search import Search, Settings
from bayesrule.tasks.tuning.summary import write_summary
from bayesrule.tasks.tuning.trial import run_trial

__all__ = ["tune"]


def tune(search: Search, store: RunStore, trials: int, jobs: int = 1) -> dict[str, Any]:
    """Work until `trials` trials of the study have ended or are being worked on by others.

    Args:
        search: The study.
        store: Where runs live.
        trials: Number of trials of the whole study, over all workers and commands.
        jobs: Processes.

    Returns:
        The summary, see `write_summary`.

    Raises:
        Stopped: By a signal, after checkpoints.
        ConfigError: If the metric is not measured.
    """
    wanted = min(jobs, max(1, search.limit(trials) - search.ended()))
    try:
        with stop_request() as stop:
            if wanted == 1:
                _work(search, store, trials, stop)
            else:
                _in_processes(search, store, trials, wanted, stop)
    finally:
        os.environ.pop(SWEEP_VARIABLE, None)
    return write_summary(search, importances=True)


def _work(search: Search, store: RunStore, trials: int, stop: StopRequest) -> None:
    parent = multiprocessing.parent_process()
    os.environ[SWEEP_VARIABLE] = f"tune-{search.name}"  # other loggers group the runs by it
    with search.worker() as worker, sharing():
        while parent is None or parent.is_alive():
            stop.check()
            trial = search.ask(worker, trials)
            if trial is None:
                return
            ending = run_trial(search, trial, store)
            write_summary(search)
            words = " ".join(
                each.word(trial.params[each.key]) for each in search.settings.space.dimensions
            )
            print(
                f"trial {trial.number} ({search.ended()}/{search.limit(trials)})  {words}  "
                f"{ending}",
                file=sys.stderr,
                flush=True,
            )


def _in_processes(
    search: Search, store: RunStore, trials: int, jobs: int, stop: StopRequest
) -> None:
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = (str(store.root), search.settings.to_json(), search.name, trials)
    processes: list[Any] = [context.Process(target=_worker, args=arguments) for _ in range(jobs)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        time.sleep(0.1)
        if stop.signum is not None:
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)
            for process in processes:
                process.join()
    stop.check()
    for process in processes:
        if process.exitcode not in (0, 2):
            print(
                f"a worker ended with code {process.exitcode}; the same command goes on with what "
                "it left",
                file=sys.stderr,
            )
    if any(process.exitcode == 2 for process in processes):
        raise SystemExit(2)  # it has said why


def _worker(root: str, settings: dict[str, Any], name: str, trials: int) -> None:
    from bayesrule.errors import BayesruleError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes a stop on as SIGTERM
    store = RunStore(root)
    search = Search(Path(root), Settings.from_json(settings), name)
    with stop_request() as stop:
        try:
            _work(search, store, trials, stop)
        except Stopped as ending:
            raise SystemExit(ending.exit_code) from None
        except BayesruleError as error:
            print(f"bayesrule tune: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
