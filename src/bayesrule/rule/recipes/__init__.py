"""The table of algorithms that the rule contains, one recipe a row (Khan and Rue 2023, Table 1)."""

from bayesrule.errors import ConfigError
from bayesrule.rule.recipe import Recipe
from bayesrule.rule.recipes import deep_learning, inference, optimisation

__all__ = ["RECIPES", "find_recipe"]

_ORDER = (
    *("ridge", "gd", "newton", "online_newton", "multimodal"),
    *("sgd", "sgd_momentum", "rmsprop", "adam", "ogn", "vogn", "dropout", "ste", "bayesbinn"),
    *("conjugate", "kalman", "laplace", "von", "em", "svi", "vmp", "ncvmp", "cvi", "mix_ef"),
)

_ROWS = {
    recipe.id: recipe
    for recipe in (*optimisation.RECIPES, *deep_learning.RECIPES, *inference.RECIPES)
}

RECIPES: tuple[Recipe, ...] = tuple(_ROWS[name] for name in _ORDER)
"""All recipes: optimisation, deep learning, inference."""


def find_recipe(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        ConfigError: If there is none of that name; names the nearest.
    """
    if name not in _ROWS:
        import difflib

        close = difflib.get_close_matches(name, _ORDER, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"no recipe {name!r}{hint} (one of: {', '.join(_ORDER)})")
    return _ROWS[name]
