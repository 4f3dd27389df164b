"""The noise streams of an optimiser: one seed, a generator per use, saved and restored whole.

Draws for training and for prediction come from streams of their own, so that evaluating more or
less often never changes training. A stream is made at first use, on the parameters' device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesrule.optim.parallel import Parallel
from bayesrule.seeding import child_seed

__all__ = ["NoiseStreams"]


class NoiseStreams:
    """Named generators below one seed.

    Args:
        seed: The seed (default: `torch.initial_seed()`).
        generator: The stream of training itself; its seed is taken for the others.
    """

    def __init__(self, seed: int | None, generator: torch.Generator | None) -> None:
        self.seed = int(torch.initial_seed() if seed is None else seed)
        self.generators: dict[str, torch.Generator] = {}
        if generator is not None:
            self.seed = int(generator.initial_seed())
            self.generators["train"] = generator

    def get(self, name: str, first: Tensor, parallel: Parallel) -> torch.Generator:
        """Return the stream `name`, made on the device of `first` at first use.

        Ranks agree on rank 0's seed when training starts, where all of them take part; a draw for
        prediction may be made by one rank alone and must not wait for the others.

        Args:
            name: ``train`` or ``predict``.
            first: The first parameter.
            parallel: The other ranks.
        """
        if name not in self.generators:
            if name == "train" or parallel.is_sharded(first):
                self.seed = parallel.shared_seed(self.seed)
            seed = child_seed(self.seed, name)
            self.generators[name] = torch.Generator(first.device).manual_seed(seed)
        return self.generators[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the position of every stream."""
        return {
            "seed": self.seed,
            "streams": {name: g.get_state() for name, g in sorted(self.generators.items())},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned; new streams are made on `device`."""
        self.seed = int(state["seed"])
        for name in self.generators.keys() - state["streams"].keys():
            del self.generators[name]  # not drawn from yet when the state was saved
        for name, value in state["streams"].items():
            stream = self.generators.get(name) or torch.Generator(device)
            stream.set_state(value.cpu())
            self.generators[name] = stream
