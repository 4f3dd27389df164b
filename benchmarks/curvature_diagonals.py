"""Time of the diagonal Fisher and GGN of an experience: by hooks on layers, and item by item.

The network is that of permuted MNIST, 784-100-100-10, or LeNet-5. The processor's time is taken, on
one thread; items by items is measured on one batch and scaled up.

    python benchmarks/curvature_diagonals.py
    python benchmarks/curvature_diagonals.py --items 60000
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from bayesrule.curvature import fisher_diag, ggn_diag
from bayesrule.likelihoods import Categorical
from bayesrule.models import build_model

BATCH = 256
NETWORKS = {
    "mlp 784-100-100-10": ({"name": "mlp", "hidden": [100, 100]}, (1, 28, 28)),
    "lenet5 1x28x28": ({"name": "lenet5"}, (1, 28, 28)),
}


def seconds(function, model: nn.Module, batches: list[dict[str, torch.Tensor]], method: str):
    """Return the processor's time of one pass."""
    start = time.process_time()
    function(model, Categorical(), batches, method=method)
    return time.process_time() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2560)
    items = parser.parse_args().items
    torch.set_num_threads(1)
    print(f"{items} items{'hooks':>32} s{'item by item':>18} s{'ratio':>10}")
    for name, (options, shape) in NETWORKS.items():
        model = build_model(options, input_shape=shape, n_outputs=10, seed=0)
        generator = torch.Generator().manual_seed(0)
        batch = {
            "input": torch.randn(BATCH, *shape, generator=generator),
            "target": torch.randint(0, 10, (BATCH,), generator=generator),
        }
        for function in (fisher_diag, ggn_diag):
            seconds(function, model, [batch], "hooks")
            n = max(1, items // BATCH)
            fast = seconds(function, model, [batch] * n, "hooks")
            slow = n * seconds(function, model, [batch], "func")
            label = f"{name} {function.__name__}"
            print(f"{label:<32}{fast:>12.2f}{slow:>20.1f}{slow / fast:>12.0f}")


if __name__ == "__main__":
    main()
