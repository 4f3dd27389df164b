"""Time of the mean square of per-example gradients: by hooks, by vmap, and beside a plain pass.

The networks are a LeNet-5 and ``model=cnn``. The ways take turns of a few passes, so that a machine
whose speed drifts slows all of them alike; the figures are medians and ratios of medians. With one
thread it is the processor's time that is taken, so that other programs on the machine do not count;
with several, the time on the wall.

    python benchmarks/per_example_gradients.py
    python benchmarks/per_example_gradients.py --batch 64 --steps 30 --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayesrule.curvature import PerExampleRecorder, per_example_gradients
from bayesrule.models import build_model

TURN = 3  # passes before the next way's turn
Clock = Callable[[], float]


def lenet(shape: tuple[int, int, int]) -> nn.Module:
    """LeNet-5 with ReLU and max pooling."""
    side = (shape[1] - 4) // 2
    side = (side - 4) // 2
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip


def cnn(shape: tuple[int, int, int], **options: object) -> nn.Module:
    """``model=cnn``, with group normalisation unless told otherwise."""
    return build_model({"name": "cnn", **options}, input_shape=shape, n_outputs=10, seed=0)


def mlp(shape: tuple[int, ...]) -> nn.Module:
    """``model=mlp`` with two hidden layers of 50 units."""
    return build_model({"name": "mlp", "hidden": [50, 50]}, input_shape=shape, n_outputs=10, seed=0)


MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
NETWORKS = {
    "LeNet-5, 1x28x28": (lenet, MNIST),
    "LeNet-5, 3x32x32": (lenet, CIFAR),
    "cnn group, 1x28x28": (cnn, MNIST),
    "cnn group, 3x32x32": (cnn, CIFAR),
    "cnn none, 3x32x32": (lambda shape: cnn(shape, norm="none"), CIFAR),
    "cnn frn, 3x32x32": (lambda shape: cnn(shape, norm="frn"), CIFAR),
    "mlp 64-50-50-10": (mlp, (64,)),
}


class Ways:
    """The ways to pass once over one batch; each adds to the times of its parts."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, clock: Clock) -> None:
        self.model, self.x, self.y, self.clock = model, x, y, clock
        self.loss = nn.CrossEntropyLoss()
        self.recorder = PerExampleRecorder(model)
        self.times: dict[str, list[float]] = defaultdict(list)

    def plain(self) -> None:
        """A forward and a backward pass."""
        self.model.zero_grad()
        start = self.clock()
        loss = self.loss(self.model(self.x), self.y)
        middle = self.clock()
        loss.backward()
        end = self.clock()
        self.times["backward"].append(end - middle)
        self.times["plain"].append(end - start)

    def hooks(self) -> None:
        """The same passes with a recorder."""
        self.model.zero_grad()
        start = self.clock()
        with self.recorder.recording():
            self.loss(self.model(self.x), self.y).backward()
        self.recorder.mean_squares()
        self.times["hooks"].append(self.clock() - start)

    def func(self) -> None:
        """The same squares by `torch.func`."""
        start = self.clock()
        g = per_example_gradients(self.model, self.loss, {"input": self.x, "target": self.y})
        {name: rows.square().mean(0) for name, rows in g.items()}
        self.times["vmap"].append(self.clock() - start)


def measure(ways: Ways, steps: int) -> dict[str, float]:
    """Return median seconds, taken in turns after a warm-up."""
    for turn in range(1 + -(-steps // TURN)):
        for way in (ways.plain, ways.hooks, ways.func):
            for _ in range(TURN):
                way()
        if turn == 0:
            ways.times.clear()
    return {name: statistics.median(each) for name, each in ways.times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch", type=int, nargs="*", default=[32, 128], help="batch sizes (default: 32 128)"
    )
    parser.add_argument("--steps", type=int, default=21, help="timed passes of each (default: 21)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    print(f"milliseconds, median of {args.steps}, {args.threads} thread(s); plain and hooks are a")
    print("forward and a backward pass, vmap gives the squares alone; extra is hooks - plain\n")
    columns = ("backward", "plain", "hooks", "vmap")
    ratios = ("hooks/plain", "vmap/plain", "extra/backward")
    print(f"{'':28}" + "".join(f"{c:>10}" for c in columns) + "".join(f"{r:>16}" for r in ratios))
    for label, (make, shape) in NETWORKS.items():
        for batch in args.batch:
            torch.manual_seed(0)
            model, x = make(shape), torch.randn(batch, *shape)
            found = measure(Ways(model, x, torch.randint(10, (batch,)), clock), args.steps)
            found["extra"] = found["hooks"] - found["plain"]
            cells = "".join(f"{1e3 * found[column]:10.2f}" for column in columns)
            for ratio in ratios:
                top, bottom = ratio.split("/")
                cells += f"{found[top] / found[bottom]:16.2f}"
            print(f"{f'{label}, batch {batch}':28}{cells}")


if __name__ == "__main__":
    main()
