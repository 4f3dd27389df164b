"""Every recipe equals its oracle, and the comparison can fail."""

from dataclasses import replace

import pytest
import torch

from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.rule import Approximations, StepSizes
from bayesrule.rule.recipe import EXACT, GROUPS, LIMIT, deviation
from bayesrule.rule.recipes import RECIPES, find_recipe

IDS = [recipe.id for recipe in RECIPES]
START_INDEPENDENT = {"ridge", "von", "laplace", "cvi"}  # the oracle's answer has no seed


def test_the_table_is_whole():
    assert len(set(IDS)) == len(IDS) == 24
    assert {recipe.group for recipe in RECIPES} == set(GROUPS)
    assert {recipe.id for recipe in RECIPES if recipe.tolerance == LIMIT} == {"von", "ste"}
    assert all(recipe.tolerance in (EXACT, LIMIT) for recipe in RECIPES)


@pytest.mark.parametrize("name", IDS)
def test_a_recipe_equals_its_oracle(name):
    recipe = find_recipe(name)
    for seed in (1, 2):
        assert recipe.residual(seed) <= recipe.tolerance


@pytest.mark.parametrize("name", sorted(set(IDS) - START_INDEPENDENT))
def test_the_comparison_sees_another_start(name):
    recipe = find_recipe(name)
    assert deviation(recipe.ours(recipe, 1), recipe.theirs(recipe, 2)) > 100 * recipe.tolerance


CHANGES = {
    "gd": {"delta": False},
    "newton": {"hess": "gn"},
    "online_newton": {"positive_definite": True},
    "multimodal": {"positive_definite": True},
    "laplace": {"delta": False},
    "sgd": {"minibatch": False},
    "rmsprop": {"sqrt": False},
    "adam": {"bias_correction": False},
    "ogn": {"hess": "sqgrad"},
    "vogn": {"hess": "exact"},
    "dropout": {"resp": False},
    "ste": {"no_decay": False},
    "bayesbinn": {"temp": 0.5},
    "em": {"delta": False},
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_comparison_sees_another_approximation(name):
    recipe = find_recipe(name)
    other = replace(recipe, approximations=replace(recipe.approximations, **CHANGES[name]))
    assert deviation(recipe.ours(other, 1), recipe.theirs(recipe, 1)) > 10 * recipe.tolerance


@pytest.mark.parametrize("name", ["ridge", "newton", "kalman", "conjugate"])
def test_one_step_of_a_conjugate_model_does_not_depend_on_the_start(name):
    """With rho = 1 only; kalman and conjugate draw their data by the seed, so q alone is moved."""
    recipe = find_recipe(name)
    if name in ("ridge",):
        assert deviation(recipe.ours(recipe, 1), recipe.ours(recipe, 2)) < 1e-9
    damped = replace(recipe, steps=StepSizes(0.9))
    assert deviation(recipe.ours(damped, 1), recipe.theirs(recipe, 1)) > 1e-3


def test_deviations_are_of_the_same_things():
    one = torch.ones(3)
    assert deviation([one], [one]) == 0.0
    assert deviation([100 * one], [101 * one]) == pytest.approx(1 / 101)
    assert deviation([0.01 * one], [0 * one]) == pytest.approx(0.01)
    assert deviation([one * float("nan")], [one]) == float("inf")
    with pytest.raises(BayesruleError, match="1 iterates of ours against 2"):
        deviation([one], [one, one])
    with pytest.raises(BayesruleError, match="shape"):
        deviation([one], [torch.ones(2)])


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'rmsprop'"):
        find_recipe("rmsprob")


def test_approximations_and_step_sizes_in_words():
    adam = find_recipe("adam")
    assert str(adam.approximations) == (
        "delta, minibatch, hess=sqgrad, sqrt, slow_scale, momentum=average, bias_correction"
    )
    assert str(adam.steps) == "rho = 0.0001, scale = 0.001, momentum = 0.9, damping = 1e-08"
    assert str(Approximations()) == "none"
    assert adam.describe()["family"] == "DiagonalGaussian"
