"""task=gp from configuration to record: every method and likelihood, evaluation again, refusals."""

import math

import pytest
import torch

from bayesrule.config import compose
from bayesrule.errors import ConfigError
from bayesrule.posteriors import load_posterior
from bayesrule.runs import RunStore
from bayesrule.tasks.execute import execute
from bayesrule.tasks.plan import plan_arm
from bayesrule.tasks.reevaluate import reevaluate

SMALL = [
    *("task=gp", "model.inducing=12", "task.iterations=2", "task.e_steps=2", "task.m_steps=2"),
    *("metrics.mc_samples=8", "metrics.ece_null_draws=2", "trainer.progress=false"),
]
RUNS = {
    "regression": ["data=diabetes", "task.noise=0.5"],
    "collapsed": ["data=diabetes", "posterior=sgpr"],
    "student_t": ["data=diabetes", "task.likelihood=student_t", "data.train_size=80"],
    "counts": ["data=toy_counts", "task.likelihood=poisson", "model.mean=constant"],
    "binary": ["data=two_moons", "posterior=svgp_natgrad", "trainer.eval_every=1"],
    "probit": ["data=two_moons", "posterior=svgp_adam", "task.likelihood=bernoulli_probit"],
    "classes": ["data=iris", "task.batch_size=50", "data.val_fraction=0.2"],
    "images": [
        "data=digits",
        "data.train_size=100",
        "posterior.storage=per_datum",
        "data.ood=[mnist5k]",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    store = RunStore(tmp_path_factory.mktemp("gp") / "runs")
    made = {}
    for name, words in RUNS.items():
        config = compose([*SMALL, *words])
        record = execute(config, store, tell=lambda text: None)
        assert record.status == "done", record.error
        made[name] = (config, record, store.folder(config))
    return made


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_metrics_a_history_and_a_posterior(runs, name):
    _, record, folder = runs[name]
    rule = {"classes": "mc8", "images": "mc8"}.get(name, "quad")
    for each in ("mean", rule):
        assert math.isfinite(record.metrics[f"test/nll@{each}"])
    assert ("test/rmse@quad" in record.metrics) == (record.details["data"]["kind"] == "regression")
    assert ("val/nll@mc8" in record.metrics) == (name == "classes")
    assert ("ood/auroc@mc8" in record.metrics) == (name == "images")
    rows = folder.history()
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[-1]["train/elbo"] == record.metrics["train/elbo"]
    assert rows[-1]["model/variance"] == record.details["model"]["model/variance"]
    assert ("test/nll@quad" in rows[0]) == (name == "binary")
    assert not list((folder.path / "checkpoints").glob("*"))
    q = load_posterior(folder.path)
    n_latents = {"classes": 3, "images": 10}.get(name, 1)
    assert q.mean["u"].shape == (n_latents, 12)
    assert q.mean["u"].dtype == torch.float64


@pytest.mark.parametrize("name", RUNS)
def test_without_changes_the_metrics_are_the_records_bit_by_bit(runs, name):
    _, record, folder = runs[name]
    again = reevaluate(folder)
    assert again.notes == []
    assert repr(sorted(again.metrics.items())) == repr(sorted(record.metrics.items()))
    assert again.curves == record.details["curves"]


def test_other_data_and_metrics(runs):
    _, _, folder = runs["classes"]
    again = reevaluate(folder, ["metrics.mc_samples=16"])
    assert "test/nll@mc16" in again.metrics
    other = reevaluate(runs["binary"][2], ["data.noise_std=0.4"])
    assert "train/elbo" not in other.metrics  # it was not learnt on these
    assert other.metrics["test/nll@quad"] != runs["binary"][1].metrics["test/nll@quad"]
    with pytest.raises(ConfigError, match="inputs of shape"):
        reevaluate(runs["binary"][2], ["data=breast_cancer"])


def test_the_stored_posterior_is_that_of_the_inducing_values(runs):
    """Its moments and precision are those of the predictions at Z."""
    from bayesrule.tasks.gp.evaluate import Predictor
    from bayesrule.tasks.task import make_task

    config, _, folder = runs["classes"]
    q = load_posterior(folder.path)
    state = {k.removeprefix("gp."): v for k, v in q.buffers.items() if k.startswith("gp.")}
    gp = make_task(config)._around(config, "classification", 3, state["inducing"])
    gp.load_state_dict(state)
    with torch.no_grad():
        chol = gp.chol()
    from bayesrule.posteriors.inducing import InducingGaussian

    inner = InducingGaussian(*(q.buffers[f"q.{part}"] for part in ("mean", "half", "logdet")))
    predictor = Predictor(gp, chol, inner, 100, 0, 4)
    mean, var = predictor.latent(state["inducing"])
    assert torch.allclose(mean, q.mean["u"], atol=1e-5)  # k(Z, Z) has no jitter in a prediction
    assert torch.allclose(var, q.variance()["u"], atol=1e-5)
    blocks = q.precision.reshape(3, 12, 3, 12)
    assert (blocks[0, :, 1] == 0).all()  # latent processes are independent


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_knows_steps_and_parameters(runs, name):
    config, record, _ = runs[name]
    plan = plan_arm("study", "arm", [config])
    assert plan.parameters == record.details["parameters"]
    assert plan.steps == record.details["steps"]
    assert plan.n_train == record.details["data"]["n_train"]
    assert plan.itemsize == 8
    assert plan.memory > 8 * plan.parameters


@pytest.mark.parametrize("name", ["collapsed", "counts", "classes"])
def test_a_dry_run_takes_steps_on_random_data(name):
    from bayesrule.tasks.dry_run import dry_run

    config = compose([*SMALL, *RUNS[name]])
    assert isinstance(dry_run(plan_arm("study", "arm", [config])), list)


REFUSED = {
    "task=gp trainer.devices=2 trainer.strategy=ddp": "trainer.devices has no meaning",
    "task=gp trainer.precision=32-true": "need float64",
    "task=gp trainer.micro_batch_size=5": "task.batch_size is the batch",
    "task=gp trainer.clip_grad_norm=1": "trainer.clip_grad_norm",
    "task=gp trainer.compile=true": "trainer.compile",
    "task=gp callbacks.patience=3": "task.iterations",
    "task=gp metrics.linearised=true": "metrics.linearised",
    "task=gp metrics.curvature=true": "metrics.curvature",
    "task=gp posterior=sgpr data=diabetes task.batch_size=10": "no mini-batches",
    "task=gp posterior=sgpr data=diabetes task.iterations=1": "nothing would be learnt",
    "task=gp posterior=sgpr data=two_moons": "Gaussian likelihood",
    "task=gp data=two_moons task.likelihood=gaussian": "bernoulli_logit",
    "task=gp data=iris task.likelihood=bernoulli_probit": "softmax",
    "task=gp data=diabetes task.likelihood=poisson": "needs counts",
    "task=gp data=diabetes model.inducing=500": "397 training rows|398 distinct inputs",
    "task=gp data=diabetes model.inducing_init=grid": "single input",
    "task=gp data=tiny_shakespeare": "tables of inputs",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_has_no_meaning_is_refused_in_a_sentence_before_anything_is_learnt(words, tmp_path):
    if "tiny_shakespeare" in words:
        config = compose(words.split())
        with pytest.raises(ConfigError, match=REFUSED[words]):
            plan_arm("study", "arm", [config])
        return
    store = RunStore(tmp_path)
    config = compose([*words.split(), "trainer.progress=false"])
    with pytest.raises(ConfigError, match=REFUSED[words]) as refusal:
        execute(config, store)
    assert len(str(refusal.value).split()) >= 6
    assert not store.folder(config).is_done()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("posterior=dual_svgp", r"posterior=dual_svgp is for Gaussian processes and task=superv"),
        ("model=gp", r"model=gp is for Gaussian processes .* choose task=gp, or one of model="),
        ("task=gp posterior=ivon", r"posterior=ivon is for networks and task=gp .*=dual_svgp"),
        ("task=gp model=mlp", r"model=mlp is for networks"),
        ("task=gp posterior=swag", r"posterior=swag"),
        ("posterior=swag posterior.base=sgpr", r"posterior\.base=sgpr is for Gaussian processes"),
        ("task=step_cost posterior=svgp_adam", r"posterior=svgp_adam .* task=step_cost"),
        ("task=gp posterior.storge=projected", r"did you mean 'posterior\.storage'"),
        ("task=gp task.iteratons=3", r"did you mean 'task\.iterations'"),
    ],
)
def test_kinds_do_not_mix(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose(words.split())
