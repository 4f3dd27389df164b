"""`bayesrule rule`: the algorithms that the rule contains, each run beside an oracle."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bayesrule.runs.seeds import parse_seeds

if TYPE_CHECKING:
    from bayesrule.rule.recipe import Recipe

__all__ = ["main"]

_EPILOG = """\
examples:
  bayesrule rule                       every recipe, run now, with its residual
  bayesrule rule adam vogn             two of them in full
  bayesrule rule --seeds 0:5           from five starts instead of one
  bayesrule rule --list                the table alone; runs nothing
  bayesrule rule --json | jq

    lambda  <-  (1 - rho) lambda  -  rho grad_mu E_q[loss]

A recipe is a posterior family, step sizes and a list of approximations. It is run with the rule and
compared, iterate by iterate in float64, with the classical algorithm written without the rule
(scikit-learn, SciPy, torch.optim, NumPy loops). The residual is the largest difference, relative
where the oracle's numbers are above 1; it is computed by this command, never stored.
Exit code: 1 if a residual is above its recipe's tolerance.

In Python, with any of the approximations switched on or off:
  from bayesrule.rule import Approximations, BayesianLearningRule, LossGradient, StepSizes
  BayesianLearningRule(DiagonalGaussian, LossGradient(loss), StepSizes(0.1, scale=0.01),
                       Approximations(minibatch=True, hess="gn", slow_scale=True))   # VOGN
"""


def main(words: Sequence[str]) -> int:
    """List, run and compare recipes; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="bayesrule rule",
        description="The algorithms that the Bayesian learning rule contains, each run beside an "
        "independent implementation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="recipes (default: all)")
    parser.add_argument("--seeds", default="0", help="starts, such as 0:5 (default: 0)")
    parser.add_argument("--list", action="store_true", help="run nothing, show no residuals")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(words)
    seeds = parse_seeds(args.seeds, where="--seeds")

    import torch

    from bayesrule.rule.recipes import RECIPES, find_recipe

    recipes = [find_recipe(name) for name in dict.fromkeys(args.ids)] or list(RECIPES)
    torch.set_num_threads(1)
    rows, failed = [], []
    for recipe in recipes:
        found = {} if args.list else {seed: recipe.residual(seed) for seed in seeds}
        row = _row(recipe, found)
        if row["pass"] is False:
            failed.append(recipe.id)
        rows.append(row)
        if not args.json:
            print(_full(row) if args.ids else _short(row), flush=True)
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif not args.list:
        count = f"{len(rows) - len(failed)} of {len(rows)} within tolerance"
        start = "start" if len(seeds) == 1 else "starts"
        print(f"\n{count}, {len(seeds)} {start} each, computed now in float64")
        if failed:
            print(f"above tolerance: {', '.join(failed)}")
    return 1 if failed else 0


def _row(recipe: Recipe, found: dict[int, float]) -> dict[str, Any]:
    """Return a recipe with its residuals, as plain data."""
    worst = max(found.values(), default=None)
    return {
        **recipe.describe(),
        "words": {"approximations": str(recipe.approximations), "steps": str(recipe.steps)},
        "residual": worst,
        "residuals": {str(seed): value for seed, value in found.items()},
        "pass": None if worst is None else worst <= recipe.tolerance,
    }


def _verdict(row: dict[str, Any]) -> str:
    if row["pass"] is None:
        return f"tolerance {row['tolerance']:.0e}"
    sign, word = ("<=", "ok") if row["pass"] else (">", "FAILS")
    return f"{row['residual']:.1e} {sign} {row['tolerance']:.0e}  {word}"


def _short(row: dict[str, Any]) -> str:
    """Return a recipe in two lines."""
    made = row["words"]["approximations"].replace("none", "no approximation")
    return f"{row['id']:14}{row['algorithm']:36}{_verdict(row)}\n{'':14}{row['family']}; {made}"


def _full(row: dict[str, Any]) -> str:
    """Return all about a recipe."""
    lines = [
        f"{row['id']}: {row['algorithm']} ({row['group']})",
        f"  posterior       {row['family']}",
        f"  approximations  {row['words']['approximations']}",
        f"  step sizes      {row['words']['steps']}",
        f"  update          {row['update']}",
        f"  problem         {row['problem']}",
        f"  oracle          {row['oracle']}",
        f"  residual        {_verdict(row)}",
    ]
    if len(row["residuals"]) > 1:
        each = ", ".join(f"{value:.1e}" for value in row["residuals"].values())
        lines.append(f"                  by start: {each}")
    return "\n".join(lines)
