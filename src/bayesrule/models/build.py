"""Building a model from its options, on any device, without touching global random state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesrule.errors import ConfigError
from bayesrule.models.registry import model_builder, model_options, nearest
from bayesrule.seeding import child_seed

__all__ = ["build_model", "count_parameters", "learnt_state"]


def build_model(
    cfg: Mapping[str, Any],
    *,
    input_shape: Sequence[int],
    n_outputs: int,
    seed: int,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Build the model that `cfg` names, initialised from ``child_seed(seed, "init")``.

    The initial values are drawn on the CPU and then moved, so they are the same on every device;
    global random state is as before afterwards. On ``device="meta"`` no memory is taken.

    Args:
        cfg: ``name`` and any of that model's options (`bayesrule.models.model_options`);
            options left out take their defaults; keys that start with ``_`` are not read.
        input_shape: Shape of one input without the batch axis: (C, H, W), (D,), or (T,) tokens.
        n_outputs: Number of classes K, of regression targets, or of tokens V.
        seed: The run's seed.
        device: Where the parameters are to live; ``"meta"`` for planning.

    Returns:
        The model, in training mode: (B, *input_shape) -> (B, K), or (B, T) -> (B, T, V).

    Raises:
        ConfigError: If the name or an option does not exist, or a value does not fit the model
            or the data.
    """
    options = {key: value for key, value in cfg.items() if not str(key).startswith("_")}
    name = options.pop("name", None)
    if name is None:
        raise ConfigError("The model configuration has no key 'name'; choose one with model=<name>")
    known = model_options(name)
    for key in options:
        if key not in known:
            raise ConfigError(
                f"model={name} has no option {key!r}{nearest(key, known)}. Options: {list(known)}."
            )
    shape = tuple(int(size) for size in input_shape)
    device = torch.device(device)
    cpu = torch.default_generator
    # devices=[] and the CPU generator alone: torch.manual_seed would also reseed accelerators.
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta" if device.type == "meta" else "cpu"),
    ):
        cpu.manual_seed(child_seed(seed, "init"))
        model = model_builder(name)(shape, int(n_outputs), **options)
    return model if device.type == "meta" else model.to(device)


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Return the number of entries in the model's parameters, shared ones counted once.

    Args:
        model: Any module, on any device (``meta`` included).
        trainable_only: Leave out parameters that do not require gradients.

    Returns:
        P, the dimension of the parameter vector theta.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def learnt_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state without the parameters that its configuration gives again.

    A pretrained model names these (`Transformer.fixed`): they are neither learnt nor stored.
    """
    fixed: frozenset[str] = getattr(model, "fixed", frozenset())
    return {name: t for name, t in model.state_dict().items() if _plain(name) not in fixed}


def _plain(name: str) -> str:
    return name.removeprefix("_orig_mod.")  # of a compiled model
