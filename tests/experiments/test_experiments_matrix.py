"""Posterior x task x kind of data: each combination runs, or is refused with a sentence."""

import math

import pytest
from experiment_rules import is_optimiser, rules

from bayesrule.config import compose
from bayesrule.config.compose import group_options
from bayesrule.config.kinds import of_kind
from bayesrule.errors import BayesruleError, ConfigError, Unsupported
from bayesrule.runs import RunStore
from bayesrule.tasks.dry_run import dry_run
from bayesrule.tasks.execute import execute
from bayesrule.tasks.plan import plan_arm

POSTERIORS = of_kind("posterior", "network")
PROCESSES = of_kind("posterior", "gp")
OPTIONS = {name: compose([f"posterior={name}"])["posterior"] for name in POSTERIORS}
OPTIMISERS = {name for name in POSTERIORS if is_optimiser(OPTIONS[name])}
# the models of this matrix have biases and norms: all of them binary
CHOOSE = {
    name: [f"posterior={name}", *(["posterior.binary=all"] if "binary" in OPTIONS[name] else [])]
    for name in POSTERIORS
}
TINY = [
    *("trainer.epochs=1", "trainer.max_steps=3", "trainer.progress=false"),
    *("metrics.mc_samples=2", "metrics.prefixes=[1]", "metrics.ece_null_draws=2"),
]
MLP = ["model=mlp", "model.hidden=[8]"]
DIGITS = ["data=digits", "data.train_size=150", "data.test_size=100", *MLP]
TEXT = [
    *("data=tiny_shakespeare", "data.block_size=8", "model=gpt_char", "model.depth=1"),
    *("model.width=8", "model.heads=2"),
]
_SIZES = (64 * 8, 8, 8 * 10, 10)  # of the weights and biases of MLP on digits
_FACTORS = (8**2 + 64**2, 8**2, 10**2 + 8**2, 10**2)  # kept twice: running, and as last inverted
_KFAC = (sum(_SIZES) + 2 * sum(_FACTORS)) / sum(_SIZES)
VECTORS = {
    "ivon": 2, "adamw": 2, "sgd": 1, "sam": 1, "vogn": 2, "bsam": 2, "bbb": 5, "kfac": _KFAC,
    "noisy_kfac": _KFAC,
}  # fmt: skip
POINTS = {"adamw", "sgd", "sam", "asam", "sam_adamw"}
REFUSES_TEXT = {  # why a posterior does not learn the language model
    **{p: "one output vector per item" for p in POSTERIORS if p.startswith("laplace")},
    "kfac": "no Kronecker factors", "noisy_kfac": "no Kronecker factors",
    "vogn": "one loss term per example", "ogn": "one loss term per example",
}  # fmt: skip
TASK_WORDS = {
    "supervised": [],
    "step_cost": ["task.steps=10"],
    "lora": ["model.weights=tiny"],
    "continual": ["scenario=split", "scenario.n_tasks=2"],
    "federated": ["task.clients=2", "task.rounds=2", "task.partition=iid"],
    "rl": ["task.env_steps=60", "task.learning_starts=56", "task.eval_episodes=1"],
    "merging": ["task.base_size=10", "task.group_size=5", "task.alphas=[0.5,1]"],
    "adaptation": ["data.scaling=unit", "task.labels=parity", "model=mlp", "model.hidden=[8]"],
    "gp": ["trainer.max_steps=6", "task.e_steps=2", "task.m_steps=2", "model.inducing=10"],
}


def run(store, *words):
    return execute(compose([*TINY, *words]), store, tell=lambda text: None)


def rules_of(record):
    return {name.partition("@")[2] for name in record.metrics if name.startswith("test/nll@")}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("matrix"))


def test_every_task_is_in_the_matrix():
    assert set(TASK_WORDS) == set(group_options("task"))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_classification(store, posterior):
    record = run(store, *CHOOSE[posterior], "task=supervised", *DIGITS)
    assert record.status == "done", record.error
    assert rules_of(record) | {"mc1"} == rules(record.config)  # fewer draws: not of a point
    for rule in rules_of(record):
        nll, acc = record.metrics[f"test/nll@{rule}"], record.metrics[f"test/acc@{rule}"]
        # three steps from log 10; binary weights are large
        assert 0.5 < nll < (5.0 if "binary" not in OPTIONS[posterior] else 50.0)
        assert 0.0 <= acc <= 1.0
    assert record.details["parameters"] == 64 * 8 + 8 + 8 * 10 + 10


@pytest.mark.parametrize("data", ["diabetes", "toy_regression"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_regression(store, posterior, data):
    words = [f"data={data}", "trainer.batch_size=20", *MLP]
    record = run(store, *CHOOSE[posterior], "task=supervised", *words)
    assert record.status == "done", record.error
    for rule in rules_of(record):
        assert math.isfinite(record.metrics[f"test/nll@{rule}"])
        assert record.metrics[f"test/rmse@{rule}"] > 0.0


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_language_model(posterior):
    """On random tokens, since no package ships a text."""
    config = compose([*TINY, *CHOOSE[posterior], *TEXT])
    arm = plan_arm("matrix", posterior, [config])
    if posterior in REFUSES_TEXT:
        with pytest.raises(Unsupported, match=REFUSES_TEXT[posterior]) as refusal:
            dry_run(arm)
        assert_sentence(refusal.value)
    else:
        dry_run(arm)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_step_cost(store, posterior):
    words = [*CHOOSE[posterior], "task=step_cost", *TASK_WORDS["step_cost"], *DIGITS]
    if posterior in OPTIMISERS:
        record = run(store, *words)
        assert record.status == "done", record.error
        assert record.metrics["cost/step_ms"] > 0.0
        vectors = record.metrics["cost/state_ratio"] * 2  # AdamW keeps two
        assert vectors == pytest.approx(VECTORS.get(posterior, round(vectors)))
        assert vectors >= 1
        return
    with pytest.raises(ConfigError, match=r"task=step_cost times the steps of one optimiser"):
        run(store, *words)
    assert not store.folder(compose([*TINY, *words])).is_done()


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_lora(store, posterior):
    """On texts made by code and a small random transformer: no package, no mirror."""
    sizes = ["data.train_size=48", "data.test_size=40", "trainer.batch_size=16"]
    words = ["task=lora", *CHOOSE[posterior], *TASK_WORDS["lora"], *sizes]
    record = run(store, *words)
    assert record.status == "done", record.error
    for rule in rules_of(record):
        assert math.isfinite(record.metrics[f"test/nll@{rule}"])
    folder = store.folder(record.config).path
    adapters = sorted(path.name for path in folder.glob("adapter*"))
    assert adapters == (
        ["adapter"]
        if "mean" in rules_of(record)
        else [f"adapter-{k}" for k in range(len(adapters))]
    )
    assert all((folder / name / "adapter_model.safetensors").is_file() for name in adapters)


@pytest.mark.parametrize("env", ["cartpole", "four_rooms"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_reinforcement_learning(store, posterior, env):
    """Every optimiser learns a Q-network; what builds on other trainings is refused."""
    words = ["task=rl", *CHOOSE[posterior], f"env={env}", *TASK_WORDS["rl"], *MLP]
    if posterior in OPTIMISERS:
        record = run(store, *words)
        assert record.status == "done", record.error
        assert record.details["steps"] == 3
        assert math.isfinite(record.metrics["q/max"])
        assert math.isfinite(record.metrics["test/return@mean"])
        dry_run(plan_arm("matrix", posterior, [compose([*TINY, *words])]))
        return
    with pytest.raises(ConfigError, match=r"learns one Q-network by one optimiser") as refusal:
        run(store, *words)
    assert_sentence(refusal.value)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_continual_learning(store, posterior):
    """Optimisers and dropout learn a stream; what builds on whole trainings is refused."""
    words = ["task=continual", *CHOOSE[posterior], *TASK_WORDS["continual"], *DIGITS]
    if posterior in OPTIMISERS | {"mc_dropout"}:
        record = run(store, *words, "trainer.batch_size=10")
        assert record.status == "done", record.error
        assert record.details["steps"] == 6
        assert rules_of(record) | {"mc1"} == rules(record.config)
        for rule in rules_of(record):
            assert math.isfinite(record.metrics[f"test/forgetting@{rule}"])
        if posterior in ("adamw", "vogn", "mc_dropout"):
            dry_run(plan_arm("matrix", posterior, [compose([*TINY, *words])]))
        return
    with pytest.raises(ConfigError, match=r"goes on with one posterior") as refusal:
        run(store, *words)
    assert_sentence(refusal.value)
    assert not store.folder(compose([*TINY, *words])).is_done()


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_merging(store, posterior, tmp_path, monkeypatch):
    """Models of every optimiser are merged; what builds on other trainings is refused."""
    monkeypatch.setenv("BAYESRULE_CACHE", str(tmp_path))
    words = ["task=merging", *CHOOSE[posterior], *TASK_WORDS["merging"], *DIGITS]
    words += ["task.curvature=observed", "trainer.batch_size=20"]
    if posterior not in OPTIMISERS:
        with pytest.raises(ConfigError, match=r"trains each model by one optimiser") as refusal:
            run(store, *words)
        assert_sentence(refusal.value)
        return
    if posterior == "adamw":
        dry_run(plan_arm("matrix", posterior, [compose([*TINY, *words])]))
    record = run(store, *words)
    assert record.status == "done", record.error
    assert record.details["steps"] == 3 + 3 + 3
    assert math.isfinite(record.metrics["alpha0.5/nll@mean"])


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_adaptation(store, posterior):
    """Point estimates of one optimiser are adapted; the objective has the only regulariser."""
    words = ["task=adaptation", *CHOOSE[posterior], *TASK_WORDS["adaptation"], *DIGITS[:3]]
    if "weight_decay" in OPTIONS[posterior]:
        words.append("posterior.weight_decay=0")
    if posterior in POINTS:
        record = run(store, *words)
        assert record.status == "done", record.error
        assert math.isfinite(record.metrics["m0.2/nll@mean"])
        return
    with pytest.raises(ConfigError, match=r"task=adaptation adapts point estimates") as refusal:
        run(store, *words)
    assert_sentence(refusal.value)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_federated_learning(store, posterior):
    """Optimisers run on clients; what builds on whole trainings is refused."""
    words = ["task=federated", *CHOOSE[posterior], *TASK_WORDS["federated"], *DIGITS]
    if posterior in OPTIMISERS:
        record = run(store, *words, "trainer.batch_size=50")
        assert record.status == "done", record.error
        assert math.isfinite(record.metrics["test/nll@mean"])
        return
    with pytest.raises(ConfigError, match=r"one optimiser on every client") as refusal:
        run(store, *words)
    assert_sentence(refusal.value)


@pytest.mark.parametrize("data", ["diabetes", "two_moons", "iris"])
@pytest.mark.parametrize("posterior", PROCESSES)
def test_gaussian_processes(store, posterior, data):
    words = ["task=gp", f"posterior={posterior}", *TASK_WORDS["gp"], f"data={data}"]
    if posterior == "sgpr" and data != "diabetes":
        with pytest.raises(
            ConfigError, match=r"collapsed bound of a Gaussian likelihood"
        ) as refusal:
            run(store, *words)
        assert_sentence(refusal.value)
        return
    record = run(store, *words)
    assert record.status == "done", record.error
    assert math.isfinite(record.metrics["train/elbo"])
    for rule in ("mean", "mc2" if data == "iris" else "quad"):
        assert math.isfinite(record.metrics[f"test/nll@{rule}"])


@pytest.mark.parametrize("posterior", [*POSTERIORS, *PROCESSES])
@pytest.mark.parametrize("task", group_options("task"))
def test_a_task_takes_posteriors_of_its_kind(posterior, task):
    kinds = {posterior in PROCESSES, task in of_kind("task", "gp")}
    if len(kinds) == 1:
        return
    with pytest.raises(
        ConfigError, match=rf"posterior={posterior} is for .* task={task}"
    ) as refusal:
        compose([f"task={task}", f"posterior={posterior}"])
    assert_sentence(refusal.value)


def test_swag_on_too_few_steps_is_refused_before_training(store):
    words = ["posterior=swag", "trainer.max_steps=2", *DIGITS]
    with pytest.raises(ConfigError, match=r"would collect 1 of the weights of 2 steps") as refusal:
        run(store, *words)
    assert_sentence(refusal.value)


@pytest.mark.parametrize("posterior", sorted(set(POSTERIORS) - OPTIMISERS))
@pytest.mark.parametrize("inner", POSTERIORS)
def test_parts_of_composites(posterior, inner):
    """Ensembles take any member; what collects or bends one training takes an optimiser only."""
    part = "member" if posterior == "deep_ensemble" else "base"
    config = compose([*TINY, *DIGITS, f"posterior={posterior}", f"posterior.{part}={inner}"])
    if part == "member" or inner in OPTIMISERS:
        arm = plan_arm("matrix", posterior, [config])
        assert arm.steps == 3 * (5 if posterior == "deep_ensemble" else 1) * (
            5 if inner == "deep_ensemble" else 1
        )
        return
    with pytest.raises(ConfigError, match=r"posterior.base: .* builds on one training") as refusal:
        plan_arm("matrix", posterior, [config])
    assert_sentence(refusal.value)


def assert_sentence(error):
    assert isinstance(error, BayesruleError)
    text = str(error)
    assert len(text.split()) >= 6
    assert "Traceback" not in text
    assert "object at 0x" not in text
