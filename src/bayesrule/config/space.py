"""Search spaces, written in Hydra's own override grammar, and points in them.

    posterior.lr=interval(0.01,1)              a number between the two
    posterior.lr=tag(log,interval(0.01,1))     the same, uniform in its logarithm
    posterior.mc_samples=int(interval(1,8))    a whole number, both ends included
    trainer.batch_size=range(25,101,25)        equally spaced, the end left out
    posterior=ivon,adamw   model=glob(mlp*)    one of several, `choice(...)` likewise
    seed=0,1,2                                 no dimension: every point is run with each

A point takes one value per dimension. `Points` numbers them: independent draws, a scrambled Sobol
sequence or the whole grid; point n is a pure function of (space, seed, n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bayesrule.config.compose import (
    check_overrides,
    compose,
    from_hydra_word,
    in_hydra_words,
    people_errors,
)
from bayesrule.config.locations import conf_dir
from bayesrule.config.schema import nearest
from bayesrule.errors import ConfigError

__all__ = ["SAMPLERS", "Dimension", "Points", "Space", "Value", "config_loader", "read_space"]

Value = float | int | str
SAMPLERS = ("random", "sobol", "grid")


@dataclass(frozen=True)
class Dimension:
    """One key of a configuration and the values that it may take.

    Attributes:
        key: Dotted key, or a group.
        kind: ``float``, ``int`` or ``choice``.
        low: Smallest value of a number.
        high: Largest value of a number.
        step: Distance of its values; None: any number between (``float``), or 1 (``int``).
        log: Whether it is uniform in its logarithm.
        choices: Values of a choice, as they are written in an override.
    """

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    def word(self, value: Value) -> str:
        """Return the override of one value; a float has six significant digits."""
        text = repr(float(f"{value:.6g}")) if self.kind == "float" else str(value)
        return f"{self.key}={text}"

    def values(self) -> list[Value] | None:
        """Return all values in order; None where there are infinitely many."""
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int":
            step = int(self.step or 1)
            return list(range(int(self.low), int(self.high) + 1, step))
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [self.low + self.step * i for i in range(count)]

    def at(self, u: float) -> Value:
        """Return the value at quantile u in [0, 1) of the uniform (or log-uniform) distribution."""
        if self.kind == "float" and self.step is None:
            if self.log:
                value = math.exp(math.log(self.low) + u * math.log(self.high / self.low))
            else:
                value = self.low + u * (self.high - self.low)
            return min(max(value, self.low), self.high)
        if self.log:  # whole numbers, each with the mass of [n, n + 1)
            value = math.exp(math.log(self.low) + u * math.log((self.high + 1) / self.low))
            return int(min(max(math.floor(value), self.low), self.high))
        every = self.values()
        assert every is not None
        return every[min(int(u * len(every)), len(every) - 1)]


@dataclass(frozen=True)
class Space:
    """What is fixed, what is searched, and the seeds that every setting is run with."""

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    seeds: tuple[int, ...]

    def words(self, point: Mapping[str, Value]) -> list[str]:
        """Return the overrides of one point, without a seed."""
        return [*self.fixed, *(each.word(point[each.key]) for each in self.dimensions)]

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain data."""
        dimensions = [
            {k: list(v) if k == "choices" else v for k, v in asdict(each).items()}
            for each in self.dimensions
        ]
        return {
            "fixed": list(self.fixed),
            "dimensions": dimensions,
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Space:
        """Return the space that `to_json` wrote."""
        dimensions = tuple(
            Dimension(**{**each, "choices": tuple(each["choices"])})
            for each in content["dimensions"]
        )
        return cls(tuple(content["fixed"]), dimensions, tuple(content["seeds"]))

    def check(self) -> None:
        """Compose the first corner of the space, and one setting for each further value or end.

        Raises:
            ConfigError: If a value does not fit; nothing was started.
        """
        corner: dict[str, Value] = {}
        further: list[tuple[str, Value]] = []
        for each in self.dimensions:
            first, *rest = each.choices or (each.at(0.0), each.at(1.0))
            corner[each.key] = first
            further += [(each.key, value) for value in rest]
        for changes in [{}, *({key: value} for key, value in further)]:
            for seed in self.seeds if not changes else self.seeds[:1]:
                compose([*self.words({**corner, **changes}), f"seed={seed}"])


def read_space(overrides: Sequence[str], log: Sequence[str] = ()) -> Space:
    """Read a search space from override words.

    Args:
        overrides: Words; those with several values are dimensions, ``seed`` apart.
        log: Keys that are uniform in their logarithm, beside those with the tag ``log``.

    Raises:
        ConfigError: If a word cannot be read, or a dimension has no values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

    check_overrides(overrides, sweep=True)
    with people_errors(overrides):
        parser = OverridesParser.create(config_loader=config_loader())
        parsed = parser.parse_overrides(in_hydra_words(overrides))
    fixed: list[str] = []
    dimensions: dict[str, Dimension] = {}
    seeds: list[str] = ["0"]
    for word, each in zip(overrides, parsed, strict=True):
        key = from_hydra_word(each.get_key_element())
        if key == "seed":
            seeds = _seeds(each)
        elif not each.is_sweep_override():
            fixed.append(word)
        elif key in dimensions:
            raise ConfigError(f"{key} is given twice")
        else:
            try:
                dimensions[key] = _dimension(key, each, key in log)
            except (TypeError, ValueError, AssertionError) as error:
                raise ConfigError(f"'{word}' is no search space: {error}") from None
    for key in log:
        if key not in dimensions:
            hint = nearest(key, list(dimensions))
            raise ConfigError(f"--log {key}: no such dimension{hint}")
    assert all(isinstance(each, Override) for each in parsed)
    try:
        numbers = tuple(int(seed) for seed in seeds)
    except ValueError:
        raise ConfigError(f"seed={','.join(seeds)}: give whole numbers") from None
    if not numbers:
        raise ConfigError("seed has no values")
    return Space(tuple(fixed), tuple(dimensions.values()), tuple(dict.fromkeys(numbers)))


def _seeds(override: Any) -> list[str]:
    if override.is_interval_sweep():
        raise ConfigError("seed is not searched: write the seeds of every setting, seed=0,1,2")
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _dimension(key: str, override: Any, log: bool) -> Dimension:
    sweep = override._value
    log = log or "log" in (getattr(sweep, "tags", None) or ())
    if override.is_choice_sweep():
        if log:
            raise ConfigError(f"{key}: choices have no logarithm; use interval or range")
        choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
        if not choices:
            raise ConfigError(f"{key}={override.get_value_string()} matches nothing")
        return Dimension(key, "choice", choices=choices)
    if override.is_interval_sweep():
        low, high = sweep.start, sweep.end
        whole = isinstance(low, int) and isinstance(high, int)
        step = None
    else:
        every = list(sweep.range())
        if not every:
            raise ConfigError(f"{key}={override.get_value_string()} is empty")
        low, high = min(every), max(every)
        whole = all(isinstance(value, int) for value in every)
        step = abs(sweep.step) if len(every) > 1 and (not whole or abs(sweep.step) != 1) else None
        if not whole and step is None:
            step = abs(sweep.step)
    if not low <= high or not all(map(math.isfinite, (low, high))):
        raise ConfigError(f"{key}={override.get_value_string()}: the first end is the smaller one")
    if log and low <= 0:
        raise ConfigError(f"{key}={override.get_value_string()}: a logarithm needs numbers above 0")
    if log and step is not None:
        raise ConfigError(f"{key}: a range with steps has no logarithm; use interval")
    kind: Literal["int", "float"] = "int" if whole else "float"
    return Dimension(key, kind, float(low), float(high), step and float(step), log)


class Points:
    """The points of a space in a fixed order.

    Args:
        sampler: ``random``, ``sobol`` or ``grid``.
        dimensions: The space.
        seed: Of the draws, or of the scrambling.

    Raises:
        ConfigError: If there is no such sampler, or a grid over infinitely many values.
    """

    def __init__(self, sampler: str, dimensions: Sequence[Dimension], seed: int = 0) -> None:
        if sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise ConfigError(f"--sampler {sampler}: choose one of {known}")
        self.sampler, self.dimensions, self.seed = sampler, tuple(dimensions), seed
        self.size: int | None = None
        if sampler == "grid":
            self.size = 1
            for each in dimensions:
                values = each.values()
                if values is None:
                    raise ConfigError(
                        f"{each.key}: a grid needs values that can be counted: use range(...) or "
                        "choice(...), or another sampler"
                    )
                self.size *= len(values)

    def __call__(self, number: int) -> dict[str, Value]:
        """Return point `number`, from 0."""
        if self.sampler == "grid":
            return self._grid(number)
        return {
            each.key: each.at(float(u))
            for each, u in zip(self.dimensions, self._unit(number), strict=True)
        }

    def _grid(self, number: int) -> dict[str, Value]:
        """Return the point whose last key changes fastest."""
        point: dict[str, Value] = {}
        for each in reversed(self.dimensions):
            values = each.values()
            assert values is not None
            number, place = divmod(number, len(values))
            point[each.key] = values[place]
        return {each.key: point[each.key] for each in self.dimensions}

    def _unit(self, number: int) -> Any:
        count = len(self.dimensions)
        if self.sampler == "random":
            import numpy as np

            return np.random.default_rng([self.seed, number]).random(count)
        from scipy.stats.qmc import Sobol

        sequence = Sobol(count, scramble=True, rng=self.seed)
        if number:
            sequence.fast_forward(number)
        return sequence.random(1)[0]


def config_loader() -> Any:
    """Return Hydra's loader of the configuration folder, which knows the options of groups."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    return ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
