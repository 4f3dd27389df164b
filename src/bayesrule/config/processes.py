"""Whether a trainer's processes fit together; asked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayesrule.errors import ConfigError

__all__ = ["check_processes"]


def check_processes(trainer: Mapping[str, Any]) -> None:
    """Refuse trainer options that no number of processes can satisfy.

    Args:
        trainer: The ``trainer`` group of a configuration.

    Raises:
        ConfigError: Naming the option, and what to choose instead.
    """
    world = trainer["devices"] * trainer["nodes"]
    if trainer["batch_size"] % world:
        raise ConfigError(
            f"trainer.batch_size={trainer['batch_size']} is the global batch and must be a "
            f"multiple of the {world} processes"
        )
    if world > 1 and trainer["strategy"] == "auto":
        raise ConfigError(
            f"trainer.devices={trainer['devices']} needs a strategy: statistics_ddp (own noise on "
            "each, statistics averaged) or ddp (shared noise, gradients averaged)"
        )
