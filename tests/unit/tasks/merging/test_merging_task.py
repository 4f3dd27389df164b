"""task=merging: parts, phases, the shared cache, removal, refusals; on a few digits, in seconds."""

import signal

import pytest
import torch

from bayesrule.cli.main import main
from bayesrule.config import compose
from bayesrule.curvature import ggn_diag
from bayesrule.data import load_data
from bayesrule.errors import ConfigError
from bayesrule.merging import merge
from bayesrule.merging.methods import METHODS
from bayesrule.posteriors import DiagonalGaussian, load_posterior
from bayesrule.runs import RunStore
from bayesrule.tasks.execute import execute
from bayesrule.tasks.merging import training
from bayesrule.tasks.merging.parts import make_parts
from bayesrule.tasks.merging.training import Workshop
from bayesrule.tasks.reevaluate import reevaluate
from bayesrule.tasks.signals import Stopped

WORDS = [
    "task=merging", "data=digits", "data.train_size=200", "data.val_fraction=0.1",
    "data.test_size=300", "model.hidden=[8]", "posterior.lr=0.01", "task.base_size=60",
    "task.group_size=5", "task.base.epochs=15", "trainer.epochs=8", "task.alphas=[0.5,1]",
    "metrics.mc_samples=2", "metrics.prefixes=[1]", "metrics.ece_null_draws=2",
    "trainer.progress=false",
]  # fmt: skip
REMOVAL = ["task.parts=mislabelled", "task.bad_size=5", "task.base_size=120"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESRULE_CACHE", str(tmp_path / "cache"))


def run(tmp_path, *words, runs="runs"):
    record = execute(compose([*WORDS, *words]), RunStore(tmp_path / runs), tell=lambda text: None)
    assert record.status == "done", record.error
    return record


@pytest.fixture
def counted(monkeypatch):
    calls = []
    first = Workshop._fit

    def fit(self, phase, *args):
        calls.append(phase)
        return first(self, phase, *args)

    monkeypatch.setattr(Workshop, "_fit", fit)
    return calls


def test_runs_that_differ_in_the_rule_share_what_is_trained(tmp_path, counted):
    ug = run(tmp_path, "task.joint=all")
    phases = ["base", "task-classes0_1_2_3_4", "task-classes5_6_7_8_9", "joint2"]
    assert counted == phases
    ta = run(tmp_path, "merge=task_arithmetic", "task.joint=all", "task.alphas=[0.2,1]")
    assert counted == phases  # nothing was trained again
    for name in ("base/nll@mean", "joint/acc@mean", "models/classes0_1_2_3_4/nll@mean"):
        assert ug.metrics[name] == ta.metrics[name]
    assert ug.metrics["alpha1/nll@mean"] != ta.metrics["alpha1/nll@mean"]
    assert ug.details["steps"] == 15 + 3 * 8
    run(tmp_path, "task.joint=all", "trainer.epochs=7")
    assert counted == phases * 2


def test_metrics_are_those_of_the_merged_model(tmp_path):
    """Trained models from the cache, merged and scored again by hand."""
    record = run(tmp_path)
    (file,) = (tmp_path / "cache" / "merging").glob("*.pt")
    held = torch.load(file, weights_only=True)
    config = compose(WORDS)
    data = load_data(config["data"], seed=0, cache_dir=tmp_path / "cache")
    x, y = (data.test.whole()[key] for key in ("input", "target"))

    def nll(p):
        h = torch.tanh(x.flatten(1) @ p[first].mT + p[first.replace("weight", "bias")])
        out = h @ p[second].mT + p[second.replace("weight", "bias")]
        return float(torch.nn.functional.cross_entropy(out, y))

    first, second = [n for n in held["base"] if n.endswith("weight")]
    theta0, H0 = held["base"], held["base_curvature"]
    for alpha in (0.5, 1.0):
        merged = {}
        for n in theta0:
            hbar = H0[n] + alpha * sum(H[n] for H in held["curvatures"])
            pull = sum(
                (H0[n] + H[n]) * (m[n] - theta0[n])
                for m, H in zip(held["models"], held["curvatures"])
            )
            merged[n] = theta0[n] + alpha * pull / hbar
        assert record.metrics[f"alpha{alpha:g}/nll@mean"] == pytest.approx(nll(merged), rel=1e-4)
    assert record.metrics["base/nll@mean"] == pytest.approx(nll(theta0), rel=1e-5)
    assert record.metrics["tuned/alpha"] in (0.5, 1.0)
    best = record.metrics["tuned/alpha"]
    assert record.metrics["tuned/nll@mean"] == record.metrics[f"alpha{best:g}/nll@mean"]
    assert record.metrics["test/nll@mean"] == pytest.approx(record.metrics["tuned/nll@mean"], 1e-5)


def test_the_tasks_are_fitted_beside_the_anchor(tmp_path):
    """Curvatures are those of the data; H_0 has the prior; the anchor holds the models back."""
    run(tmp_path, "trainer.epochs=150")
    run(tmp_path, "trainer.epochs=150", "task.anchor=false")
    near, far = (
        torch.load(f, weights_only=True)
        for f in sorted(
            (tmp_path / "cache" / "merging").glob("*.pt"), key=lambda f: f.stat().st_mtime
        )
    )

    def moved(held):
        return sum(
            float((H * (m[n] - held["base"][n]).square()).sum())
            for m in held["models"]
            for n, H in held["base_curvature"].items()
        )

    assert moved(near) < 0.8 * moved(far)
    assert all(torch.equal(near["base"][n], far["base"][n]) for n in near["base"])
    assert min(float(H.min()) for H in near["base_curvature"].values()) >= 1.0
    config = compose(WORDS)
    data = load_data(config["data"], seed=0, cache_dir=tmp_path / "cache")
    parts = make_parts(config["task"], data, lambda name: data)
    from bayesrule.likelihoods import Categorical
    from bayesrule.models import build_model

    model = build_model(config["model"], input_shape=(1, 8, 8), n_outputs=10, seed=0)
    model.load_state_dict(near["models"][1])
    H = ggn_diag(model, Categorical(), [parts.tasks[1].train.whole()])
    for n, h in near["curvatures"][1].items():
        torch.testing.assert_close(h, H[n])


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("weighted", "slerp", "dare_ties")]
)
def test_every_rule(tmp_path, method):
    record = run(tmp_path, f"merge={method}")
    assert 0.0 < record.metrics["tuned/nll@mean"] < 20.0
    assert ("alpha1/nll@mean" in record.metrics) == METHODS[method].scaled


def test_removal(tmp_path):
    record = run(tmp_path, *REMOVAL)
    (file,) = (tmp_path / "cache" / "merging").glob("*.pt")
    held = torch.load(file, weights_only=True)
    options = dict(base=held["base"], curvatures=held["curvatures"])
    from bayesrule.merging import MergeOptions

    merged, _, report = merge(
        "gradient_matching", held["models"], base_curvature=held["base_curvature"],
        options=MergeOptions(alphas=[-1.0], floor=0.1), **options,
    )  # fmt: skip
    distance = sum(float((merged[n] - held["without"][n]).double().square().sum()) for n in merged)
    assert record.metrics["alpha1/distance"] == pytest.approx(distance**0.5, rel=1e-6)
    assert record.metrics["alpha1/floored"] == report["floored"]
    for name in ("base", "without", "alpha0.5", "tuned"):
        assert 0.0 <= record.metrics[f"{name}/test_bad/acc@mean"] <= 1.0
    assert record.details["parts"]["trained"]["bad"]["n"] == 5


def test_the_tuned_posterior_is_stored(tmp_path):
    record = run(tmp_path)
    folder = RunStore(tmp_path / "runs").get(record.id)
    assert isinstance(load_posterior(folder.path), DiagonalGaussian)
    again = reevaluate(folder).metrics
    for name, value in again.items():
        assert record.metrics[name] == value


def test_a_stopped_run_goes_on_between_the_models(tmp_path, monkeypatch):
    """And is bit-equal to one that was not stopped."""
    first = Workshop._fit

    def fit(self, phase, *args):
        if phase.startswith("task-classes5"):
            raise Stopped(signal.SIGTERM)
        return first(self, phase, *args)

    monkeypatch.setattr(Workshop, "_fit", fit)
    with pytest.raises(Stopped):
        execute(compose(WORDS), RunStore(tmp_path / "runs"), tell=lambda text: None)
    seen = []
    monkeypatch.setattr(Workshop, "_fit", first)
    learn = training.Problem.fit

    def watched(self, model, optimizer, phase, **keys):
        before = [p.detach().clone() for p in model.parameters()]
        learn(self, model, optimizer, phase, **keys)
        seen.append((phase, before))

    monkeypatch.setattr(training.Problem, "fit", watched)
    resumed = run(tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("BAYESRULE_CACHE", str(tmp_path / "other"))
    whole = run(tmp_path, runs="others")
    assert resumed.metrics == whole.metrics
    histories = [
        next((tmp_path / name).glob("*/metrics.jsonl")).read_bytes() for name in ("runs", "others")
    ]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["posterior=deep_ensemble"], "trains each model by one optimiser"),
        (["task.parts=data_sets"], "name the data sets"),
        (["task.base_size=180"], "has 180 training rows"),
        ([*REMOVAL, "task.bad_size=100"], "training rows of class 7 are left"),
        ([*REMOVAL, "task.bad_label=7"], "two of the 10 classes"),
        (["task.parts=data_sets", "task.sets=[mnist5k]"], "merged models share both"),
        (["data=diabetes"], "is for classes"),
        (["model=minilm", "data=toy_text", "model.tune=lora"], "merged in their product"),
        (["task.parts=data_sets", "task.sets=[digits]", "task.set_sizes=[1,2]"], "one number of"),
    ],
)
def test_refusals(tmp_path, words, message):
    alone = ("data=diabetes", "posterior=deep_ensemble", "model=minilm")
    own = WORDS[:1] if words[0] in alone else WORDS
    with pytest.raises(ConfigError, match=message):
        execute(compose([*own, *words]), RunStore(tmp_path / "runs"), tell=lambda text: None)


def test_merge_belongs_to_its_task(capsys):
    assert main(["train", "merge=ties"]) == 2
    assert "with task=merging" in capsys.readouterr().err


def test_curvature_that_the_optimiser_learnt(tmp_path):
    record = run(tmp_path, "posterior=ivon", "task.curvature=posterior")
    assert record.metrics["tuned/nll@mean"] > 0.0
    with pytest.raises(ConfigError, match="learns a Gaussian"):
        run(tmp_path, "task.curvature=posterior")


@pytest.mark.parametrize("posterior", ["ivon", "vogn"])
def test_learnt_curvature_is_that_of_the_data(tmp_path, posterior):
    """A strong prior counts once in H_0 and not in H_t, whether or not the optimiser sees it."""
    words = ["task.base_prior=50", "task.base.epochs=400", "trainer.epochs=400"]
    own = [f"posterior={posterior}", "task.curvature=posterior"]
    own += {"ivon": ["posterior.hess_init=1", "posterior.beta2=0.99"],
            "vogn": ["posterior.prior_prec=5"]}[posterior]  # fmt: skip
    run(tmp_path, *words, *own)
    (file,) = (tmp_path / "cache" / "merging").glob("*.pt")
    held = torch.load(file, weights_only=True)

    def mean(H):
        return float(torch.cat([h.flatten() for h in H.values()]).mean())

    assert 50.5 < mean(held["base_curvature"]) < 55.0
    assert all(1.0 < mean(H) < 5.0 for H in held["curvatures"])


def test_a_run_becomes_a_folder_that_is_merged(tmp_path, monkeypatch, capsys):
    """`evaluate --curvature` beside `merge`, on runs of task=supervised; H is that of the data."""
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path / "runs"))
    store = RunStore(tmp_path / "runs")
    plain = [w for w in WORDS if not w.startswith("task")]
    folders = []
    for seed in (0, 1):
        config = compose([*plain, "trainer.epochs=2", f"seed={seed}", "posterior=ivon"])
        record = execute(config, store, tell=lambda text: None)
        for kind in ("posterior", "gram", "ggn"):
            out = str(tmp_path / f"model{seed}")
            words = ["evaluate", record.id, "--curvature", kind, "--out", out]
            assert main(words) == 0
        folders.append(tmp_path / f"model{seed}")
    words = ["--method", "fisher", "--out", str(tmp_path / "merged"), *map(str, folders)]
    assert main(["merge", *words]) == 0
    from safetensors.torch import load_file

    theta, H = (
        [load_file(f / name) for f in folders]
        for name in ("model.safetensors", "curvature.safetensors")
    )
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for n, t in found.items():
        known = H[0][n] + H[1][n] > 0
        mean = (H[0][n] * theta[0][n] + H[1][n] * theta[1][n]) / (H[0][n] + H[1][n])
        torch.testing.assert_close(t[known], mean[known], rtol=1e-5, atol=1e-6)
    assert main(["evaluate", record.id, "--curvature", "ggn"]) == 2
    q = load_posterior(store.get(record.id).path)
    about = ["evaluate", record.id, "--curvature", "posterior", "--out", str(folders[1])]
    assert main(about) == 0
    learnt = load_file(folders[1] / "curvature.safetensors")
    options = record.config["posterior"]
    prior = options["ess_factor"] * 180 * options["weight_decay"]
    for n, h in learnt.items():
        torch.testing.assert_close(h, (q.precision[n] - prior).clamp_min(0.0))


def test_models_come_from_runs_and_folders(tmp_path, monkeypatch):
    """What is merged is what was trained there; nothing is trained here."""
    monkeypatch.setenv("BAYESRULE_RUNS", str(tmp_path / "runs"))
    store = RunStore(tmp_path / "runs")
    plain = [w for w in WORDS if not w.startswith("task")]
    ids = []
    for seed in (0, 1, 2):
        config = compose([*plain, "trainer.epochs=2", "data.split_seed=0", f"seed={seed}"])
        ids.append(execute(config, store, tell=lambda text: None).id)
    folder = str(tmp_path / "model")
    assert main(["evaluate", ids[2], "--curvature", "ggn", "--out", folder]) == 0
    monkeypatch.setattr(training.Problem, "fit", None)  # a training would fail
    words = [f"task.base_from={ids[0]}", f"task.models_from=[{ids[1]},{folder}]"]
    record = run(tmp_path, *words, "merge=task_arithmetic", "task.alphas=[1]")
    assert record.details["steps"] == 0
    theta = [load_posterior(store.get(i).path).mean for i in ids]
    found = load_posterior(store.get(record.id).path).mean
    for n, t in found.items():
        torch.testing.assert_close(t, theta[1][n] + theta[2][n] - theta[0][n])
    for bad, message in (
        (["task.base_from=0000", "task.models_from=[]"], "no run"),
        ([words[0], f"task.models_from=[{ids[1]}]"], "1 models for 2 tasks"),
        ([words[1]], "say in task.base_from"),
        ([*words, "model.hidden=[9]"], r"has shape \[8, 64\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            execute(compose([*WORDS, *bad]), store, tell=lambda text: None)
