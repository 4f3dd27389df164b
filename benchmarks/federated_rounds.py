"""Time of a federated round, and what the engine adds to the bare work of the clients.

MNIST (5,000 images of a package) at 14x14 is shared out over many clients of two classes each. The
engine's rounds (messages, checks, server, accounting; no evaluation, no checkpoint) are timed with
the CPU time of one thread, the clients' own share is that of their solvers alone.

    python benchmarks/federated_rounds.py
    python benchmarks/federated_rounds.py --clients 20 --rounds 5 --algorithm fedavg
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

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


def measure(algorithm: str, clients: int, rounds: int) -> tuple[float, float, float]:
    """Return seconds of all rounds, of the solvers in them, and the last round's accuracy."""
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
        parts = make_task(config).rounds_of(Problem.from_context(context))
        loop, clients = parts.rounds, parts.clients
        loop.checkpoint_seconds = float("inf")
        spent = [0.0]
        solver = clients.solver

        def timed(k: int, r: int, late: bool):
            solve = solver(k, r, late)

            def run(objective, carried):
                start = time.process_time()
                try:
                    return solve(objective, carried)
                finally:
                    spent[0] += time.process_time() - start

            return run

        clients.solver = timed
        start = time.process_time()
        loop.run(Progress("", rounds, enabled=False))
        total = time.process_time() - start
        context.history.close()
        return total, spent[0], loop.curves["test/acc@mean"][-1][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--algorithm", choices=SOLVERS, default="bayes_admm")
    args = parser.parse_args()
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
