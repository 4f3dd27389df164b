"""A paper's runs, by study, arm and seed: what `experiments/<key>/figures.py` draws from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bayesrule.errors import BayesruleError
from bayesrule.report.names import largest_mc, parse_name
from bayesrule.runs import ArmRun, RunRecord, RunStore, read_runs

__all__ = ["Records"]


class Records:
    """Finished runs of a paper at one scale.

    Metrics come from the given runs (results/.../runs.csv has them all), records, histories and
    curves from the run store. Runs that failed or were not made are left out: a figure shows what
    there is, and the tables say what is missing.

    Usage, in `experiments/<key>/figures.py`::

        def figures(records: Records, out: Path) -> None:
            reliability(records, "p2", out, arms=["sgd", "ivon"])
            curve = records.curve("p2", "ivon", 10, "test/reliability@mc64")
    """

    def __init__(self, runs: Iterable[ArmRun], store: RunStore) -> None:
        """Hold the finished ones among `runs`, in their order."""
        self.store = store
        self._runs: dict[tuple[str, str, int], ArmRun] = {}
        for run in runs:
            if run.status == "done":
                self._runs[run.study, run.arm, run.seed] = run
        self._records: dict[str, RunRecord] = {}

    @classmethod
    def read(cls, folder: str | Path, store: RunStore) -> Records:
        """Return the runs of a results folder (its runs.csv)."""
        return cls(read_runs(folder), store)

    @classmethod
    def of(cls, record: RunRecord, root: str | Path) -> Records:
        """Return one run alone, for its own figures; its study and arm are named `run`.

        Args:
            record: Its record, which need not be stored yet.
            root: The run store, for its history.
        """
        seed = int(record.config.get("seed", 0))
        done = ArmRun("run", "run", seed, record.id, "done", record.metrics)
        records = cls([done], RunStore(root))
        records._records[record.id] = record
        return records

    def studies(self) -> list[str]:
        """Return the studies that have a finished run."""
        return list(dict.fromkeys(study for study, _, _ in self._runs))

    def arms(self, study: str, wanted: Iterable[str] | None = None) -> list[str]:
        """Return the arms of a study that have a finished run.

        Args:
            study: The study.
            wanted: Only these, in this order.
        """
        there = dict.fromkeys(arm for name, arm, _ in self._runs if name == study)
        return list(there) if wanted is None else [arm for arm in wanted if arm in there]

    def seeds(self, study: str, arm: str) -> list[int]:
        """Return the seeds of an arm's finished runs."""
        return [seed for one, other, seed in self._runs if (one, other) == (study, arm)]

    def run(self, study: str, arm: str, seed: int) -> ArmRun:
        """Return one finished run.

        Raises:
            BayesruleError: If there is none; names the nearest arm or the seeds that there are.
        """
        found = self._runs.get((study, arm, seed))
        if found is not None:
            return found
        if study not in self.studies():
            kind, name, known = "study", study, self.studies()
        elif arm not in self.arms(study):
            kind, name, known = "arm", arm, self.arms(study)
        else:
            kind, name, known = "seed", str(seed), [str(one) for one in self.seeds(study, arm)]
        close = difflib.get_close_matches(name, known, 1) or known
        raise BayesruleError(
            f"no finished run of study {study!r}, arm {arm!r}, seed {seed}: unknown {kind} "
            f"{name!r} (there is: {', '.join(close) or 'none'})"
        )

    def metrics(self, study: str, arm: str) -> set[str]:
        """Return the names of the metrics that some run of the arm has."""
        runs = (self._runs[study, arm, seed] for seed in self.seeds(study, arm))
        return {name for run in runs for name in run.metrics}

    def values(self, study: str, arm: str, metric: str) -> dict[int, float]:
        """Return the finite values of a metric by seed."""
        values = {
            seed: self._runs[study, arm, seed].metrics.get(metric, math.nan)
            for seed in self.seeds(study, arm)
        }
        return {seed: float(value) for seed, value in values.items() if math.isfinite(value)}

    def rule(self, study: str, arm: str, stem: str, rule: str = "mc") -> str:
        """Return `rule` with `mc` made precise: the largest `mc<K>` of the metric `stem`.

        Args:
            study: The study.
            arm: The arm.
            stem: `<split>/<metric>`.
            rule: A rule, or `mc`.

        Returns:
            The rule; `mean` if no `mc<K>` was measured.
        """
        if rule != "mc":
            return rule
        parts = map(parse_name, self.metrics(study, arm))
        found = largest_mc(part.rule for part in parts if f"{part.split}/{part.metric}" == stem)
        return found or "mean"

    def record(self, study: str, arm: str, seed: int) -> RunRecord:
        """Return a run's record from the store.

        Raises:
            BayesruleError: If there is no such run, or the store does not have it any more.
            CorruptFile: If the record is damaged.
        """
        run = self.run(study, arm, seed)
        if run.run not in self._records:
            record = None if run.run is None else self.store.get(run.run).record()
            if record is None:
                raise BayesruleError(
                    f"study {study!r}, arm {arm!r}, seed {seed}: its run {run.run} is not in "
                    f"{self.store.root}; `bayesrule reproduce` makes it again"
                )
            self._records[record.id] = record
            return record
        return self._records[run.run]

    def history(self, study: str, arm: str, seed: int) -> list[dict[str, Any]]:
        """Return the rows of a run's metrics.jsonl."""
        record = self.record(study, arm, seed)
        return self.store.get(record.id).history()

    def curve(self, study: str, arm: str, seed: int, name: str) -> Mapping[str, Any] | None:
        """Return a stored curve of a run, e.g. `test/reliability@mc64`, or None."""
        curves = self.record(study, arm, seed).details.get("curves", {})
        found: Mapping[str, Any] | None = curves.get(name)
        return found

    def curves(self, study: str, arm: str, name: str) -> dict[int, Mapping[str, Any]]:
        """Return a curve of every finished run of an arm that has it, by seed."""
        found = {seed: self.curve(study, arm, seed, name) for seed in self.seeds(study, arm)}
        return {seed: curve for seed, curve in found.items() if curve is not None}
