"""The README's commands, loggers, launchers and a bare clone."""

import json
import re
import shutil
import subprocess

import pytest
from command_line import ROOT, CommandLine

SMALL = ("trainer.epochs=2", "metrics.mc_samples=2", "metrics.prefixes=[1]",
         "metrics.ece_null_draws=0", "trainer.log_every=5")  # fmt: skip


def test_train_then_sweep_then_nothing_to_do(cli):
    first = cli("train", "posterior=ivon", "model=mlp", "data=digits", *SMALL)
    assert first.returncode == 0, first.stderr
    assert "test/nll" in first.stdout
    words = ("train", "-m", "posterior=adamw,ivon", "seed=0,1", *SMALL)
    swept = cli(*words)
    assert swept.returncode == 0, swept.stderr
    assert re.search(r"ivon\s+2", swept.stdout)
    stamps = {p: p.stat().st_mtime_ns for p in cli.runs.glob("*/record.json")}
    assert len(stamps) == 4  # the first run is one of the four
    again = cli(*words)
    assert again.stdout == swept.stdout
    assert {p: p.stat().st_mtime_ns for p in cli.runs.glob("*/record.json")} == stamps


def test_joblib_launcher(cli):
    result = cli("train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1",
                 "trainer.max_steps=3", *SMALL)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(list(cli.runs.glob("*/record.json"))) == 2


def test_equal_commands_give_equal_numbers(cli, other_cli):
    for each in (cli, other_cli):
        assert each("train", "posterior=ivon", *SMALL).returncode == 0
    assert cli.outcome() == other_cli.outcome()


def test_multi_ivon(cli):
    result = cli("train", "posterior=deep_ensemble", "posterior.member=ivon",
                 "posterior.members=2", *SMALL)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert cli("runs", "verify").returncode == 0


def test_tensorboard(cli):
    result = cli("train", "logger=tensorboard", *SMALL)
    assert result.returncode == 0, result.stderr
    assert list(cli.folder().glob("tensorboard/events.*"))


def test_the_readme_names_only_commands_that_exist(cli):
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^\s*bayesrule ([a-z]+)", text, re.MULTILINE))
    named |= set(re.findall(r"`bayesrule ([a-z]+)", text))
    listed = cli("--help").stdout
    for name in named:
        assert re.search(rf"^\s+{name}\s", listed, re.MULTILINE), name
    targets = set(re.findall(r"make ([a-z]+)\b(?!-)", text))
    makefile = (ROOT / "Makefile").read_text()
    for target in targets - {"reproduce"}:
        assert re.search(rf"^{target}:|^reproduce-all:", makefile, re.MULTILINE), target


def test_a_bare_clone_reproduces_the_smoke_scale(tmp_path):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    cli = CommandLine(tmp_path / "runs")
    cli.environment["BAYESRULE_ROOT"] = str(clone)
    cli.environment["PYTHONPATH"] = str(clone / "src")
    result = cli("reproduce", "ivon", "--scale", "smoke", cwd=clone)
    assert result.returncode == 0, result.stderr
    claims = json.loads((clone / "results/ivon/smoke/claims.json").read_text())
    assert {claim["verdict"] for claim in claims["claims"]} == {"not_at_this_scale"}
    assert list((clone / "results/ivon/smoke/figures").glob("*.svg"))
