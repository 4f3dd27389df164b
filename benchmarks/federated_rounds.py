"""Time of a federated round, and what an engine adds to the bare work of the clients.

MNIST (5,000 images of a package) at 14x14 is shared out over many clients of two classes each. Part
one, `engine=local`: its rounds (messages, checks, server, accounting; no evaluation, no checkpoint)
are timed with the CPU time of one thread, the clients' own share is that of their solvers alone.
Part two, `--engines`: wall time of a round on Flower and in this process, side by side, with
fewer clients and rounds; the first round has the start of the processes in it.

Measured side by side on two shared cores, so ratios rather than times: with `bayes_admm`, 100
clients and 100 rounds (80 s of CPU time) the solvers are 82 % of a round, the loop adds 1.5 ms a
client. A round on Flower takes 1.5 times the local one with 10 clients of one small epoch and 9
times with 100: the way of a message costs 30 to 50 ms, which pays for clients that work longer.

    python benchmarks/federated_rounds.py
    python benchmarks/federated_rounds.py --clients 20 --rounds 5 --algorithm fedavg
    python benchmarks/federated_rounds.py --engines --clients 10 --rounds 5
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayesrule.config import compose
from bayesrule.runs import RunStore
from bayesrule.tasks.history import History
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.signals import StopRequest
from bayesrule.tasks.task import Context, make_task

SOLVERS = {
    "fedavg": ["posterior=adamw", "posterior.weight_decay=0", "posterior.lr=0.003"],
    "bayes_admm": [
        *("posterior=ivon", "posterior.rescale_lr=false", "posterior.lr=0.02"),
        "posterior.hess_init=0.05",
    ],
}


@contextmanager
def run_parts(algorithm: str, clients: int, rounds: int, engine: Any = None) -> Iterator[Any]:
    """Yield the parts of one run, which is not evaluated before its end and writes nothing."""
    config = compose(
        [
            *("experiment=bayesian-admm/shards", f"federated={algorithm}", *SOLVERS[algorithm]),
            *(f"task.clients={clients}", f"task.rounds={rounds}", f"task.report=[{rounds}]"),
            *("task.items_per_class=null", "task.eval_every=null", "trainer.epochs=1"),
        ]
    )
    with tempfile.TemporaryDirectory() as root:
        store = RunStore(Path(root))
        folder = store.folder(config)
        folder.path.mkdir(parents=True, exist_ok=True)
        context = Context(config, folder, History(folder), StopRequest())
        made = engine(config) if engine else None
        parts = make_task(config).rounds_of(Problem.from_context(context), made)
        parts.rounds.checkpoint_seconds = float("inf")
        yield parts
        context.history.close()


def measure(algorithm: str, clients: int, rounds: int) -> tuple[float, float, float]:
    """Return seconds of all rounds, of the solvers in them, and the last round's accuracy."""
    with run_parts(algorithm, clients, rounds) as parts:
        loop, spent, solver = parts.rounds, [0.0], parts.clients.solver

        def timed(k: int, r: int, late: bool):
            solve = solver(k, r, late)

            def run(objective, carried):
                start = time.process_time()
                try:
                    return solve(objective, carried)
                finally:
                    spent[0] += time.process_time() - start

            return run

        parts.clients.solver = timed
        start = time.process_time()
        loop.run(Progress("", rounds, enabled=False))
        total = time.process_time() - start
        return total, spent[0], loop.curves["test/acc@mean"][-1][1]


def round_times(algorithm: str, clients: int, rounds: int, engine: Any = None) -> list[float]:
    """Return the wall time of each round."""
    with run_parts(algorithm, clients, rounds, engine) as parts:
        marks = [time.perf_counter()]
        parts.rounds.measure = lambda state: marks.append(time.perf_counter()) or {}
        parts.rounds.run(Progress("", rounds, enabled=False))
        return [b - a for a, b in itertools.pairwise(marks)]


def compare_engines(algorithm: str, clients: int, rounds: int) -> None:
    from bayesrule.tasks.flower.environment import prepare
    from bayesrule.tasks.flower.grid import GridEngine
    from bayesrule.tasks.flower.simulation import Simulation

    with tempfile.TemporaryDirectory() as home:
        prepare("flower", Path(home))
        simulation = Simulation(clients)
        try:
            on_ray = round_times(
                *(algorithm, clients, rounds),
                lambda config: GridEngine(simulation.grid, config, clients, wait=300),
            )
        finally:
            simulation.close()
    here = round_times(algorithm, clients, rounds)
    mine, theirs = statistics.median(here[1:]), statistics.median(on_ray[1:])
    print(f"{algorithm}, {clients} clients, {rounds} rounds, wall time, median after the first")
    print(f"  engine=local {1e3 * mine:.0f} ms a round (first {here[0]:.2f} s)")
    print(
        f"  engine=flower, {simulation.workers} processes: {1e3 * theirs:.0f} ms a round "
        f"(first {on_ray[0]:.1f} s), {theirs / mine:.2f} times local"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--algorithm", choices=SOLVERS, default="bayes_admm")
    parser.add_argument("--engines", action="store_true", help="local and Flower side by side")
    args = parser.parse_args()
    if args.engines:
        compare_engines(args.algorithm, args.clients, args.rounds)
        return
    total, solvers, acc = measure(args.algorithm, args.clients, args.rounds)
    per_round = 1e3 * total / args.rounds
    print(f"{args.algorithm}, {args.clients} clients, {args.rounds} rounds, CPU time of one thread")
    print(f"  a round {per_round:.1f} ms, of which the clients' solvers {solvers / total:.1%}")
    print(
        f"  the engine adds {1e3 * (total - solvers) / args.rounds / args.clients:.3f} ms a client"
    )
    print(f"  test accuracy after the last round {acc:.3f}")


if __name__ == "__main__":
    main()
