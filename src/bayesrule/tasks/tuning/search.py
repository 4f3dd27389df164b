"""A search over settings on Optuna's ask and tell: one SQLite study, any number of workers.

    runs/.tune/<name>/definition.json     what is searched, how, and for what
                      study.db            Optuna's study
                      study.json          summary: best trials, importances (see summary.py)
                      workers/<id>.lock   held by a living worker

Trial n is proposed by a sampler that is seeded anew by (seed, n), so that with one worker a search
that was killed and repeated proposes what an uninterrupted one would. A trial whose worker died is
taken over by the next worker under its number; its runs go on from their checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.config.space import Points, Space
from bayesrule.errors import ConfigError
from bayesrule.runs import canonical_json, read_json, write_json
from bayesrule.tasks.tuning.objective import Objective
from bayesrule.tasks.tuning.sampling import distribution, make_sampler

if TYPE_CHECKING:
    import optuna

__all__ = ["Search", "Settings"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STARTUP = 10


@dataclass(frozen=True)
class Settings:
    """How a search is done.

    Attributes:
        space: What is fixed, what is searched, and the seeds of each setting.
        objective: What a setting is judged by, averaged over seeds.
        sampler: ``tpe``, ``random``, ``sobol`` or ``grid``.
        seed: Of the sampler.
        startup: Random trials before TPE learns from trials.
        prune: Whether trials are stopped early by successive halving.
        reduction: One in so many trials goes on at each rung.
        first_rung: Evaluations before the first rung.
    """

    space: Space
    objective: Objective
    sampler: str = "tpe"
    seed: int = 0
    startup: int = _STARTUP
    prune: bool = True
    reduction: int = 3
    first_rung: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {**asdict(self), "space": self.space.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Settings:
        """Return the settings that `to_json` wrote."""
        space = Space.from_json(content["space"])
        objective = Objective(**content["objective"])
        return cls(**{**content, "space": space, "objective": objective})

    def name(self) -> str:
        """Return a name that equal settings share."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()[:12]


class Search:
    """One study: its folder, Optuna's study in it, and what workers do with both."""

    def __init__(self, root: Path, settings: Settings, name: str | None = None) -> None:
        """Open the study, or make it.

        Args:
            root: The run store's folder.
            settings: How the search is done.
            name: Name of the study; None: one that equal settings share.

        Raises:
            ConfigError: If the name is no plain one, or belongs to another search.
        """
        self.settings = settings
        self.name = name or settings.name()
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name {self.name}: use letters, digits, '.', '_' and '-', at most 64"
            )
        self.folder = root / ".tune" / self.name
        self.points = None
        if settings.sampler != "tpe":
            self.points = Points(settings.sampler, settings.space.dimensions, settings.seed)
        with self.lock():
            self._claim()
            self.study = self._open()

    @property
    def summary_path(self) -> Path:
        """Path of the study's summary."""
        return self.folder / "study.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study against other workers, for the moments in which trials change hands."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock", timeout=120):
            yield

    def _claim(self) -> None:
        path = self.folder / "definition.json"
        wanted = json.loads(json.dumps(self.settings.to_json()))
        if not path.exists():
            write_json(path, wanted)
            return
        found = read_json(path)
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing:
            raise ConfigError(
                f"a search named {self.name} exists and differs in {', '.join(differing)}: use "
                f"another --name, or remove {self.folder}"
            )

    def _open(self) -> optuna.Study:
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                "`bayesrule tune` needs Optuna: pip install 'bayesrule[tune]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{self.folder / 'study.db'}",
            engine_kwargs={"connect_args": {"timeout": 120}},
        )
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if self.settings.prune:
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.settings.first_rung, reduction_factor=self.settings.reduction
            )
        return optuna.create_study(
            storage=storage,
            study_name=self.name,
            direction=self.settings.objective.direction,
            pruner=pruner,
            load_if_exists=True,
        )

    # ---------------------------------------------------------------- workers

    @contextlib.contextmanager
    def worker(self) -> Iterator[str]:
        """Be a worker: yields its name; others see that it is gone when its process ends."""
        from filelock import FileLock

        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        path = self._worker_lock(name)
        path.parent.mkdir(exist_ok=True)
        try:
            with FileLock(path):
                yield name
        finally:
            path.unlink(missing_ok=True)

    def _worker_lock(self, name: str) -> Path:
        return self.folder / "workers" / f"{name}.lock"

    def _is_alive(self, worker: str) -> bool:
        from filelock import FileLock, Timeout

        path = self._worker_lock(worker)
        if not path.exists():
            return False
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    # ------------------------------------------------------------- ask and tell

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Return all trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def ended(self) -> int:
        """Return how many trials ended: complete, pruned or failed."""
        return sum(trial.state.is_finished() for trial in self.trials())

    def limit(self, trials: int) -> int:
        """Return how many trials there can be at most."""
        size = self.points.size if self.points is not None else None
        return trials if size is None else min(trials, size)

    def ask(self, worker: str, trials: int) -> optuna.Trial | None:
        """Return the next trial for a worker; None when `trials` have ended or are being worked on.

        Args:
            worker: The worker's name.
            trials: Number of trials of the whole study.
        """
        import optuna

        with self.lock():
            known = self.trials()
            busy = 0
            for frozen in known:
                if frozen.state != optuna.trial.TrialState.RUNNING:
                    continue
                owner = frozen.user_attrs.get("worker")
                if owner != worker and owner is not None and self._is_alive(owner):
                    busy += 1
                    continue
                return self._propose(optuna.Trial(self.study, frozen._trial_id), worker)
            if self.ended() + busy >= self.limit(trials):
                return None
            self._seed(len(known), 0)
            return self._propose(self.study.ask(), worker)

    def _propose(self, trial: optuna.Trial, worker: str) -> optuna.Trial:
        """Fill in a trial's values: those that it has stay, the others do not depend on chance."""
        self._seed(trial.number, 0)
        trial.relative_params  # noqa: B018  # drawn here, once for all dimensions
        for place, each in enumerate(self.settings.space.dimensions):
            self._seed(trial.number, place + 1)
            trial._suggest(each.key, distribution(each))
        trial.set_user_attr("worker", worker)
        return trial

    def _seed(self, number: int, place: int) -> None:
        settings = self.settings
        self.study.sampler = make_sampler(
            self.points,
            settings.space.dimensions,
            seed=[settings.seed, number, place],
            startup=settings.startup,
        )

    def tell(self, trial: optuna.Trial, value: float) -> None:
        """End a trial with its value."""
        with self.lock():
            self.study.tell(trial, value)

    def tell_pruned(self, trial: optuna.Trial, reason: str) -> None:
        """End a trial that was stopped early; its last reported value stands for it."""
        import optuna

        with self.lock():
            trial.set_user_attr("pruned", reason)
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def tell_failed(self, trial: optuna.Trial, error: str) -> None:
        """End a trial that gave no value."""
        import optuna

        with self.lock():
            trial.set_user_attr("error", error)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
