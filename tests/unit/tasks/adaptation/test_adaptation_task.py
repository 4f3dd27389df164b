"""task=adaptation: what it computes on digits, what it refuses, what it leaves behind."""

from __future__ import annotations

import pytest
import torch

from bayesrule.config import compose
from bayesrule.errors import ConfigError
from bayesrule.runs import RunStore
from bayesrule.tasks.dry_run import dry_run
from bayesrule.tasks.execute import execute
from bayesrule.tasks.plan import plan_arm
from bayesrule.tasks.reevaluate import reevaluate

DIGITS = [
    *("task=adaptation", "data=digits", "data.train_size=300", "data.scaling=unit"),
    *("task.labels=parity", "trainer.progress=false", "metrics.ece_null_draws=2"),
]
NETWORK = [
    *("model=mlp", "model.hidden=[8]", "posterior=adamw", "posterior.weight_decay=0"),
    *("posterior.lr=0.01", "trainer.epochs=150"),
]
KINDS = {
    "add": [],
    "remove": ["task.changed_class=8"],
    "regulariser": ["task.strength=50", "task.new_strength=5"],
    "model": ["task.pool=2", "task.degree=2", "task.new_degree=1"],
}


def run(store, *words):
    record = execute(compose([*DIGITS, *words]), store, tell=lambda text: None)
    assert record.status == "done", record.error
    return record


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("adaptation"))


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_past_inputs_the_batch_solution_is_found(store, kind):
    words = [f"task.kind={kind}", *KINDS[kind], "task.sweep=[1.0]"]
    found = run(store, *words).metrics
    assert found["m1/distance"] < 1e-7
    assert found["m1/acc@mean"] == found["batch/acc@mean"]
    assert found["m0.2/distance"] > 1e-3
    assert found["test/acc@mean"] == found["m0.2/acc@mean"]
    if kind != "model":
        assert found["m1/gradient_error"] < 1e-8 < found["m0.2/gradient_error"]
    replay = run(store, *words, "task.method=replay").metrics
    assert replay["m1/distance"] < 1e-7  # labels of all data: learning anew
    functional = run(store, *words, "task.method=functional_only").metrics
    assert functional["m1/distance"] > 1e-3  # the pull towards w* is missing


def test_references_are_the_same_whatever_the_method(store):
    words = ["task.kind=remove", *KINDS["remove"]]
    first = run(store, *words).metrics
    for method in ("batch", "frozen", "weight_only"):
        other = run(store, *words, f"task.method={method}").metrics
        assert {k: v for k, v in other.items() if k.startswith(("base/", "batch/"))} == {
            k: v for k, v in first.items() if k.startswith(("base/", "batch/"))
        }
    batch = run(store, *words, "task.method=batch").metrics
    assert batch["test/acc@mean"] == pytest.approx(batch["batch/acc@mean"])
    frozen = run(store, *words, "task.method=frozen").metrics
    assert frozen["test/acc@mean"] == pytest.approx(frozen["base/acc@mean"])


def test_without_memory_a_change_of_regulariser_scales_the_weights(store):
    words = ["task.kind=regulariser", *KINDS["regulariser"], "task.method=weight_only"]
    found = run(store, *words).metrics
    assert found["m0/acc@mean"] == found["base/acc@mean"]
    ratio = found["m0/norm_ratio"] * found["batch/norm"] / found["base/norm"]
    assert ratio == pytest.approx(50.0 / 5.0)


def test_memories_are_nested_balanced_and_of_the_size_asked_for(store):
    record = run(store, "task.kind=add", "task.selection=random", "task.sweep=[0.1]")
    examples = record.details["curves"]["memory/examples"]
    assert examples["shape"] == [1, 8, 8]
    assert set(examples["labels"]) == {0, 1}
    assert 9 not in examples["classes"]
    kept = record.metrics["m0.2/size"]
    assert record.metrics["m0.1/size"] == pytest.approx(kept / 2, abs=2)


@pytest.mark.parametrize("selection", ["lambda_ascend", "k_centre", "leverage"])
def test_every_selection_runs(store, selection):
    assert run(store, f"task.selection={selection}").metrics["m0.2/distance"] > 0.0


def test_several_classes_take_the_softmax(store):
    found = run(store, "task.labels=class", "task.kind=remove", "data.train_size=120",
                "task.sweep=[1.0]")  # fmt: skip
    assert found.metrics["m1/distance"] < 1e-7
    assert found.details["parameters"] == 10 * 65


def test_what_is_removed_by_curvature_and_at_random(store):
    for by in ("random", "lambda_descend"):
        words = ["task.kind=remove", f"task.changed_by={by}", "task.sweep=[1.0]"]
        assert run(store, *words).metrics["m1/distance"] < 1e-7


def test_networks_adapt_and_a_finished_phase_is_not_trained_again(store, tmp_path, monkeypatch):
    words = [*NETWORK, "task.kind=add", "task.strength=1"]
    found = run(store, *words).metrics
    assert found["m0.2/acc@mean"] > 0.75
    assert "m0.2/gradient_error" not in found
    from bayesrule.tasks.adaptation.learners import NetworkLearner

    calls = []
    train = NetworkLearner._train

    def dies_in_the_last_phase(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        train(self, *args)

    monkeypatch.setattr(NetworkLearner, "_train", dies_in_the_last_phase)
    other, config = RunStore(tmp_path), compose([*DIGITS, *words])
    with pytest.raises(Exception, match="resumes"):
        execute(config, other)
    again = execute(config, other)
    assert len(calls) == 4  # base and batch are restored
    assert again.metrics == found


def test_another_network_learns_the_soft_labels(store):
    words = [*NETWORK, "task.kind=model", "task.new_hidden=[]", "task.strength=1"]
    found = run(store, *words, "task.sweep=[1.0]").metrics
    assert found["m1/acc@mean"] > 0.75
    assert run(store, *words).details["parameters"] == 64 * 2 + 2


def test_a_network_without_memory_shrinks_towards_zero_as_the_quadratic_says(store):
    words = [*NETWORK, "task.kind=regulariser", "task.strength=1", "task.new_strength=2"]
    found = run(store, *words, "task.method=weight_only", "trainer.epochs=400").metrics
    ratio = found["m0/norm_ratio"] * found["batch/norm"] / found["base/norm"]
    assert ratio == pytest.approx(0.5, abs=0.01)


def test_a_stored_run_is_evaluated_again_to_the_same_numbers(store):
    for words in (["task.kind=model", *KINDS["model"]], [*NETWORK, "task.strength=1"]):
        record = run(store, *words)
        found = reevaluate(store.get(record.id))
        own = {k: v for k, v in record.metrics.items() if k.startswith("test/")}
        assert found.metrics == own


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["posterior=adamw"], "with both"),
        (["data=diabetes", "data.scaling=none"], "predicts classes"),
        (["task.changed_class=10"], "has classes 0 to 9"),
        (["task.kind=regulariser"], "a strength other than"),
        (["task.kind=model"], "task.new_degree=None"),
        (["task.new_degree=1"], "for kind=model of a linear"),
        (["task.kind=model", "task.new_degree=2"], "no part of degree 1"),
        (["task.pool=3"], "shape"),
        (["task.changed_by=lambda_descend"], "no curvature"),
        ([*NETWORK, "posterior.weight_decay=0.1"], "weight_decay=0"),
        ([*NETWORK[:2], "posterior=ivon"], "something else"),
        ([*NETWORK[:2], "posterior=deep_ensemble"], "another one"),
        ([*NETWORK, "model.dropout=0.1"], "no dropout"),
        ([*NETWORK, "task.kind=model"], "task.new_hidden=None"),
        (["task.changed_by=random", "task.changed_fraction=0.001"], "0 of 300"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(store, words, says):
    with pytest.raises(ConfigError, match=says):
        execute(compose([*DIGITS, *words]), store)


@pytest.mark.parametrize("words", [["task.kind=model", *KINDS["model"]], NETWORK])
def test_a_plan_and_a_dry_run(words):
    arm = plan_arm("adaptation", "k_prior", [compose([*DIGITS, *words])])
    assert arm.n_train == 300
    assert arm.steps == (450 if words is NETWORK else 3)
    assert arm.parameters == (64 * 8 + 8 + 8 * 2 + 2 if words is NETWORK else 153)
    assert dry_run(arm)
    assert torch.get_num_threads() >= 1
