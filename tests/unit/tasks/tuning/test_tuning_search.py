"""Searches on a made-up objective: trials, workers, pruning and the summary, without training."""

import copy
import functools
import math
import multiprocessing
import re

import pytest

from bayesrule.config import compose
from bayesrule.config.space import read_space
from bayesrule.errors import ConfigError
from bayesrule.report.tuning import tuning_report
from bayesrule.runs import RunStore, read_json
from bayesrule.tasks.signals import Stopped
from bayesrule.tasks.tuning import Objective, Search, Settings, trial, tune, write_summary

WORDS = (
    *("posterior=ivon", "data.val_fraction=0.2", "trainer.epochs=9", "trainer.eval_every=1"),
    "posterior.lr=tag(log,interval(0.001,10))",
    "model.dropout=interval(0,0.5)",
)
METRIC = "val/nll@mean"


def settings(words=WORDS, **changes):
    changes = {"prune": False, "startup": 4, **changes}
    return Settings(read_space(words), Objective.of(METRIC), **changes)


def nll(config):
    """Best at lr 0.1; the seed adds a little, dropout hardly anything."""
    lr, dropout = config["posterior"]["lr"], config["model"]["dropout"]
    return 1 + math.log10(lr / 0.1) ** 2 + 0.01 * dropout + 0.001 * config["seed"]


@functools.cache
def _base():
    return compose(WORDS[:4])


def quick_compose(words):
    """What `compose` gives for these searches; composing each trial would take minutes."""
    config = copy.deepcopy(_base())
    for word in words[4:]:
        (group, key), value = word.partition("=")[0].split("."), word.partition("=")[2]
        config[group][key] = float(value)
    return config


@pytest.fixture
def runs(monkeypatch):
    """Instead of training: rows of a history, seen by the watch, and a record with `nll`."""
    seen = []

    def execute(config, store, *, watch=None):
        folder = store.folder(config)
        if folder.is_done():
            return folder.record()
        with folder.lock():
            value = nll(config)
            for epoch in range(config["trainer"]["epochs"]):
                row = {"phase": "train", "epoch": epoch, METRIC: value + 1 / (epoch + 1)}
                if watch is not None and (reason := watch(row)) is not None:
                    folder.write_record("stopped", error=ValueError(reason))
                    raise trial.Pruned(reason)
            seen.append((config["posterior"]["lr"], config["seed"]))
            if config["posterior"]["lr"] > runs_diverge_above:
                return folder.write_record("failed", error=trial.NonFiniteLoss("nan at step 3"))
            return folder.write_record("done", {METRIC: value})

    runs_diverge_above = 5.0
    monkeypatch.setattr(trial, "execute", execute)
    monkeypatch.setattr(trial, "compose", quick_compose)
    return seen


def sequence(search):
    return [(t.number, t.state.name, t.params, t.value) for t in search.trials()]


def test_trials_are_run_with_every_seed_and_the_mean_counts(tmp_path, runs):
    search = Search(tmp_path, settings((*WORDS, "seed=3,4")), "s")
    tune(search, RunStore(tmp_path), trials=5)
    assert len(runs) == 10
    for each in search.trials():
        if each.state.name == "COMPLETE" and math.isfinite(each.value):
            config = {"posterior": {"lr": float(f"{each.params['posterior.lr']:.6g}")}}
            config["model"] = {"dropout": float(f"{each.params['model.dropout']:.6g}")}
            mean = (nll({**config, "seed": 3}) + nll({**config, "seed": 4})) / 2
            assert each.value == pytest.approx(mean, rel=1e-12)
    done = RunStore(tmp_path).ls({"status": "done"})
    assert all(run.record.config["tags"] == ["tune:s"] for run in done)
    tune(search, RunStore(tmp_path), trials=5)
    assert len(runs) == 10  # all five were there


def test_an_interrupted_search_proposes_what_an_uninterrupted_one_does(tmp_path, runs, monkeypatch):
    whole = Search(tmp_path / "whole", settings(prune=True), "s")
    tune(whole, RunStore(tmp_path / "whole"), trials=12)
    states = {state for _, state, _, _ in sequence(whole)}
    assert states == {"COMPLETE", "PRUNED"}

    root, calls = tmp_path / "parts", []
    inner = trial.execute

    def stopping(config, store, *, watch=None):
        calls.append(config)
        if len(calls) in (1, 4, 9):  # in a first trial, in a random one, in one that TPE proposed
            raise Stopped(15)
        return inner(config, store, watch=watch)

    monkeypatch.setattr(trial, "execute", stopping)
    for _ in range(3):
        with pytest.raises(Stopped):
            tune(Search(root, settings(prune=True), "s"), RunStore(root), trials=12)
    parts = Search(root, settings(prune=True), "s")
    tune(parts, RunStore(root), trials=12)
    assert sequence(parts) == sequence(whole)


def test_a_trial_half_proposed_is_completed_as_it_would_have_been(tmp_path, runs):
    one, two = (Search(tmp_path / name, settings(), "s") for name in ("one", "two"))
    with one.worker() as worker:
        expected = one.ask(worker, 3).params
    two._seed(0, 0)
    two.study.ask()  # killed before the first value was drawn
    with two.worker() as worker:
        taken = two.ask(worker, 3)
    assert (taken.number, taken.params) == (0, expected)


def hold(root, asked, free):
    search = Search(root, settings(), "s")
    with search.worker() as worker:
        asked.put(search.ask(worker, 2).number)
        free.get(timeout=60)


@pytest.mark.fault("kill -9 of one worker of a search")
def test_the_trial_of_a_dead_worker_is_taken_over_that_of_a_living_one_is_not(tmp_path):
    context = multiprocessing.get_context("spawn")
    asked, free = context.Queue(), context.Queue()
    process = context.Process(target=hold, args=(tmp_path, asked, free))
    process.start()
    assert asked.get(timeout=60) == 0
    search = Search(tmp_path, settings(), "s")
    with search.worker() as worker:
        own = search.ask(worker, 2)
        assert own.number == 1
        search.tell(own, 1.0)
        assert search.ask(worker, 2) is None  # two in all: the other one is being worked on
        process.kill()
        process.join()
        assert search.ask(worker, 2).number == 0


def test_halving_stops_hopeless_trials_and_a_diverged_one_is_the_worst(tmp_path, runs):
    search = Search(tmp_path, settings(prune=True, sampler="random"), "s")
    tune(search, RunStore(tmp_path), trials=24)
    by_state = {}
    for each in search.trials():
        by_state.setdefault(each.state.name, []).append(each)
    assert len(by_state["PRUNED"]) >= 10
    best = min(search.trials(), key=lambda t: abs(math.log10(t.params["posterior.lr"] / 0.1)))
    assert best.state.name == "COMPLETE"
    assert all("pruned at evaluation" in t.user_attrs["pruned"] for t in by_state["PRUNED"])
    assert all(max(t.intermediate_values) in (1, 3) for t in by_state["PRUNED"])
    for each in by_state["COMPLETE"]:
        assert (each.value == math.inf) == (each.params["posterior.lr"] > 5)


def test_tpe_comes_closer_than_chance(tmp_path, runs):
    found = {}
    for sampler in ("random", "tpe"):
        search = Search(tmp_path / sampler, settings(sampler=sampler), "s")
        tune(search, RunStore(tmp_path / sampler), trials=30)
        lrs = [math.log10(t.params["posterior.lr"] / 0.1) for t in search.trials()[15:]]
        found[sampler] = sum(map(abs, lrs)) / len(lrs)
    assert found["tpe"] < 0.6 * found["random"]


def test_a_grid_ends_with_its_last_point(tmp_path, runs):
    words = (*WORDS[:4], "posterior.lr=0.01,0.1,1.0", "model.dropout=0.0,0.5")
    search = Search(tmp_path, settings(words, sampler="grid"), "s")
    assert search.limit(100) == 6
    tune(search, RunStore(tmp_path), trials=100)
    assert len({tuple(t.params.values()) for t in search.trials()}) == 6
    best = read_json(search.summary_path)["best"][0]
    assert best["overrides"][-2:] == ["posterior.lr=0.1", "model.dropout=0.0"]


def test_the_summary_says_what_matters_and_the_report_what_to_copy(tmp_path, runs):
    search = Search(tmp_path, settings((*WORDS, "seed=0,1"), sampler="sobol"), "s")
    tune(search, RunStore(tmp_path), trials=16)
    summary = read_json(search.summary_path)
    assert summary == write_summary(search, importances=True)
    assert summary["importances"]["posterior.lr"] > 2 * summary["importances"]["model.dropout"]
    assert sum(summary["importances"].values()) == pytest.approx(1.0)
    values = [trial["value"] for trial in summary["best"]]
    assert values == sorted(values)
    counts = summary["counts"]
    assert counts["complete"] + counts["diverged"] == 16
    assert counts["diverged"] > 0
    text = tuning_report(summary)
    assert f"bayesrule train -m {' '.join(WORDS[:4])} posterior.lr=" in text
    assert "seed=0,1" in text
    assert re.search(r"posterior.lr \d\d%", text)


def test_one_name_stands_for_one_search(tmp_path):
    Search(tmp_path, settings(), "s")
    with pytest.raises(ConfigError, match="differs in sampler"):
        Search(tmp_path, settings(sampler="random"), "s")
    with pytest.raises(ConfigError, match="--name"):
        Search(tmp_path, settings(), "../s")
    assert settings().name() == settings().name() != settings(seed=1).name()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("test/nll@mean", "never on test data"),
        ("ood/auroc@mc64", "never on test data"),
        ("nll", "never on test data"),
        ("joint/acc", "metric of the validation split"),
        ("val/strange@mean", "--direction"),
    ],
)
def test_a_metric_that_must_not_choose_settings_is_refused(metric, message):
    with pytest.raises(ConfigError, match=message):
        Objective.of(metric)


def test_directions_follow_from_names_or_are_said():
    assert Objective.of("val/nll@mc64").direction == "minimize"
    assert Objective.of("val/ece15@mean").direction == "minimize"
    assert Objective.of("val/acc@mean").direction == "maximize"
    assert Objective.of("train/elbo").direction == "maximize"
    assert Objective.of("val/strange@mean", "maximize").worst == -math.inf


def test_a_metric_that_no_run_has_ends_the_search(tmp_path, runs):
    other = Settings(read_space(WORDS), Objective.of("val/ece@mean"), prune=False)
    with pytest.raises(ConfigError, match=f"there is {METRIC}"):
        tune(Search(tmp_path, other, "s"), RunStore(tmp_path), trials=3)
