"""One trial: a setting is run with every seed; its value is the mean of the metric over seeds.

Successive halving watches the first seed's run (see `pruning`): one that is not among the best of
its rung is stopped after a checkpoint. Its record says so, and `bayesrule train` with the same
words continues it. Further seeds are run for the settings that came through.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from typing import TYPE_CHECKING

from bayesrule.config import Config, compose
from bayesrule.errors import BayesruleError, ConfigError, NonFiniteLoss, RunLocked
from bayesrule.runs import RunRecord, RunStore
from bayesrule.tasks.execute import execute
from bayesrule.tasks.signals import Pruned
from bayesrule.tasks.tuning.pruning import Watch
from bayesrule.tasks.tuning.search import Search

if TYPE_CHECKING:
    import optuna

__all__ = ["run_trial"]


def run_trial(search: Search, trial: optuna.Trial, store: RunStore) -> str:
    """Run one trial to its end and tell the study; return how it ended, as a line for people.

    Raises:
        Stopped: By a signal; the trial stays open, and the next worker goes on with it.
        ConfigError: If the metric is not measured.
    """
    settings = search.settings
    words = settings.space.words(trial.params)
    if (reason := trial.user_attrs.get("pruned")) is not None:  # decided, then killed
        search.tell_pruned(trial, reason)
        return str(reason)
    values = []
    try:
        base = compose([*words])
        for place, seed in enumerate(settings.space.seeds):
            config = copy.deepcopy(base)
            config["seed"] = seed
            if multiprocessing.parent_process() is not None:  # lines of several would mix
                config["trainer"]["progress"] = False
            config["tags"] = [*config["tags"], f"tune:{search.name}"]
            _note_run(trial, store.folder(config).id)
            watch = Watch(search, trial, config) if settings.prune and place == 0 else None
            record = _execute(config, store, watch)
            if record.status != "done":
                return _failed(search, trial, seed, record)
            values.append(settings.objective.value(record.metrics))
    except Pruned as ending:
        reason = str(trial.user_attrs.get("pruned", ending))
        search.tell_pruned(trial, reason)
        return reason
    except ConfigError as error:
        search.tell_failed(trial, str(error))
        if settings.objective.metric in str(error):  # no trial will measure it
            raise
        return f"failed: {error}"
    except BayesruleError as error:
        search.tell_failed(trial, str(error))
        return f"failed: {error}"
    trial.set_user_attr("values", values)
    value = sum(values) / len(values)
    search.tell(trial, value)
    return f"{settings.objective.metric} {value:.5g}"


def _note_run(trial: optuna.Trial, run: str) -> None:
    runs = list(trial.user_attrs.get("runs", ()))
    if run not in runs:
        trial.set_user_attr("runs", [*runs, run])


def _failed(search: Search, trial: optuna.Trial, seed: int, record: RunRecord) -> str:
    """End a trial one of whose runs failed; a setting that diverges has the worst value."""
    kind, message = record.error or ("", "")
    if kind == NonFiniteLoss.__name__:
        trial.set_user_attr("diverged", f"seed {seed}: {message}")
        search.tell(trial, search.settings.objective.worst)
        return f"diverged: {message}"
    search.tell_failed(trial, f"run {record.id}: {kind}: {message}")
    return f"failed: {kind}: {message}"


def _execute(config: Config, store: RunStore, watch: Watch | None) -> RunRecord:
    """Do a run; wait where another worker does the same setting."""
    folder = store.folder(config)
    while True:
        if watch is not None:
            watch.look_back(folder.history(), stop=not folder.is_done())
        try:
            return execute(config, store, watch=watch)
        except RunLocked:
            time.sleep(1.0)
