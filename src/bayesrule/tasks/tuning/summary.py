"""The summary of a search, as a small file that tables and the dashboard read: ``study.json``."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import TYPE_CHECKING, Any

from bayesrule.errors import CorruptFile
from bayesrule.runs import read_json, write_json
from bayesrule.tasks.tuning.search import Search

if TYPE_CHECKING:
    import optuna

__all__ = ["write_summary"]

_BEST = 10
_FEWEST = 4  # complete trials before importances say anything


def write_summary(search: Search, *, importances: bool = False) -> dict[str, Any]:
    """Write and return what is known of the search.

    Args:
        search: The study.
        importances: Whether to compute which dimensions matter; else those of before stay.

    Returns:
        ``name``, ``metric``, ``direction``, ``sampler``, ``seeds``, ``fixed``, ``dimensions``,
        ``counts`` by state, ``best`` (trials with ``number``, ``value``, ``values`` by seed,
        ``params``, ``overrides``, ``runs``), ``failed``, and ``importances`` (fractions of the
        variance of the metric, by key; Hutter et al. 2014).
    """
    with search.lock():
        settings, trials = search.settings, search.trials()
        found: dict[str, float] = {}
        if importances:
            found = _importances(search, trials)
        else:
            with contextlib.suppress(FileNotFoundError, CorruptFile):
                found = read_json(search.summary_path).get("importances", {})
        done = [t for t in trials if t.state.name == "COMPLETE" and _finite(t.value)]
        sign = 1.0 if settings.objective.direction == "minimize" else -1.0
        done.sort(key=lambda t: (sign * float(t.value or 0.0), t.number))
        diverged = sum("diverged" in t.user_attrs for t in trials)
        names = ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
        counts = {name.lower(): sum(t.state.name == name for t in trials) for name in names}
        space = settings.space.to_json()
        content = {
            "schema": 1,
            "name": search.name,
            "metric": settings.objective.metric,
            "direction": settings.objective.direction,
            "sampler": settings.sampler,
            "pruned_by": "successive halving" if settings.prune else None,
            **space,
            "counts": {**counts, "complete": counts["complete"] - diverged, "diverged": diverged},
            "best": [_row(search, trial) for trial in done[:_BEST]],
            "failed": [
                {"number": t.number, "error": t.user_attrs.get("error", "")}
                for t in trials
                if t.state.name == "FAIL"
            ],
            "importances": found,
        }
        write_json(search.summary_path, content)
    return content


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _row(search: Search, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    space = search.settings.space
    return {
        "number": trial.number,
        "value": trial.value,
        "values": trial.user_attrs.get("values", []),
        "params": dict(trial.params),
        "overrides": space.words(trial.params),
        "runs": trial.user_attrs.get("runs", []),
    }


def _importances(search: Search, trials: list[optuna.trial.FrozenTrial]) -> dict[str, float]:
    """Return the fANOVA importances of the dimensions; empty where too little is known."""
    import optuna

    complete = [t for t in trials if t.state.name == "COMPLETE" and _finite(t.value)]
    varied = [
        each.key
        for each in search.settings.space.dimensions
        if len({t.params[each.key] for t in complete}) > 1
    ]
    if len(complete) < _FEWEST or not varied or len({t.value for t in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(
            search.study, evaluator=evaluator, params=varied
        )
    return {key: float(value) for key, value in found.items()}
