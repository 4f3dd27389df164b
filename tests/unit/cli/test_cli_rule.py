"""`bayesrule rule`: lists, runs, explains and fails."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bayesrule.cli.main import main


def test_two_recipes_in_full(capsys):
    assert main(["rule", "adam", "kalman", "--seeds", "3,4"]) == 0
    out = capsys.readouterr().out
    assert "adam: Adam (deep learning)" in out
    assert "posterior       DiagonalGaussian" in out
    assert "momentum=average, bias_correction" in out
    assert "approximations  none" in out
    assert out.count("by start:") == 2
    assert "2 of 2 within tolerance, 2 starts each, computed now in float64" in out


def test_json_has_family_approximations_and_residual(capsys):
    assert main(["rule", "vogn", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["family"] == "DiagonalGaussian"
    assert row["approximations"] == {"minibatch": True, "hess": "gn", "slow_scale": True}
    assert 0 <= row["residual"] <= row["tolerance"] == 1e-10
    assert row["pass"] is True
    assert set(row["residuals"]) == {"0"}


def test_the_list_runs_nothing(capsys, monkeypatch):
    from bayesrule.rule.recipe import Recipe

    monkeypatch.setattr(Recipe, "residual", lambda *_: pytest.fail("a recipe was run"))
    assert main(["rule", "--list"]) == 0
    out = capsys.readouterr().out
    assert out.count("tolerance") == 24
    assert "IsotropicGaussian; delta, minibatch, momentum=heavy_ball" in out
    assert "FullGaussian; no approximation" in out


def test_a_residual_above_its_tolerance_is_a_failed_check(capsys, monkeypatch):
    from bayesrule.rule import recipes

    broken = replace(recipes.find_recipe("gd"), tolerance=1e-30)
    monkeypatch.setattr(recipes, "find_recipe", lambda name: broken)
    assert main(["rule", "gd"]) == 1
    out = capsys.readouterr().out
    assert "> 1e-30  FAILS" in out
    assert "above tolerance: gd" in out


def test_wrong_words_name_the_nearest(capsys):
    assert main(["rule", "adma"]) == 2
    assert "did you mean 'adam'?" in capsys.readouterr().err
    assert main(["rule", "--seeds", "x"]) == 2
    assert "--seeds" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from bayesrule.cli.main import main\n"
        "try: main(['rule', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'sklearn', 'numpy', 'hydra'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("set()")
    assert "within" not in out.stdout
    assert "exit code: 1 if a residual" in out.stdout.lower()
