"""One integer seed, many independent streams.

A run has one seed. Every use of randomness (split, label noise, initialisation, data order,
posterior noise, evaluation) takes a *named child* of it: adding a use never shifts another::

    child_seed(seed, name_1, ..., name_k) = first 63 bits of SHA-256("seed/name_1/.../name_k")

The map is stable across processes, machines and Python versions (`hash()` of a string is not).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["child_seed", "generator", "numpy_generator"]


def child_seed(seed: int, *names: str | int) -> int:
    """Return the 63-bit seed of the stream `names` below `seed`.

    Args:
        seed: The run's integer seed.
        *names: The path of the stream, e.g. ``("noise",)`` or ``("order", epoch)``.

    Returns:
        A non-negative integer below 2**63.
    """
    path = "/".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """Return a torch generator seeded with `child_seed(seed, *names)`."""
    import torch

    return torch.Generator(device=device).manual_seed(child_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator seeded with `child_seed(seed, *names)`."""
    import numpy as np

    return np.random.default_rng(child_seed(seed, *names))
