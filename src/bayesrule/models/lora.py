"""Low-rank adapters (LoRA, Hu et al., 2022, arXiv:2106.09685) by the library PEFT.

An adapted layer computes

    W0 x + (alpha / r) B A dropout(x),     A in R^{r x d_in}, B in R^{d_out x r}

with W0 frozen, A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)) and B = 0 at the start. What is learnt are the
entries of all A and B, and a head if there is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bayesrule.errors import ConfigError
from bayesrule.models.registry import nearest
from bayesrule.models.transformer import Transformer, layers_of

__all__ = [
    "ADAPTER",
    "adapter_tensors",
    "add_adapters",
    "native_head",
    "peft_key",
    "target_modules",
]

ADAPTER = "default"
_PREFIX = "backbone."


def target_modules(base: Any, targets: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Return the full names of the linear maps that get an adapter.

    A target names a module by its path within a layer (``output.dense``), or by the end of that
    path (``query``) where no module has just that path.

    Args:
        base: The Hugging Face model.
        targets: Paths within a layer.
        layers: Positions of the layers.

    Raises:
        ConfigError: A layer or a target does not exist; the message names the nearest.
    """
    where, modules = layers_of(base)
    names = []
    for index in layers:
        if not 0 <= index < len(modules):
            raise ConfigError(
                f"model.lora_layers: there is no layer {index} (0 to {len(modules) - 1})"
            )
        linear = [n for n, m in modules[index].named_modules() if isinstance(m, nn.Linear)]
        for target in targets:
            found = [n for n in linear if n == target]
            found = found or [n for n in linear if n.endswith(f".{target}")]
            if not found:
                raise ConfigError(
                    f"model.lora_targets: no linear map {target!r} in layer {index}"
                    f"{nearest(target, linear)}. There are: {', '.join(linear)}"
                )
            names += [f"{where}.{index}.{name}" for name in found]
    return list(dict.fromkeys(names))


def native_head(base: Any) -> tuple[str, nn.Module]:
    """Return the name and the module of a Hugging Face model's own classification head."""
    name = "classifier" if hasattr(base, "classifier") else "score"
    return name, getattr(base, name)


def add_adapters(
    base: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    layers: Sequence[int],
    hub: str,
    learn_head: bool,
) -> nn.Module:
    """Freeze a model and put adapters beside its linear maps.

    Args:
        base: The Hugging Face model.
        rank: r.
        alpha: alpha; the adapter's output is scaled by alpha / r.
        dropout: Probability of dropping an entry of the adapter's input, in training.
        targets: See `target_modules`.
        layers: Positions of the layers.
        hub: Where others find the base model; written beside a saved adapter.
        learn_head: Whether the model's own head is learnt as well.

    Raises:
        ConfigError: PEFT is not installed, or a target does not exist.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            "model.tune=lora needs the package peft: pip install 'bayesrule[lora]'"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=target_modules(base, targets, layers),
        modules_to_save=[native_head(base)[0]] if learn_head else None,
        base_model_name_or_path=hub,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*base_model_name_or_path.*")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")
        adapted: nn.Module = get_peft_model(base, config, adapter_name=ADAPTER)
    config.base_model_name_or_path = hub  # PEFT overwrites it by the local folder
    return adapted


def peft_key(name: str) -> str | None:
    """Return PEFT's name, in an adapter file, of a parameter of ours; None if it is none of its.

    ``backbone.base_model.model.<path>.lora_A.default.weight`` is ``base_model.model.<path>.
    lora_A.weight`` there.
    """
    if not name.startswith(_PREFIX):
        return None
    key = name.removeprefix(_PREFIX).replace(f".modules_to_save.{ADAPTER}.", ".")
    return key.replace(f".{ADAPTER}.", ".")


def adapter_tensors(model: Transformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of `state` that belong in an adapter file, by PEFT's names, in order."""
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    found = {}
    for name, tensor in state.items():
        key = peft_key(name) if name in learnt else None
        if key is not None:
            found[key] = tensor.detach().cpu().contiguous()
    return found
