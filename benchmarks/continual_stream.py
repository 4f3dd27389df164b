"""Memory and cost per experience of every correction on a long stream.

30 permuted tasks of the Wisconsin breast cancer data (455 training items, 30 features, two classes)
and about 200 stored items in total: 200 slots of a reservoir, or 6 items of each task. The CPU time
of an experience is that of `StreamLearner.learn` (begin, fit, absorb) without the evaluation, on
one thread; `first` is the median of experiences 2 to 6, `last` that of the last five. A memory of
each task grows with the number of tasks, and so does what is computed from it.

    python benchmarks/continual_stream.py
    python benchmarks/continual_stream.py --corrections none,replay --experiences 10
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bayesrule.config import compose
from bayesrule.config.compose import group_options
from bayesrule.data import load_data
from bayesrule.data.scenarios import make_scenario
from bayesrule.errors import BayesruleError
from bayesrule.runs import RunFolder, run_id
from bayesrule.tasks.continual.loop import StreamLearner, make_correction
from bayesrule.tasks.history import History
from bayesrule.tasks.problem import Problem, make_likelihood
from bayesrule.tasks.signals import StopRequest

SLOTS, PER_TASK = 200, 6
SIZE_OPTIONS = {"size": SLOTS, "memory": PER_TASK, "memory_size": PER_TASK, "coreset": PER_TASK}
POSTERIORS = {"vcl": ["posterior=ivon"], "vcl_coreset": ["posterior=ivon"]}
BASE = [
    *("task=continual", "scenario=permuted", "data=breast_cancer", "model=mlp"),
    *("model.hidden=[100,100]", "model.activation=relu", "posterior=adamw", "trainer.epochs=5"),
    *("trainer.batch_size=32", "trainer.progress=false", "logger=none"),
]


class Untested(StreamLearner):
    """A learner that measures nothing."""

    def _score(self, experience: object) -> None:
        del experience


def words(correction: str, experiences: int) -> list[str]:
    """Return the overrides of one run."""
    chosen = [*BASE, f"scenario.n_tasks={experiences}", f"correction={correction}"]
    chosen += POSTERIORS.get(correction, [])
    options = compose(chosen)["correction"]
    sizes = [f"correction.{k}={v}" for k, v in SIZE_OPTIONS.items() if k in options]
    return [*chosen, *sizes]


def measure(correction: str, experiences: int) -> tuple[list[float], list[int], list[int]]:
    """Return CPU seconds, stored items and bytes after every experience."""
    config = compose(words(correction, experiences))
    seconds, items, nbytes = [], [], []
    with tempfile.TemporaryDirectory() as where:
        data = load_data(config["data"], seed=0, cache_dir=Path(where) / "cache")
        stream = make_scenario(config["scenario"]).stream(data, seed=0)
        folder = RunFolder(Path(where) / "run", run_id(config))
        problem = Problem(
            config, folder, data, make_likelihood(data, 1.0), History(None), StopRequest()
        )
        learner = Untested(problem, stream, make_correction(config["correction"]))
        learner.check()
        for t in range(len(stream)):
            start = time.process_time()
            learner.learn(t)
            seconds.append(time.process_time() - start)
            items.append(learner.correction.n_items())
            nbytes.append(learner.correction.nbytes())
    return seconds, items, nbytes


def main() -> None:
    """Print a row per correction."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corrections", default=",".join(group_options("correction")))
    parser.add_argument("--experiences", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    at = sorted({2, args.experiences // 2, args.experiences})
    header = [f"kB after {n}" for n in at]
    print(f"{'correction':16}{'items':>7}" + "".join(f"{h:>13}" for h in header)
          + f"{'first s':>10}{'last s':>9}{'ratio':>7}")  # fmt: skip
    for name in args.corrections.split(","):
        try:
            seconds, items, nbytes = measure(name, args.experiences)
        except BayesruleError as error:
            print(f"{name:16}{error}")
            continue
        first, last = statistics.median(seconds[1:6]), statistics.median(seconds[-5:])
        sizes = "".join(f"{nbytes[n - 1] / 1e3:13.1f}" for n in at)
        print(f"{name:16}{items[-1]:7}{sizes}{first:10.3f}{last:9.3f}{last / first:7.2f}")


if __name__ == "__main__":
    main()
