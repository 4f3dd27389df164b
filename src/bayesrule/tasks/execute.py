"""The life of a run: found or made, locked, worked on, recorded; whatever ends it is on record.

`execute` returns a record for a run that is done (also when it was done before) or failed, and
raises only for what is not the run's own affair: a stop by a signal, another process on the same
run, a disk that takes no record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from bayesrule.config import Config, check_processes
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.runs import RunFolder, RunRecord, RunStore, provenance
from bayesrule.tasks.history import History
from bayesrule.tasks.launch import in_processes, is_rank
from bayesrule.tasks.signals import Stopped, StopRequest, stop_request

__all__ = ["Watch", "execute"]

Watch = Callable[[Mapping[str, Any]], str | None]
"""Sees each row of a run's history; returns why the run should stop now, or None."""


def execute(
    config: Config,
    store: RunStore,
    *,
    tell: Callable[[str], None] | None = None,
    watch: Watch | None = None,
) -> RunRecord:
    """Do the run that `config` describes, or return its record if it is done.

    Args:
        config: A composed and checked configuration.
        store: Where runs live.
        tell: Receives one line for people when a run fails.
        watch: May end the run early; of runs in one process only.

    Returns:
        The run's record, with status ``done`` or ``failed``.

    Raises:
        Stopped: By a signal (or `Pruned`, by `watch`), after a checkpoint, or after the record
            where training was over.
        ConfigError: If the configuration turns out not to fit (nothing was trained).
        RunLocked: If another process works on the run.
    """
    check_processes(config["trainer"])
    if config["trainer"]["strategy"] == "fsdp":
        from bayesrule.tasks.shardable import check_sharding

        check_sharding(config)
    folder = store.folder(config)
    if folder.is_done():
        record = folder.record()
        assert record is not None
        return record
    if is_rank() and int(os.environ["RANK"]) > 0:
        return _follow(config, folder)
    with folder.lock():
        if folder.is_done():  # another process finished it while we waited
            record = folder.record()
            assert record is not None
            return record
        return _work(config, folder, tell or (lambda text: print(text, file=sys.stderr)), watch)


def _work(
    config: Config, folder: RunFolder, tell: Callable[[str], None], watch: Watch | None
) -> RunRecord:
    start = time.monotonic()
    with stop_request() as stop:
        try:
            outcome = _run_task(config, folder, stop, watch)
        except Stopped as ending:
            folder.write_record("stopped", error=ending, provenance=_provenance(start))
            raise
        except KeyboardInterrupt:  # a second Ctrl-C did not wait for a step boundary
            interrupted = Stopped(signal.SIGINT)
            folder.write_record("stopped", error=interrupted, provenance=_provenance(start))
            raise interrupted from None
        except ConfigError:
            raise
        except Exception as error:
            if not isinstance(error, BayesruleError):
                with contextlib.suppress(OSError):
                    (folder.path / "traceback.txt").write_text(traceback.format_exc())
            text = str(error) if isinstance(error, BayesruleError) else repr(error)
            tell(f"run {folder.id} failed: {text}")
            record = folder.write_record("failed", error=error, provenance=_provenance(start))
            if stop.signum:
                stop.check()
            return record
    record = folder.write_record(
        "done",
        outcome.metrics,
        provenance=_provenance(start, outcome.details.get("data")),
        details=outcome.details,
    )
    _clear_checkpoints(folder)
    if stop.signum:  # asked for after the last step: the run is done, what comes after it is not
        stop.check()
    return record


def _follow(config: Config, folder: RunFolder) -> RunRecord:
    """Work as a rank that writes nothing: rank 0 holds the lock and keeps the record."""
    with stop_request() as stop:
        outcome = _run_task(config, folder, stop)
    return RunRecord(folder.id, "done", outcome.metrics, config=config)


def _run_task(
    config: Config, folder: RunFolder, stop: StopRequest, watch: Watch | None = None
) -> Any:
    import torch

    from bayesrule.tasks.devices import training_device
    from bayesrule.tasks.loggers import make_sinks
    from bayesrule.tasks.task import Context, make_task

    torch.set_num_threads(config["trainer"]["threads"])
    if config["trainer"]["accelerator"] == "gpu":
        training_device("gpu")  # refuses what this machine lacks
    task = make_task(config)
    task.check(config)
    if config["trainer"]["devices"] * config["trainer"]["nodes"] > 1:
        return in_processes(config, folder, stop)

    def see(row: Mapping[str, Any]) -> None:
        if watch is not None and (reason := watch(row)) is not None:
            stop.prune(reason)

    history = History(
        folder, make_sinks(config, folder), enabled=config["logger"]["name"] != "none", watch=see
    )
    try:
        outcome = task.run(Context(config, folder, history, stop))
        history.summary(outcome.metrics, outcome.details)
        return outcome
    finally:
        history.close()


def _provenance(start: float, data: Any | None = None) -> dict[str, Any]:
    return provenance.collect(wall_seconds=time.monotonic() - start, data=data)


def _clear_checkpoints(folder: RunFolder) -> None:
    import shutil

    shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
