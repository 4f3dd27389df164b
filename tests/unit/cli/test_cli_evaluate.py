"""bayesrule evaluate: the record's numbers again, other metrics and data, and every refusal."""

import json
import shutil

import pytest

from bayesrule.cli.main import main
from bayesrule.config import compose
from bayesrule.runs import RunStore
from bayesrule.runs.files import jsonable

SMALL = ["model.hidden=[8]", "trainer.max_steps=4", "metrics.mc_samples=2", "metrics.prefixes=[1]"]
QUIET = ["trainer.progress=false", "metrics.ece_null_draws=3"]
RUNS = {
    "ivon": ["posterior=ivon", "metrics.curvature=true"],
    "batch_norm": ["posterior=ivon", "model=cnn", "model.norm=batch", "model.widths=[4]"],
    "ensemble": ["posterior=deep_ensemble", "posterior.members=2"],
    "multi_ivon": ["posterior=deep_ensemble", "posterior.member=ivon", "posterior.members=2"],
    "dropout": ["posterior=mc_dropout"],
    "swag": ["posterior=swag"],
    "last_layer": ["posterior=laplace_last_layer", "metrics.linearised=true"],
    "double": ["posterior=laplace_diag", "metrics.linearised=true", "trainer.precision=64-true"],
    "noisy": ["posterior=sgd", "data.label_noise=0.3", "data.noisy_test=true", "seed=3"],
    "regression": ["posterior=ivon", "data=diabetes"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a run of every kind, by name."""
    from bayesrule.tasks.execute import execute

    made = RunStore(tmp_path_factory.mktemp("evaluate") / "runs")
    ids = {}
    for name, words in RUNS.items():
        small = [w for w in SMALL if not (name == "batch_norm" and w.startswith("model.hidden"))]
        record = execute(compose([*small, *QUIET, *words]), made)
        assert record.status == "done", record.error
        ids[name] = record.id
    return made, ids


@pytest.fixture
def evaluate(store, monkeypatch, capsys, tmp_path):
    """Evaluate the run of a name; return exit code, output and the JSON file's content."""
    made, ids = store
    monkeypatch.setenv("BAYESRULE_RUNS", str(made.root))

    def call(name, *words):
        path = tmp_path / "out.json"
        path.unlink(missing_ok=True)
        capsys.readouterr()
        code = main(["evaluate", ids.get(name, name), *words, "--json", str(path)])
        out, err = capsys.readouterr()
        return code, out, err, json.loads(path.read_text()) if path.exists() else None

    return call


def contents(root):
    return {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", RUNS)
def test_without_changes_the_metrics_are_the_records_bit_by_bit(store, evaluate, name):
    made, ids = store
    folder = made.get(ids[name])
    before = contents(folder.path)
    code, out, err, found = evaluate(name)
    assert code == 0, err
    assert err == ""
    assert found["metrics"] == jsonable(folder.record().metrics)  # NaN as a word: it equals itself
    assert found["curves"] == json.loads(json.dumps(folder.record().details["curves"]))
    assert found["data"] == folder.record().details["data"]
    assert contents(folder.path) == before
    assert folder.id in out
    assert "@mc2" in out


def test_other_metrics(evaluate):
    code, out, _, found = evaluate("ivon", "metrics.mc_samples=3", "metrics.ece_bins=[15,7]")
    assert code == 0
    assert {"test/ece7@mc3", "test/ece@mc3"} <= found["metrics"].keys()
    assert not any(key.endswith("@mc2") for key in found["metrics"])
    assert "@mc3" in out
    assert found["overrides"] == ["metrics.mc_samples=3", "metrics.ece_bins=[15,7]"]


def test_first_draws_do_not_depend_on_how_many_follow(store, evaluate):
    made, ids = store
    recorded = made.get(ids["ivon"]).record().metrics
    *_, found = evaluate("ivon", "metrics.mc_samples=5", "metrics.prefixes=[1,2]")
    assert found["metrics"]["test/nll@mc2"] == pytest.approx(recorded["test/nll@mc2"], rel=1e-6)
    assert found["metrics"]["test/nll@mean"] == recorded["test/nll@mean"]


def test_a_data_option_changes_the_data_and_keeps_the_other_options(store, evaluate):
    made, ids = store
    code, _, err, found = evaluate("noisy", "data.noisy_test=false")
    assert code == 0, err
    assert found["data"]["notes"]["label_noise_test"] == 0.0
    recorded = made.get(ids["noisy"]).record()
    noise = recorded.details["data"]["notes"]
    assert found["data"]["notes"]["label_noise_train"] == noise["label_noise_train"] > 0.2
    assert found["metrics"]["test/nll@mean"] != recorded.metrics["test/nll@mean"]


def test_other_data_of_the_same_shape(evaluate):
    code, _, err, found = evaluate("ivon", "data=random_images", "data.shape=[1,8,8]")
    assert code == 0, err
    assert found["data"]["name"] == "random_images"
    assert found["data"]["n_test"] == 256
    assert found["metrics"]["test/acc@mean"] < 0.25  # labels are independent of the pixels
    assert "scaled by its own training rows" in err


def test_another_split_of_the_same_data_is_pointed_out(evaluate):
    code, _, err, _ = evaluate("ivon", "data.train_size=400")
    assert code == 0
    assert "may have been training items" in err


REFUSED = [
    (["posterior.lr=0.1"], "'posterior.lr' cannot be changed", "metrics.OPTION"),
    (["trainer.epochs=3"], "'trainer.epochs' cannot be changed", "data=NAME"),
    (["experiment=ivon/p2"], "'experiment' cannot be changed", "data=NAME"),
    (["data.name=iris"], "'data.name' cannot be changed", "data=NAME"),
    (["seed=1"], "seed decides which items were held out", "bayesrule train"),
    (["metrics.mc_samples=x"], "metrics.mc_samples=x: not a value of type int", ""),
    (["metrics.mc_samples=0"], "metrics.mc_samples=0 is out of range", ""),
    (["metrics.mc_sample=2"], "unknown key 'metrics.mc_sample'", "metrics.mc_samples"),
    (["data.label_noise=3"], "data.label_noise=3 is out of range", ""),
    (["data.nosuch=3"], "unknown key 'data.nosuch'", ""),
    (["data=digts"], "data=digts: no such data", "did you mean 'digits'"),
    (["data=iris"], "inputs of shape (4,)", "takes (1, 8, 8)"),
    (["data=mnist5k"], "inputs of shape (1, 28, 28)", "takes (1, 8, 8)"),
    (["data=toy_regression"], "for regression", "trained on digits (classification)"),
    (["data=random_images", "data.shape=[1,8,8]", "data.n_outputs=3"], "has 3 classes", "has 10"),
    (["+metrics.x=1"], "neither added (+) nor deleted", ""),
    (["metrics.mc_samples=1,2"], "several values", ""),
]


@pytest.mark.parametrize(
    ("words", "says", "also"), REFUSED, ids=[words[0] for words, *_ in REFUSED]
)
def test_what_does_not_fit_is_refused_with_a_sentence(evaluate, words, says, also):
    code, out, err, found = evaluate("ivon", *words)
    assert code == 2
    assert says in err
    assert also in err
    assert out == ""
    assert found is None


def test_an_unknown_run(evaluate):
    code, _, err, _ = evaluate("0123456789abcdef")
    assert code == 2
    assert "no run '0123456789abcdef'" in err
    assert "bayesrule runs ls" in err


@pytest.fixture
def copied(store, tmp_path, monkeypatch):
    """A copy of the IVON run that a test may damage."""
    made, ids = store
    folder = tmp_path / "copied" / ids["ivon"]
    shutil.copytree(made.root / ids["ivon"], folder)
    monkeypatch.setenv("BAYESRULE_RUNS", str(folder.parent))
    return folder


@pytest.mark.parametrize("name", ["posterior.safetensors", "posterior.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_posterior_is_noticed(copied, capsys, name, damage):
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-9]))
    assert main(["evaluate", copied.name]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert name in err
    assert ("missing" if damage == "remove" else "altered or damaged") in err


def test_a_damaged_record_is_noticed(copied, capsys):
    path = copied / "record.json"
    path.write_text(path.read_text()[:-30])
    assert main(["evaluate", copied.name]) == 1
    assert "record.json" in capsys.readouterr().err


def test_runs_that_did_not_finish_are_refused(tmp_path, monkeypatch, capsys):
    made = RunStore(tmp_path)
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path))
    with made.folder(compose(["seed=1"])).lock() as failed:
        failed.write_record("failed", error=ValueError("the loss is nan"))
    assert main(["evaluate", failed.id]) == 1
    assert "has failed (ValueError: the loss is nan)" in capsys.readouterr().err
    with made.folder(compose(["seed=2"])).lock() as started:
        pass
    assert main(["evaluate", started.id]) == 1
    assert "is not finished" in capsys.readouterr().err
    with made.folder(compose(["task=step_cost"])).lock() as timed:
        timed.write_record("done", {"cost/step_ratio": 1.0})
    assert main(["evaluate", timed.id]) == 1
    assert "StepCost, leaves none" in capsys.readouterr().err


def test_options_newer_than_the_run_take_their_defaults(store):
    from bayesrule.tasks.reevaluate import changed_config

    made, ids = store
    config = made.get(ids["ivon"]).config()
    older = json.loads(json.dumps(config))
    del older["metrics"]["linearised"], older["data"]["val_fraction"]
    found = changed_config(older, ["metrics.mc_samples=7"])
    assert found["metrics"] == {**config["metrics"], "mc_samples": 7}
    assert found["data"] == config["data"]
    assert "linearised" not in older["metrics"]


def test_help_names_the_words(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for word in ("metrics.mc_samples", "data=", "--json", "RUN"):
        assert word in out
