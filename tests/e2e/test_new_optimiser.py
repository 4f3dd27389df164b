"""A made-up optimiser: a file, a YAML and a row are enough to train, sweep, judge and show it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from command_line import ROOT, CommandLine

METHOD = '''
"""Sign descent: mean <- mean - lr sign(m), m an average of gradients; a made-up method."""

import torch

from bayesrule.optim import PosteriorOptimizer
from bayesrule.posteriors import PointMass


class SignDescent(PosteriorOptimizer):
    """Sign descent.

    Args:
        lr: Learning rate.
        beta: Decay of the average.
        mc_samples: Closure calls averaged per step.
        seed: Unused.
        generator: Unused.
        noise: Unused.
        sync: How several processes share one step.
    """

    def __init__(self, params, lr=0.01, beta=0.9, mc_samples=1, *, seed=None, generator=None,
                 noise=None, sync="auto"):
        super().__init__(params, {"lr": lr, "beta": beta})
        if any(not group["lr"] >= 0 for group in self.param_groups):
            raise ValueError("lr must be >= 0")
        self.setup(mc_samples=mc_samples, seed=seed, generator=generator, noise=noise, sync=sync)

    def perturb(self, stage, noise):
        pass

    def collect(self, stage):
        self.accumulate("grad", self.gradients())

    def update(self, statistics):
        grads = iter(statistics["grad"])
        for group in self.param_groups:
            for param in (p for p in group["params"] if p.requires_grad):
                average = self.param_state(param, average=0.0)["average"]
                average.lerp_(next(grads), 1.0 - group["beta"])
                param.sub_(torch.sign(average), alpha=float(group["lr"]))

    def posterior(self, model=None):
        return PointMass(self.named_mean(model))
'''
YAML = """
_target_: madeup.SignDescent
lr: 0.003
beta: 0.9
mc_samples: 1
_schema_:
  lr: float > 0
  beta: float in [0, 1)
  mc_samples: int >= 1
"""
ROW = """
from madeup import SignDescent

CASES.append(
    Case("sign", SignDescent, {"lr": 0.01}, {"lr": -1.0}, per_group=("beta", 0.3),
         state=("average",), conjugate=Conjugate({"lr": 0.1}, mean=0.01))
)
"""
EXPERIMENT = """# @package _global_
defaults:
  - override /data: digits
data: {train_size: 300, test_size: 300}
trainer: {epochs: 5}
metrics: {mc_samples: 2, prefixes: [], ece_null_draws: 5}
"""
PAPER = """
paper: {title: Sign descent, authors: Nobody, year: 2026, venue: none, arxiv: null,
        official_code: none, task: classification, posteriors: [point mass]}
studies:
  first:
    title: Digits
    experiment: signs/first
    arms:
      sgd: [posterior=sgd]
      sign: [posterior=sign_descent]
    scales:
      smoke: {seeds: "10"}
      cpu: {seeds: "10-12"}
    metrics: [test/acc@mean]
claims:
  - id: C1
    headline: C1
    statement: Sign descent learns something.
    study: first
    kind: value
    band: [0.5, null]
    arm: sign
    metric: test/acc@mean
"""
FIGURES = """
from bayesrule.report import comparison


def figures(records, out):
    comparison(records, "first", out)
"""


@pytest.fixture
def root(tmp_path):
    """A checkout with the made-up method in it, and no other change."""
    for name in ("conf", "experiments", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "madeup.py").write_text(METHOD)
    (tmp_path / "conf/posterior/sign_descent.yaml").write_text(YAML)
    (tmp_path / "conf/experiment/signs").mkdir()
    (tmp_path / "conf/experiment/signs/first.yaml").write_text(EXPERIMENT)
    folder = tmp_path / "experiments/signs"
    folder.mkdir()
    (folder / "paper.yaml").write_text(PAPER)
    (folder / "figures.py").write_text(FIGURES)
    (folder / "README.md").write_text("# Sign descent\n")
    return tmp_path


def test_trained_swept_judged_and_shown(root):
    cli = CommandLine(root / "runs")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    cli.environment |= {
        "BAYESRULE_ROOT": str(root), "BAYESRULE_TARGETS": "madeup", "PYTHONPATH": path,
    }  # fmt: skip
    small = ["data=digits", "data.train_size=200", "trainer.epochs=2", "metrics.mc_samples=2"]
    one = cli("train", "posterior=sign_descent", "posterior.beta=0.5", *small)
    assert one.returncode == 0, one.stderr
    assert "test/acc" in one.stdout
    wrong = cli("train", "posterior=sign_descend", *small)
    assert wrong.returncode == 2
    assert "sign_descent" in wrong.stderr
    sweep = cli("train", "-m", "posterior=sgd,sign_descent", "seed=0,1", *small)
    assert sweep.returncode == 0, sweep.stderr
    assert "sign_descent" in sweep.stdout

    made = cli("reproduce", "signs", "--scale", "cpu")
    assert made.returncode == 0, made.stderr
    results = root / "results/signs/cpu"
    (claim,) = json.loads((results / "claims.json").read_text())["claims"]
    assert claim["verdict"] == "shown"
    assert claim["n_seeds"] == 3
    assert "sign" in (results / "table.md").read_text()
    assert (results / "figures/first-comparison.svg").is_file()
    assert "Sign descent" in cli("papers").stdout


def test_the_battery_takes_its_row(tmp_path):
    tests = tmp_path / "optim"
    shutil.copytree(ROOT / "tests/contract/optim", tests)
    (tests / "madeup.py").write_text(METHOD)
    text = (tests / "optim_cases.py").read_text()
    marker = "every_case = pytest.mark.parametrize"  # the lists of cases are made from CASES
    assert marker in text
    (tests / "optim_cases.py").write_text(text.replace(marker, f"{ROW}\n{marker}", 1))
    chosen = "sign and not two_processes and not ranks and not signs"
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"),
        *("--rootdir", str(tmp_path), "-c", os.devnull, str(tests), "-k", chosen),
        *("--deselect", f"{tests}/test_optim_two_processes.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert passed > 40  # the whole battery, not a part of it
