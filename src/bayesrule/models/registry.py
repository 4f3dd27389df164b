"""The names under which models are built.

A model is one function in one file of this folder, decorated with `register_model`, and one YAML
in ``conf/model/``; no list is kept by hand::

    @register_model("mlp")
    def mlp(input_shape, n_outputs, *, hidden=(100, 100)) -> nn.Module: ...

The keyword-only arguments are the model's options, their defaults those of the YAML.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from bayesrule.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Builder",
    "check_choice",
    "image_shape",
    "model_builder",
    "model_names",
    "model_options",
    "nearest",
    "register_model",
]

Builder = Callable[..., "nn.Module"]
F = TypeVar("F", bound=Builder)

_BUILDERS: dict[str, Builder] = {}


def register_model(name: str) -> Callable[[F], F]:
    """Make the decorated builder available as ``model=<name>``.

    Args:
        name: The model's name in configurations.

    Returns:
        A decorator that stores ``builder(input_shape, n_outputs, *, options)`` and returns it.

    Raises:
        ValueError: If another function already has this name.
    """

    def store(builder: F) -> F:
        other = _BUILDERS.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (
            builder.__module__,
            builder.__qualname__,
        ):
            raise ValueError(f"model name {name!r} is already taken by {other.__module__}")
        _BUILDERS[name] = builder
        return builder

    return store


def model_names() -> list[str]:
    """Return the names of all models, sorted; imports this folder's modules once."""
    package = importlib.import_module("bayesrule.models")
    for module in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}."):
        importlib.import_module(module.name)
    return sorted(_BUILDERS)


def model_builder(name: str) -> Builder:
    """Return the builder of model `name`.

    Raises:
        ConfigError: If there is no such model; the message suggests the nearest name.
    """
    names = model_names()
    if name not in _BUILDERS:
        raise ConfigError(f"There is no model {name!r}{nearest(name, names)}. Models: {names}.")
    return _BUILDERS[name]


def model_options(name: str) -> dict[str, Any]:
    """Return the options of model `name` with their default values.

    Raises:
        ConfigError: If there is no such model.
    """
    parameters = inspect.signature(model_builder(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate nearest to `word`, or nothing."""
    match = difflib.get_close_matches(str(word), [str(c) for c in candidates], n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_choice(option: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        ConfigError: If it is not; the message names the option and all choices.
    """
    choices = list(choices)
    if value not in choices:
        raise ConfigError(
            f"model.{option}={value!r} is not one of {choices}{nearest(value, choices)}"
        )
    return value


def image_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `input_shape` as (C, H, W).

    Raises:
        ConfigError: If the data are not images.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f"model={model} needs images of shape (channels, height, width), but the data have "
            f"items of shape {input_shape}. Use model=mlp, or data with images."
        )
    channels, height, width = input_shape
    return channels, height, width
