"""Stopping hopeless trials early: a run's evaluations are reported to the study while it trains.

The study's successive halving (ASHA, Li et al. 2020) compares trials after r, r eta, r eta^2, ...
evaluations: whoever is not among the best 1/eta of those that came so far is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bayesrule.config import Config
from bayesrule.errors import ConfigError
from bayesrule.tasks.signals import Pruned

if TYPE_CHECKING:
    import optuna

    from bayesrule.tasks.tuning.search import Search

__all__ = ["Watch", "check_pruning"]


def check_pruning(config: Config) -> None:
    """Refuse pruning where nothing is measured during training, or not in this process.

    Raises:
        ConfigError: Saying what to set.
    """
    trainer = config["trainer"]
    if trainer.get("eval_every") is None:
        raise ConfigError(
            "pruning needs values during training: set trainer.eval_every=1 (epochs between "
            "evaluations), or --pruner none"
        )
    if trainer["devices"] * trainer["nodes"] > 1:
        raise ConfigError(
            "pruning watches a run in this process, and this trainer starts others: --pruner none"
        )


class Watch:
    """Reports a run's evaluations to the study, and says when it should stop."""

    def __init__(self, search: Search, trial: optuna.Trial, config: Config) -> None:
        self.search, self.trial, self.config = search, trial, config
        self.metric = search.settings.objective.metric
        self.phase: str | None = None

    def look_back(self, rows: list[dict[str, Any]], *, stop: bool) -> None:
        """Report the rows of an earlier attempt at the run.

        Raises:
            Pruned: If the run would have been stopped there, and `stop`.
        """
        for row in rows:
            if (reason := self(row)) is not None and stop:
                raise Pruned(reason)

    def __call__(self, row: Mapping[str, Any]) -> str | None:
        """Take one row of the history; return why the run should stop, or None."""
        value = row.get(self.metric)
        if value is None:
            return None
        if self.phase is None:
            self.phase = str(row.get("phase"))
        trainer = self.config["trainer"]
        epochs = int(row.get("epoch", 0)) + 1
        step = epochs // int(trainer["eval_every"])
        if str(row.get("phase")) != self.phase or step < 1 or self._reported(step):
            return None
        self.trial.report(float(value), step)
        if epochs >= int(trainer["epochs"]) or not self.trial.should_prune():
            return None
        reason = f"pruned at evaluation {step}: {self.metric} {float(value):.5g}"
        self.trial.set_user_attr("pruned", reason)
        return reason

    def _reported(self, step: int) -> bool:
        frozen = self.search.study._storage.get_trial(self.trial._trial_id)
        return step in frozen.intermediate_values
