"""Monte-Carlo dropout (Gal & Ghahramani, 2016, arXiv:1506.02142) for any model.

A prediction averages over random masks::

    p(y | x) ~ 1/S sum_s p(y | f(x; theta, mask_s))

`insert_dropout` gives a trained or untrained model its dropout; `mc_dropout_mode` switches it on
for prediction while everything else (batch normalisation) stays in evaluation mode.

Inserted layers are `torch.nn.Dropout` children of the layer that they serve, applied by a forward
hook: they have no parameters, so parameter names, `state_dict` and initial values are untouched;
`train()`, `eval()`, `deepcopy`, `functional_call` and `vmap` (with ``randomness="different"``) work
as with any other layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bayesrule.errors import ConfigError, Unsupported
from bayesrule.models.blocks import ConvBlock

__all__ = ["insert_dropout", "mc_dropout_mode"]

_SITE = "mc_dropout"


def insert_dropout(model: nn.Module, p: float) -> nn.Module:
    """Give `model` dropout with probability `p`, in place, and return it.

    - A model that has dropout layers (``mlp``, ``cnn``, ``vit_*``, ``gpt*``, LoRA, most of Hugging
      Face's) keeps them where its author put them: their probability becomes `p`.
    - Any other (the residual and dense networks) gets one before every `nn.Linear` and one after
      every convolution block (`bayesrule.models.blocks.ConvBlock`: a residual block after its sum,
      a dense layer). Parameter names do not change.

    Calling it again changes `p` and adds nothing. Dropout that is not a layer (a bare
    ``F.dropout``) is not seen.

    Args:
        model: Any module.
        p: Probability of dropping an entry, in [0, 1).

    Returns:
        `model`.

    Raises:
        ConfigError: If `p` is outside [0, 1).
        Unsupported: If the model has neither dropout, linear layers nor convolution blocks.
    """
    if not 0 <= p < 1:
        raise ConfigError(f"the dropout probability must lie in [0, 1), not {p}")
    layers = _dropout_layers(model)
    if not layers:
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(_drop_input)
            elif isinstance(module, ConvBlock):
                module.register_forward_hook(_drop_output)
            else:
                continue
            site = nn.Dropout(p)
            site.train(module.training)
            module.add_module(_SITE, site)
            layers.append(site)
    if not layers:
        raise Unsupported(
            f"{type(model).__name__} has no dropout layer, no nn.Linear and no ConvBlock: there is "
            "no place for dropout; write nn.Dropout layers into the model"
        )
    for layer in layers:
        layer.p = p
    return model


@contextlib.contextmanager
def mc_dropout_mode(model: nn.Module, *, seed: int | None = None) -> Iterator[nn.Module]:
    """Within this context only the model's dropout layers are active, all else evaluates.

    Each forward pass draws new masks. On leaving, also by an exception, every module has the mode
    that it had before.

    Args:
        model: A model with dropout layers of positive probability.
        seed: Draw the masks from this seed and leave global random state as it was; None draws
            from the global state. Equal seeds give equal masks.

    Yields:
        `model`.

    Raises:
        Unsupported: If no dropout layer has a positive probability: all draws would be equal.
    """
    layers = _dropout_layers(model)
    if not any(layer.p > 0 for layer in layers):
        raise Unsupported(
            f"{type(model).__name__} has no dropout layer with p > 0, so every Monte-Carlo "
            "prediction would be the same; set model.dropout, or call insert_dropout(model, p)"
        )
    modes = [(module, module.training) for module in model.modules()]
    with contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(_seeded(model, seed))
        try:
            model.eval()
            for layer in layers:
                layer.train()
            yield model
        finally:
            for module, training in modes:
                module.training = training


def _dropout_layers(model: nn.Module) -> list[_DropoutNd]:
    """Return all dropout layers of the model, its own and inserted ones."""
    return [module for module in model.modules() if isinstance(module, _DropoutNd)]


def _drop_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: drop entries of the first argument."""
    return (module.get_submodule(_SITE)(args[0]), *args[1:])


def _drop_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook: drop entries of the output."""
    return module.get_submodule(_SITE)(output)


@contextlib.contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed the default generators of the CPU and of the model's accelerators, then restore them."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
