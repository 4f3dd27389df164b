"""The tasks of the BayesBiNN paper: permuted tasks, spread, temperatures, binary weights."""

import pytest
import torch

from bayesrule.config import compose, locate, root_dir
from bayesrule.data import random_like
from bayesrule.errors import ConfigError, Unsupported
from bayesrule.posteriors import load_posterior
from bayesrule.runs import RunStore
from bayesrule.tasks.execute import execute
from bayesrule.tasks.history import History
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.signals import Stopped, StopRequest
from bayesrule.tasks.task import Context

TINY = [
    *("data.train_size=100", "data.test_size=60", "model.hidden=[8]", "trainer.batch_size=25"),
    *("trainer.epochs=2", "trainer.progress=false", "metrics.ece_null_draws=0"),
]
CONTINUAL = ["experiment=bayesbinn/continual", *TINY, "task.n_tasks=3", "metrics.mc_samples=2"]


def run(words, store):
    return execute(compose(words), store, tell=lambda text: None)


def experiment(name):
    return locate(f"experiments.bayesbinn.{name}", "_target_", root_dir())


def test_permuted_tasks_resume_after_a_finished_one(tmp_path, monkeypatch):
    whole = run(CONTINUAL, RunStore(tmp_path / "whole"))
    fit, phases = Problem.fit, []

    def stopping(self, model, optimizer, phase, **options):
        phases.append(phase)
        if phases.count("task3") == 1 and phase == "task3":
            raise Stopped(15)
        fit(self, model, optimizer, phase, **options)

    monkeypatch.setattr(Problem, "fit", stopping)
    store = RunStore(tmp_path / "stopped")
    with pytest.raises(Stopped):
        run(CONTINUAL, store)
    resumed = run(CONTINUAL, store)
    assert phases == ["task1", "task2", "task3"] * 2
    assert resumed.metrics == whole.metrics
    assert resumed.status == "done"
    folders = [RunStore(tmp_path / name).get(whole.id) for name in ("whole", "stopped")]
    first, second = (load_posterior(folder.path) for folder in folders)
    assert torch.equal(first.lam["layers.0.weight"], second.lam["layers.0.weight"])
    rows = [[(r["phase"], r["step"]) for r in folder.history()] for folder in folders]
    assert rows[0] == rows[1]


def test_the_prior_is_yesterday_s_posterior(tmp_path, monkeypatch):
    fit, seen = Problem.fit, []

    def watching(self, model, optimizer, phase, **options):
        seen.append((optimizer.prior(model).lam, optimizer.posterior(model).lam))
        fit(self, model, optimizer, phase, **options)
        seen.append(optimizer.posterior(model).lam)

    monkeypatch.setattr(Problem, "fit", watching)
    name = "layers.0.weight"
    for carry in ("true", "false"):
        seen.clear()
        words = [*CONTINUAL, f"task.carry_prior={carry}"]
        record = run(words, RunStore(tmp_path))
        (prior, start), learnt = seen[2], seen[1]
        assert torch.equal(start[name], learnt[name])
        expected = learnt[name] if carry == "true" else torch.zeros_like(learnt[name])
        assert torch.equal(prior[name], expected)
        after = [record.metrics[f"task{j}_after3/acc@mode"] for j in (1, 2, 3)]
        assert record.metrics["final/acc@mode"] == pytest.approx(sum(after) / 3)


@pytest.mark.parametrize(
    ("posterior", "says"),
    [("swag", "one optimiser with a settable prior"), ("sgd", "SGD cannot start from a PointMass")],
)
def test_permuted_tasks_want_one_optimiser_with_a_prior(posterior, says, tmp_path, monkeypatch):
    monkeypatch.setattr(Problem, "fit", lambda *_, **__: pytest.fail("a training began"))
    config = compose(CONTINUAL) | {"posterior": compose([f"posterior={posterior}"])["posterior"]}
    folder = RunStore(tmp_path).folder(config)
    task = experiment("continual.PermutedTasks")(3, True)
    with pytest.raises((ConfigError, Unsupported), match=says):
        task.run(Context(config, folder, History(None), StopRequest()))


def test_a_permuted_split_permutes_inputs_alone():
    split = random_like(compose(["data=digits"])["data"], n_items=6).train
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    permuted = experiment("continual.PermutedSplit")(split, order)
    plain, other = split.batch(torch.arange(6)), permuted.batch(torch.arange(6))
    assert torch.equal(other["input"].flatten(1), plain["input"].flatten(1)[:, order])
    assert torch.equal(other["target"], plain["target"])
    assert len(permuted) == 6
    assert torch.equal(permuted.subset(torch.tensor([2])).targets, split.targets[2:3])


def test_the_gap_is_the_largest_between_training_inputs():
    gap_of = experiment("spread.gap_of")
    assert gap_of(torch.tensor([3.0, -1.0, 0.0, 0.5])) == (0.5, 3.0)


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (["experiment=bayesbinn/regression", "posterior=bayesbinn", "posterior.tau=1"], False),
        (["experiment=bayesbinn/moons", "posterior=ste"], True),
    ],
)
def test_spread_is_that_of_the_draws(words, plain, tmp_path):
    small = ["trainer.max_steps=4", "trainer.progress=false", "posterior.binary=all"]
    record = run([*words, *small, "metrics.ece_null_draws=0"], RunStore(tmp_path))
    near, away = record.metrics["spread/near"], record.metrics["spread/away"]
    assert (near == away == 0.0) if plain else min(near, away) > 0.0
    curve = record.details["curves"].get("spread/prediction")
    if curve:
        low, high = curve["gap"]
        inside = [s for x, s in zip(curve["x"], curve["std"], strict=True) if low < x < high]
        assert away == pytest.approx(sum(inside) / len(inside), rel=1e-5)


@pytest.mark.parametrize(("posterior", "share"), [("bayesbinn", 1.0), ("ste", 1.0), ("adamw", 0.0)])
def test_binary_weights_are_counted(posterior, share, tmp_path):
    words = ["experiment=bayesbinn/digits", f"posterior={posterior}", *TINY, "metrics.mc_samples=2"]
    record = run(words, RunStore(tmp_path))
    assert record.metrics["weights/binary"] == share
    assert record.metrics["weights/binary_draws"] == share


def test_a_cold_step_is_a_straight_through_one(tmp_path):
    words = ["experiment=bayesbinn/temperature", *TINY, "task.batches=2", "task.taus=[1,1e-10]"]
    found = run(words, RunStore(tmp_path)).metrics
    assert found["ste/sign_1e-10"] == 1.0
    assert found["ste/cosine_1e-10"] == pytest.approx(1.0, abs=1e-6)
    assert found["ste/distance_1e-10"] == 0.0
    assert found["ste/sign_1"] < 1.0
    assert found["ste/cosine_start"] == pytest.approx(1.0, abs=1e-6)
