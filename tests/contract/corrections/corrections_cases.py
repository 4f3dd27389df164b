"""The table of corrections, and tiny streams to learn with them.

A new correction is a row in `CASES`; every option of ``conf/correction`` must have one.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bayesrule.config import compose
from bayesrule.data import load_data
from bayesrule.data.scenarios import make_scenario
from bayesrule.runs import RunStore
from bayesrule.tasks.continual.loop import StreamLearner, make_correction
from bayesrule.tasks.history import History
from bayesrule.tasks.problem import Problem, make_likelihood
from bayesrule.tasks.signals import StopRequest


@dataclass(frozen=True)
class Case:
    """One correction and what is true of it.

    Attributes:
        option: Name in ``conf/correction``.
        words: Further overrides: a small memory, a posterior that it needs.
        waits: Whether the first experience is learnt as without a correction, bit by bit.
        growing: Why its memory grows with the number of experiences; empty: it does not, after
            the first ones have filled it.
        items: Largest number of items that may be kept after all experiences; None: any.
        vectors: Vectors of P numbers that may be kept per experience, of methods that keep some
            for each; the memory beyond items is bounded by them.
    """

    option: str
    words: tuple[str, ...] = ()
    waits: bool = True
    growing: str = ""
    items: int | None = 0

    @property
    def name(self) -> str:
        """Return the option with its words."""
        return "-".join([self.option, *(word.partition(".")[2] for word in self.words)])


CASES = [
    Case("none"),
    Case("joint", growing="all data", items=None),
    Case("cumulative", growing="all data", items=None),
    Case("separate"),
    Case("replay", ("correction.size=12", "correction.batch_size=5"), waits=False, items=12),
    Case("replay", ("correction.size=12", "correction.add=end"), items=12),
    Case("replay", ("correction.size=9", "correction.weight=null", "correction.add=end",
                    "correction.batch_size=null"), items=9),
    Case("der_pp", ("correction.size=12", "correction.batch_size=5"), waits=False, items=12),
    Case("der_pp", ("correction.size=12", "correction.add=end"), items=12),
    Case("k_prior", ("correction.memory_size=4",), waits=False, growing="a memory per task",
         items=4 * 4),
    Case("k_prior", ("correction.terms=weight", "correction.memory_size=4"), waits=False),
    *(Case(option, ("correction.memory=10",), growing="a memory of each task", items=40)
      for option in ("fromp", "fromp_l2", "frorp", "frorp_l2")),
    Case("ewc"),
    Case("online_ewc", ("correction.fisher=sampled", "correction.gamma=0.9")),
    Case("si"),
    Case("online_laplace", waits=False),
    Case("online_laplace", ("correction.structure=kron",), waits=False,
         growing="Kronecker factors of each task"),
    Case("vcl", ("posterior=bbb",)),
    Case("vcl", ("posterior=bbb", "correction.coreset=5", "correction.coreset_epochs=2",
                 "correction.ml_epochs=1"), waits=False, growing="coresets", items=4 * 5),
    Case("vcl", ("posterior=ivon", "correction.weight=2.0")),
    Case("vcl", ("posterior=vogn", "correction.start=warm")),
    Case("vcl", ("posterior=bayesbinn", "posterior.binary=all")),
]  # fmt: skip

N_TASKS = 4
TINY = [
    *("task=continual", "data=digits", "data.train_size=120", "data.test_size=60"),
    *("model=mlp", "model.hidden=[6]", "model.dropout=0.1", "posterior=adamw", "logger=none"),
    *("trainer.epochs=2", "trainer.batch_size=8", "trainer.progress=false"),
    *("metrics.mc_samples=2", "trainer.checkpoint_seconds=0"),
]
STREAMS = {  # two heads and more, one head over all classes, the same head
    "heads": ["scenario=split", f"scenario.n_tasks={N_TASKS}"],
    "classes": ["scenario=split", f"scenario.n_tasks={N_TASKS}", "scenario.incremental=class"],
    "permuted": ["scenario=permuted", f"scenario.n_tasks={N_TASKS}", "trainer.max_steps=4"],
}


@functools.cache
def _config(*words: str):
    return compose(words)


def learner_of(
    folder, case: Case, stream: str, *words: str, tasks: int | None = None, stop=None
) -> StreamLearner:
    """Return a learner of a tiny stream, with a run store of its own."""
    config = _config(*TINY, f"correction={case.option}", *STREAMS[stream], *case.words, *words)
    torch.set_num_threads(1)
    data = load_data(config["data"], seed=config["seed"], cache_dir=folder / "cache")
    made = make_scenario(config["scenario"]).stream(data, seed=config["seed"])
    if tasks is not None:
        made = replace(made, experiences=made.experiences[:tasks])
    problem = Problem(
        config,
        RunStore(folder / "runs").folder(config),
        data,
        make_likelihood(data, 1.0),
        History(None),
        StopRequest() if stop is None else stop,
    )
    learner = StreamLearner(problem, made, make_correction(config["correction"]))
    learner.check()
    return learner


class StopAfter(StopRequest):
    """Asks for a stop when it was looked at a number of times (once a step and once a phase)."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    @property
    def signum(self) -> int | None:
        """Return the signal from some look on."""
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else None

    @signum.setter
    def signum(self, value: int | None) -> None:
        pass


def flat(value, where="") -> dict[str, object]:
    """Return the leaves of nested state by path, tensors included."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = enumerate(value)
    else:
        return {where: value}
    return {k: v for name, each in parts for k, v in flat(each, f"{where}/{name}").items()}


def assert_same(ours, theirs) -> None:
    """Check that two nested states are equal, bit by bit."""
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for where, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[where]), where
        else:
            assert value == theirs[where], where
