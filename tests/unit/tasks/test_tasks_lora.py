"""task=lora: what a run leaves, frozen weights, a cached prefix, and the refusals."""

import pytest
import torch
from safetensors.torch import load_file

from bayesrule.config import compose
from bayesrule.errors import ConfigError
from bayesrule.models import build_model, learnt_state
from bayesrule.models.lora import peft_key
from bayesrule.posteriors import load_posterior
from bayesrule.runs import RunStore
from bayesrule.tasks.execute import execute
from bayesrule.tasks.inputs import data_options, load_inputs
from bayesrule.tasks.reevaluate import reevaluate

SMALL = [
    *("task=lora", "model.weights=tiny", "model.dropout=0.0", "data.train_size=48"),
    *("data.test_size=40", "trainer.batch_size=16", "trainer.epochs=2", "trainer.progress=false"),
    *("metrics.mc_samples=2", "metrics.prefixes=[1]", "metrics.ece_null_draws=0"),
]
IVON = ["posterior=ivon", "posterior.lr=0.1", "posterior.hess_init=0.001"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def run(store):
    def do(*words):
        record = execute(compose([*SMALL, *words]), store)
        assert record.status == "done", record.error
        return record, store.folder(record.config).path

    return do


def network(config, **changes):
    return build_model(
        {**config["model"], **changes}, input_shape=(16,), n_outputs=2, seed=config["seed"]
    )


def test_peft_alone_loads_the_mean(run, store):
    from peft import PeftModel

    record, folder = run(*IVON)
    ours = network(record.config)
    q = load_posterior(folder)
    ours.load_state_dict(q.mean_state(), strict=False)
    base = network(record.config, tune="all").base
    theirs = PeftModel.from_pretrained(base, folder / "adapter")
    batch = load_inputs(record.config).test.batch(torch.arange(6))["input"]
    head = load_file(folder / "adapter" / "head.safetensors")
    ours.eval(), theirs.eval()
    with torch.no_grad():
        states = theirs(**batch).last_hidden_state
        weight = batch["attention_mask"] / batch["attention_mask"].sum(1, keepdim=True)
        pooled = torch.einsum("bt,btd->bd", weight, states)
        logits = pooled @ head["head.weight"].T + head["head.bias"]
        torch.testing.assert_close(logits, ours(**batch), rtol=0, atol=1e-5)
        assert float((ours(**batch) - network(record.config).eval()(**batch)).abs().max()) > 1e-3
    assert theirs.peft_config["default"].r == 8


def test_the_posterior_lies_beside_the_adapter_by_its_keys(run):
    record, folder = run(*IVON)
    q, beside = load_posterior(folder), load_posterior(folder / "adapter")
    names = [peft_key(name) or name for name in q.names]
    assert list(beside.names) == names
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert set(adapter) == {name for name in names if not name.startswith("head.")}
    for name, key in zip(q.names, names, strict=True):
        assert torch.equal(q.precision[name], beside.precision[key])
        if key in adapter:
            assert torch.equal(adapter[key], q.mean[name])
    assert not set(q.mean_state()) & network(record.config).fixed  # nothing of the base is stored


@pytest.mark.parametrize("posterior", [IVON, ["posterior=vogn"], ["posterior=bsam"]])
def test_frozen_weights_are_untouched_bit_for_bit(monkeypatch, run, posterior):
    """After training by any method the base is the one that was built."""
    from bayesrule.tasks.problem import Problem

    trained = []
    fit = Problem.fit
    monkeypatch.setattr(
        Problem,
        "fit",
        lambda self, model, *a, **k: (trained.append(model), fit(self, model, *a, **k)),
    )
    record, _ = run(*posterior, "seed=3")
    fresh = dict(network(record.config).named_parameters())
    for name, param in trained[0].named_parameters():
        assert torch.equal(param, fresh[name]) != param.requires_grad, name


def test_a_cached_prefix_gives_the_same_run(run):
    words = [*IVON, "seed=1"]
    whole, _ = run(*words, "model.lora_layers=[1]")
    part, _ = run(*words, "model.cached_prefix=1")
    for key in ("test/nll@mean", "test/nll@mc2", "test/brier@mc2"):
        assert part.metrics[key] == pytest.approx(whole.metrics[key], abs=1e-5)


def test_states_are_computed_once_for_a_data_set(monkeypatch, tmp_path):
    monkeypatch.setenv("BAYESRULE_CACHE", str(tmp_path))
    config = compose([*SMALL, "model.cached_prefix=1"])
    one = load_inputs(config)
    monkeypatch.setattr("bayesrule.tasks.inputs._compute", None)
    two = load_inputs(compose([*SMALL, "model.cached_prefix=1", "posterior=vogn"]))
    batch = torch.tensor([3, 1])
    assert torch.equal(one.train.batch(batch)["input"]["hidden"],
                       two.train.batch(batch)["input"]["hidden"])  # fmt: skip
    part = one.train.subset(torch.tensor([3, 1]))
    assert torch.equal(part.whole()["input"]["hidden"], one.train.batch(batch)["input"]["hidden"])
    with pytest.raises(TypeError):
        load_inputs(compose([*SMALL, "model.cached_prefix=1", "seed=7"]))


def test_a_stored_posterior_is_evaluated_again(run, store):
    record, _ = run(*IVON)
    again = reevaluate(store.get(record.id))
    assert again.metrics == {k: v for k, v in record.metrics.items() if k in again.metrics}


def test_a_killed_run_resumes_bit_equal(monkeypatch, tmp_path):
    """A checkpoint keeps adapters, head and posterior alone, and that is enough."""
    from bayesrule.tasks import callbacks

    words = [*SMALL, *IVON, "trainer.checkpoint_seconds=0", "seed=5"]
    whole = execute(compose(words), RunStore(tmp_path / "whole"))
    saved = callbacks.Checkpointing._perhaps_save
    steps = []

    def die(self, trainer):
        saved(self, trainer)
        steps.append(trainer.global_step)
        if len(steps) == 4:
            raise KeyboardInterrupt

    store = RunStore(tmp_path / "part")
    monkeypatch.setattr(callbacks.Checkpointing, "_perhaps_save", die)
    with pytest.raises(BaseException):  # noqa: B017 - stopped, whatever the trainer makes of it
        execute(compose(words), store)
    folder = store.folder(compose(words)).path / "checkpoints" / "train"
    size = max(path.stat().st_size for path in folder.iterdir())
    learnt = learnt_state(network(compose(words)))
    assert size < 8 * 4 * sum(t.numel() for t in learnt.values())  # not the base model
    monkeypatch.undo()
    resumed = execute(compose(words), store)
    assert resumed.metrics == whole.metrics


def test_the_model_chooses_tokenizer_and_form():
    chosen = data_options(compose(["data=rotten_tomatoes", "model=smollm2_135m"]))
    assert (chosen["tokenizer"], chosen["form"]) == ("smollm2_135m", "prompt")
    chosen = data_options(compose(["data=rotten_tomatoes", "model=minilm", "model.weights=tiny"]))
    assert (chosen["tokenizer"], chosen["form"]) == ("hashed", "plain")
    words = ["data=rotten_tomatoes", "data.tokenizer=hashed", "model=smollm2_135m"]
    assert data_options(compose(words))["tokenizer"] == "hashed"
    assert data_options(compose([]))["name"] == "digits"


def test_a_model_without_adapters_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"learns low-rank adapters, and model.tune=all"):
        execute(compose([*SMALL, "model.tune=all"]), RunStore(tmp_path))
    with pytest.raises(ConfigError, match=r"model.cached_prefix is for sets of texts"):
        execute(
            compose(["model=minilm", "model.weights=tiny", "model.cached_prefix=1"]),
            RunStore(tmp_path),
        )
