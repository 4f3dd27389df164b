"""What can be learnt on parameters that are spread over processes; asked before it starts."""

from __future__ import annotations

from typing import Any

from bayesrule.config import Config, locate
from bayesrule.errors import ConfigError
from bayesrule.tasks.inference import Single, make_inference
from bayesrule.tasks.supervised import Supervised
from bayesrule.tasks.task import make_task

__all__ = ["check_sharding"]

_INSTEAD = "use trainer.strategy=ddp or statistics_ddp"


def check_sharding(config: Config) -> None:
    """Refuse ``trainer.strategy=fsdp`` for what is not exact, or cannot run, on shards.

    Raises:
        ConfigError: Naming the reason, and what to choose instead.
    """
    task = make_task(config)
    if type(task) is not Supervised:
        raise ConfigError(
            f"trainer.strategy=fsdp: the task {type(task).__name__} reads whole parameters between "
            f"its trainings, and a process has shards (task=supervised can); {_INSTEAD}"
        )
    inference = make_inference(config["posterior"])
    if not isinstance(inference, Single):
        raise ConfigError(
            f"trainer.strategy=fsdp: {type(inference).__name__} is more than one training by one "
            f"optimiser and reads whole parameters, and a process has shards; {_INSTEAD}"
        )
    kind: Any = locate(inference.options["_target_"], "posterior._target_")
    if not kind.shards:
        raise ConfigError(
            f"trainer.strategy=fsdp: {kind.__name__} is not held exact on sharded parameters (it "
            "needs a norm over all of them, whole matrices, or statistics that have not been "
            f"compared with one process); {_INSTEAD}"
        )
    if config["trainer"]["compile"]:
        raise ConfigError(
            "trainer.strategy=fsdp: trainer.compile=true has not been compared "
            f"with one process; use trainer.compile=false, or {_INSTEAD}"
        )
