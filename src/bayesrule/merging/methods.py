"""The merging methods as facts: what each needs. Nothing of torch is imported here.

The equations are in `rules` and `algebra`; this table lets the command line refuse wrong usage
before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bayesrule.errors import ConfigError

__all__ = ["METHODS", "Method", "check_usage", "default_alphas", "find_method"]

Curvature = Literal["none", "diagonal", "gram"]


@dataclass(frozen=True)
class Method:
    """What a method takes.

    Attributes:
        name: Its name.
        summary: The rule in one line.
        base: Whether it needs the base model theta_0.
        curvature: What it needs of each model: nothing, diag H_t, or Gram matrices of inputs.
        base_curvature: Whether it needs H_0 of the base model.
        scaled: Whether scaling factors alpha change what it does, common ones included.
        two: Whether it merges exactly two models.
        linear: Whether it is linear in the models, so that it is exact on low-rank adapters.
        whole: Whether it sees a whole tensor at a time, not any piece of it.
    """

    name: str
    summary: str
    base: bool = False
    curvature: Curvature = "none"
    base_curvature: bool = False
    scaled: bool = False
    two: bool = False
    linear: bool = False
    whole: bool = False


METHODS: dict[str, Method] = {
    each.name: each
    for each in (
        Method("average", "(1/T) sum_t theta_t", linear=True),
        Method("weighted", "sum_t w_t theta_t / sum_t w_t", linear=True),
        Method(
            "task_arithmetic",
            "theta_0 + sum_t alpha_t (theta_t - theta_0)",
            base=True,
            scaled=True,
            linear=True,
        ),
        Method(
            "fisher",
            "sum_t alpha_t H_t theta_t / sum_t alpha_t H_t",
            curvature="diagonal",
        ),
        Method(
            "fisher_base",
            "Fisher averaging with the base model: H_0 theta_0 in numerator, H_0 in denominator",
            base=True,
            curvature="diagonal",
            base_curvature=True,
            scaled=True,
        ),
        Method(
            "gradient_matching",
            "prior * prod_t (q_t / prior) ** alpha_t, q_t = N(theta_t, (H_0 + H_t)^-1)",
            base=True,
            curvature="diagonal",
            base_curvature=True,
            scaled=True,
        ),
        Method(
            "regmean",
            "least squares on each linear layer's inputs; other tensors averaged",
            curvature="gram",
            whole=True,
        ),
        Method(
            "ties",
            "trim small differences, elect signs, average what agrees",
            base=True,
            scaled=True,
        ),
        Method("dare", "drop differences at random, rescale, add", base=True, scaled=True),
        Method(
            "dare_ties",
            "drop differences at random, rescale, elect signs, average what agrees",
            base=True,
            scaled=True,
        ),
        Method("slerp", "along the great circle, tensor by tensor", two=True, whole=True),
    )
}
"""By name."""


def find_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        ConfigError: If there is none; suggests the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"no merging method '{name}'{hint} (one of: {', '.join(METHODS)})")


def default_alphas(method: Method, n_models: int) -> list[float]:
    """Return the scaling factors where none are given.

    1/T for task arithmetic and DARE, whose differences add up; 1 for TIES, which averages them, and
    for the Bayesian rules, where alpha = 1 is the model of all data; (1/2, 1/2) for SLERP.
    """
    if method.name in ("average", "weighted", "task_arithmetic", "dare", "slerp"):
        return [1.0 / n_models] * n_models
    return [1.0] * n_models


def check_usage(
    method: Method,
    n_models: int,
    *,
    base: bool,
    curvatures: int,
    base_curvature: bool,
    alphas: Sequence[float] | None,
) -> list[float]:
    """Check that a method has what it needs, and return its scaling factors.

    Args:
        method: The method.
        n_models: Number of models.
        base: Whether there is a base model.
        curvatures: Number of models that have a curvature.
        base_curvature: Whether the base model has one.
        alphas: None, one for all models, or one a model.

    Raises:
        ConfigError: Naming what is missing or too much.
    """
    if n_models < 1 or (n_models < 2 and not method.base):
        raise ConfigError(f"{method.name} merges at least two models, got {n_models}")
    if method.two and n_models != 2:
        raise ConfigError(f"{method.name} merges two models, got {n_models}")
    if method.base and not base:
        raise ConfigError(f"{method.name} needs the base model: {method.summary} (--base DIR)")
    if method.curvature != "none" and curvatures != n_models:
        what = "a Gram file" if method.curvature == "gram" else "a curvature file"
        raise ConfigError(
            f"{method.name} needs {what} of each of the {n_models} models, got {curvatures}"
        )
    if method.base_curvature and not base_curvature:
        raise ConfigError(f"{method.name} needs the base model's curvature, H_0")
    if alphas is None:
        return default_alphas(method, n_models)
    if method.name == "average" and len(set(alphas)) > 1:
        raise ConfigError("average has equal weights; choose weighted for others")
    if len(alphas) not in (1, n_models):
        raise ConfigError(f"{len(alphas)} factors for {n_models} models: give one, or one each")
    factors = [float(a) for a in alphas] * (n_models if len(alphas) == 1 else 1)
    are_weights = method.name in ("weighted", "slerp", "fisher", "regmean")
    if are_weights and (min(factors) < 0 or sum(factors) == 0):
        raise ConfigError(f"weights of {method.name} are not negative, and not all zero")
    return factors
