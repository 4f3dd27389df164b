"""Time of one optimiser step alone: IVON against the authors' ivon-opt and torch's fused AdamW.

The gradients are fixed tensors, so neither forward nor backward passes are timed: what is left is
drawing the noise, moving to the sample and back, collecting the statistic, and the update. The
optimisers take turns of a few steps, so that a machine whose speed drifts slows all of them alike;
the figures are medians and ratios of medians. With one thread it is the processor's time that is
taken, so that other programs on the machine do not count; with several, the time on the wall.

    python benchmarks/optimizer_step.py
    python benchmarks/optimizer_step.py --sizes 1000000 --steps 20 --threads 4
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bayesrule.models import build_model
from bayesrule.optim import IVON

TURN = 3  # steps before the next optimiser's turn
Step = Callable[[], object]


def resnet20_shapes() -> list[torch.Size]:
    """Shapes of the 65 parameter tensors of a ResNet-20 for CIFAR-10 (0.27M parameters)."""
    options = {"name": "resnet20"}
    model = build_model(options, input_shape=(3, 32, 32), n_outputs=10, seed=0, device="meta")
    return [param.shape for param in model.parameters()]


def make_params(shapes: Sequence[torch.Size]) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Return parameters of the given shapes and gradients for them."""
    torch.manual_seed(0)
    return (
        [nn.Parameter(torch.randn(shape)) for shape in shapes],
        [torch.randn(shape) for shape in shapes],
    )


def put(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    """Stand in for a backward pass."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def ours(shapes: Sequence[torch.Size]) -> Step:
    """IVON of bayesrule: ``step(closure)``."""
    params, grads = make_params(shapes)
    opt = IVON(params, lr=0.1, ess=1e4, seed=0)
    loss = torch.zeros(())

    def closure() -> Tensor:
        put(params, grads)
        return loss

    return lambda: opt.step(closure)


def ivon_opt(shapes: Sequence[torch.Size]) -> Step:
    """The authors' IVON: ``sampled_params(train=True)``, then ``step``."""
    import ivon

    params, grads = make_params(shapes)
    opt = ivon.IVON(params, lr=0.1, ess=1e4)

    def step() -> None:
        with opt.sampled_params(train=True):
            put(params, grads)
        opt.step()

    return step


def adamw(shapes: Sequence[torch.Size]) -> Step:
    """AdamW of torch, fused kernel."""
    params, grads = make_params(shapes)
    opt = torch.optim.AdamW(params, lr=1e-3, fused=True)

    def step() -> None:
        put(params, grads)
        opt.step()

    return step


def noise(shapes: Sequence[torch.Size]) -> Step:
    """The normal noise alone: what no sampling optimiser can go below."""
    generator = torch.Generator().manual_seed(0)
    return lambda: [torch.randn(shape, generator=generator) for shape in shapes]


MAKERS = {"bayesrule IVON": ours, "ivon-opt": ivon_opt, "AdamW fused": adamw, "noise alone": noise}


def measure(
    shapes: Sequence[torch.Size], steps: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the median seconds of a step of each optimiser, taken in turns after a warm-up."""
    runs = {name: make(shapes) for name, make in MAKERS.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + -(-steps // TURN)):
        for name, step in runs.items():
            for _ in range(TURN):
                start = clock()
                step()
                if turn:
                    times[name].append(clock() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1_000_000, 10_000_000],
        help="numbers of parameters of single flat tensors (default: 1000000 10000000)",
    )  # fmt: skip
    parser.add_argument("--no-resnet20", action="store_true", help="leave the ResNet-20 shapes out")
    parser.add_argument("--steps", type=int, default=21, help="timed steps of each (default: 21)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    problems: dict[str, list[torch.Size]] = {}
    if not args.no_resnet20:
        problems["ResNet-20"] = resnet20_shapes()
    problems |= {f"flat {size:,}": [torch.Size([size])] for size in args.sizes}

    print(f"milliseconds per optimiser step, median of {args.steps}, {args.threads} thread(s)\n")
    header = "".join(f"{name:>16}" for name in MAKERS)
    print(f"{'':18}{header}{'ours/ivon-opt':>16}{'ours/AdamW':>12}")
    for label, shapes in problems.items():
        found = measure(shapes, args.steps, clock)
        cells = "".join(f"{1e3 * value:16.3f}" for value in found.values())
        own = found["bayesrule IVON"]
        print(f"{label:18}{cells}{own / found['ivon-opt']:16.2f}{own / found['AdamW fused']:12.2f}")


if __name__ == "__main__":
    main()
