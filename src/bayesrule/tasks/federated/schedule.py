"""Who takes part in a round, who does not answer, who runs out of time: functions of the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayesrule.seeding import numpy_generator

__all__ = ["Participation", "round_factor"]


@dataclass(frozen=True)
class Participation:
    """Rules of participation.

    Attributes:
        clients: K.
        fraction: Part of the clients that the server asks in a round (at least one).
        dropout: Probability that a client which was asked does not answer.
        stragglers: Probability that a client has time for a part of its epochs only.
    """

    clients: int
    fraction: float = 1.0
    dropout: float = 0.0
    stragglers: float = 0.0

    def asked(self, seed: int, round: int) -> list[int]:
        """Return the clients that the server asks, in the order of their numbers."""
        n = max(1, round_half_up(self.fraction * self.clients))
        if n == self.clients:
            return list(range(self.clients))
        rng = numpy_generator(seed, "participation", round)
        return sorted(int(k) for k in rng.choice(self.clients, size=n, replace=False))

    def answers(self, seed: int, round: int, client: int) -> bool:
        """Return whether a client that was asked answers."""
        return bool(numpy_generator(seed, "dropout", round, client).random() >= self.dropout)

    def is_straggler(self, seed: int, round: int, client: int) -> bool:
        """Return whether a client has time for a part of its epochs only."""
        return bool(numpy_generator(seed, "straggler", round, client).random() < self.stragglers)


def round_half_up(x: float) -> int:
    """Return the nearest whole number, halves up."""
    return math.floor(x + 0.5)


def round_factor(schedule: str, round: int, rounds: int) -> float:
    """Return the factor on the clients' learning rate in round r = 0, 1, ..., R - 1.

    ``cosine`` is (1 + cos(pi r / R)) / 2, constant within a round; ``constant`` is 1.
    """
    return 0.5 * (1.0 + math.cos(math.pi * round / rounds)) if schedule == "cosine" else 1.0
