"""Time of an E-step of t-SVGP beside one of GPyTorch's NGD, on the same model and data.

Both are natural-gradient steps of the same size from the same q, so the posteriors are equal; the
largest difference after all steps is printed. `cached` keeps k(Z, Z), its factor and the features,
as an E-phase with a fixed kernel does; `uncached` computes them in every step, as NGD does. Kernel,
likelihood and inducing inputs of GPyTorch need no gradient: its backward pass is as short as it
can be. The methods take turns of a few steps and one thread's CPU time is taken, so that other
programs on the machine do not count; the figures are medians and ratios of medians.

    python benchmarks/gp_estep.py
    python benchmarks/gp_estep.py --likelihood gaussian --sizes 1000x100 --steps 60
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bayesrule.posteriors.inducing import from_sites
from bayesrule.tasks.gp.gpytorch_svgp import GPyTorchSVGP
from bayesrule.tasks.gp.inference import Batch, DualSVGP
from bayesrule.tasks.gp.likelihoods import make_observation
from bayesrule.tasks.gp.model import GaussianProcess, make_kernel

TURN = 4  # steps before the next method's turn
N_INPUTS = 5
KERNEL = {"kernel": "matern52", "ard": True, "lengthscale": 1.0, "variance": 1.0}
LIKELIHOODS = {
    "gaussian": ("regression", 1),
    "poisson": ("regression", 1),
    "bernoulli_logit": ("classification", 2),
    "bernoulli_probit": ("classification", 2),
}


def problem(likelihood: str, n: int, m: int) -> tuple[GaussianProcess, Tensor, Tensor]:
    """Return a model with M inducing inputs, N inputs and targets."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, N_INPUTS, generator=generator, dtype=torch.float64)
    f = torch.sin(x.sum(1)) + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    kind, n_outputs = LIKELIHOODS[likelihood]
    y = (f > 0).double() if kind == "classification" else f
    y = f.exp().round() if likelihood == "poisson" else y
    observation = make_observation(likelihood, kind=kind, n_outputs=n_outputs, noise=0.1)
    return GaussianProcess(make_kernel(KERNEL, N_INPUTS), x[:m], observation, jitter=1e-6), x, y


def steps(gp: GaussianProcess, x: Tensor, y: Tensor, lr: float) -> dict[str, Callable[[], None]]:
    """Return one E-step by each method, and under `gap` the difference of the posteriors."""
    theirs = GPyTorchSVGP(gp, len(y), lr)
    theirs.hold_kernel()
    ours, again = (DualSVGP(lr, "projected", 1e-8) for _ in range(2))
    rows = torch.arange(len(y))
    with torch.no_grad():
        chol = gp.chol()
        phi, rest = gp.features(chol, x)
        for each in (ours, again):
            each.start(gp, chol, y)

    @torch.no_grad()
    def cached() -> None:
        # GPyTorch adds the jitter to k(x, x), too: equal posteriors need it here
        ours.step(gp, chol, Batch(rows, y, phi, rest + gp.jitter, 1.0, 0))

    @torch.no_grad()
    def uncached() -> None:
        L = gp.chol()
        again.step(gp, L, Batch(rows, y, *gp.features(L, x), 1.0, 0))

    def gap() -> None:
        q, p = theirs.posterior(), from_sites(ours.sites)
        gaps = (q.mean - p.mean, q.half.mT @ q.half - p.half.mT @ p.half)
        print(f"{max(float(each.abs().max()) for each in gaps):12.1e}", end="")

    return {"NGD": lambda: theirs.e_step(x, y), "uncached": uncached, "cached": cached, "gap": gap}


def measure(runs: dict[str, Callable[[], None]], count: int) -> dict[str, float]:
    """Return the median CPU seconds of a step, taken in turns after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + -(-count // TURN)):
        for name, step in runs.items():
            for _ in range(TURN):
                start = time.process_time()
                step()
                if turn:
                    times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="*", default=["200x50", "1000x100", "4000x100"], metavar="NxM",
        help="items x inducing inputs (default: 200x50 1000x100 4000x100)",
    )  # fmt: skip
    parser.add_argument(
        "--likelihood", nargs="*", choices=LIKELIHOODS, default=["gaussian", "bernoulli_logit"]
    )
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each (default: 40)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"milliseconds of CPU time per E-step, median of {args.steps}, 1 thread, D={N_INPUTS}\n")
    header = "".join(f"{name:>12}" for name in ("NGD", "uncached", "cached"))
    print(f"{'':30}{header}{'NGD/uncached':>14}{'NGD/cached':>12}{'largest gap':>12}")
    for likelihood in args.likelihood:
        for size in args.sizes:
            n, m = (int(part) for part in size.split("x"))
            runs = steps(*problem(likelihood, n, m), lr=0.5)
            gap = runs.pop("gap")
            found = measure(runs, args.steps)
            cells = "".join(f"{1e3 * value:12.2f}" for value in found.values())
            ratios = (found["NGD"] / found["uncached"], found["NGD"] / found["cached"])
            label = f"{likelihood}, N={n}, M={m}"
            print(f"{label:30}{cells}{ratios[0]:14.2f}{ratios[1]:12.2f}", end="")
            gap()
            print(flush=True)


if __name__ == "__main__":
    main()
