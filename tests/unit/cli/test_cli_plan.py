"""bayesrule plan: its numbers against closed forms and real runs; dry runs that must fail, fail."""

import copy
import math

import pytest
import torch
import yaml

from bayesrule.cli.main import main
from bayesrule.config import compose, experiments_dir
from bayesrule.data import load_data
from bayesrule.data.catalogue import complete
from bayesrule.errors import BayesruleError, ConfigError, NonFiniteLoss
from bayesrule.models import build_model, count_parameters
from bayesrule.runs import load_paper, parse_paper
from bayesrule.tasks.availability import availability
from bayesrule.tasks.dry_run import available_memory, dry_config, dry_run
from bayesrule.tasks.plan import needed, plan_arm, plan_paper, select
from bayesrule.tasks.step_memory import step_vectors

SMALL = ["model.hidden=[8]"]


def plan(*words, seeds=(0,)):
    configs = []
    for seed in seeds:
        configs.append({**compose(list(words)), "seed": seed})
    return plan_arm("study", "arm", configs)


# --------------------------------------------------------------------- numbers


def test_steps_and_parameters_are_those_of_a_real_run(tmp_path):
    from bayesrule.runs import RunStore
    from bayesrule.tasks.execute import execute

    config = compose([*SMALL, "trainer.epochs=2", "data.val_fraction=0.1", "metrics.mc_samples=1"])
    config["trainer"]["progress"] = False
    record = execute(config, RunStore(tmp_path))
    found = plan_arm("s", "a", [config])
    assert found.steps == record.details["steps"] == 2 * math.ceil(720 / 50)
    assert found.parameters == record.details["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert found.n_train == record.details["data"]["n_train"]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], 20 * 16),
        (["trainer.max_steps=7"], 7),
        (["trainer.epochs=3", "trainer.batch_size=300"], 3 * 3),
        (["posterior=deep_ensemble", "posterior.members=4", "trainer.epochs=1"], 4 * 16),
        (["posterior=swag", "trainer.epochs=1"], 16),
        (["task=step_cost", "task.steps=10"], 2 * (10 + 5)),
    ],
)
def test_steps_of_a_run(words, steps):
    assert plan(*SMALL, *words).steps == steps


@pytest.mark.parametrize(
    ("words", "state", "held"),
    [
        (["posterior=sgd"], 1, 0),
        (["posterior=sgd", "posterior.momentum=0"], 0, 0),
        (["posterior=adamw"], 2, 0),
        (["posterior=sam"], 1, 2),  # the kept mean, the first gradient
        (["posterior=ivon"], 2, 2),  # the kept mean, the noise that becomes the statistic
        (["posterior=ivon", "posterior.mc_samples=2"], 2, 4),  # and two running sums
        (["posterior=ivon", "posterior.mc_samples=5"], 2, 4),
    ],
)
def test_vectors_of_a_step_are_measured(words, state, held):
    """An upper estimate: never below the vectors that the method needs, and less than one above."""
    found = step_vectors(compose(words)["posterior"])
    assert found.state == state
    assert held <= found.held < held + 1.0
    assert found.total == pytest.approx(2 + found.state + found.held)


def test_measuring_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    step_vectors(compose(["posterior=ivon", "posterior.lr=0.123"])["posterior"])
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_is_numbers_times_vectors_times_bytes():
    single = plan(*SMALL, "posterior=adamw")
    assert single.memory == single.parameters * single.vectors.total * 4
    double = plan(*SMALL, "posterior=adamw", "trainer.precision=64-true")
    assert double.memory == 2 * single.memory
    sharded = plan(*SMALL, "posterior=adamw", "trainer=fsdp", "trainer.batch_size=64")
    assert sharded.memory == single.memory / 8
    ddp = plan(*SMALL, "posterior=adamw", "trainer=ddp", "trainer.batch_size=64")
    assert ddp.memory == single.memory
    swag = plan(*SMALL, "posterior=swag", "posterior.rank=7")
    assert swag.kept == 7 + 2
    assert swag.memory > plan(*SMALL, "posterior=sgd").memory + 9 * 4 * swag.parameters - 1


def test_place_says_processes_strategy_and_precision():
    found = plan(*SMALL, "trainer=fsdp", "trainer.batch_size=64")
    assert found.place == "8 x gpu, fsdp, bf16-mixed"
    assert plan(*SMALL).place == "1 x cpu, 32-true"


def test_what_cannot_be_run_is_refused():
    with pytest.raises(ConfigError, match=r"multiple of the 8 processes"):
        plan(*SMALL, "trainer=ddp", "trainer.batch_size=50")
    with pytest.raises(ConfigError, match=r"needs images of shape"):
        plan("model=resnet18", "data=iris")
    with pytest.raises(ConfigError, match=r"posterior.base: SWAG builds on one training"):
        plan(*SMALL, "posterior=swag", "posterior.base=deep_ensemble")


# ------------------------------------------------------------------------ data


def test_availability_follows_the_three_sources(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "BAYESRULE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert availability(complete({"name": "two_moons"})).text == "made by code"
    digits = availability(complete({"name": "digits"}))
    assert (digits.here, digits.text) == (True, "package scikit-learn")
    cifar = complete({"name": "cifar10"})
    assert not availability(cifar).here
    assert "hub uoft-cs/cifar10" in availability(cifar).text
    (tmp_path / "hf" / "datasets" / "uoft-cs___cifar10" / "default").mkdir(parents=True)
    assert availability(cifar).text == "hub uoft-cs/cifar10, in the cache"
    (tmp_path / "mirror" / "cifar10").mkdir(parents=True)
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path / "mirror"))
    assert "in the cache" in availability(cifar).text  # an empty folder serves nothing
    (tmp_path / "mirror" / "cifar10" / "train.parquet").write_bytes(b"")
    assert availability(cifar).text == "mirror $BAYESRULE_DATA/cifar10"


def test_companions_are_needed_too():
    found = needed([plan("data=mnist5k", "data.ood=[random_images]")])
    assert list(found) == ["mnist5k", "random_images"]
    assert all(each.here for each in found.values())


def test_declared_sizes_are_those_of_the_loaded_set(tmp_path):
    for name in ("digits", "diabetes", "two_moons"):
        config = compose([f"data={name}", "model=mlp"])
        data = load_data(config["data"], seed=0, cache_dir=tmp_path)
        assert plan_arm("s", "a", [config]).n_train == len(data.train)


# -------------------------------------------------------------------- dry runs


@pytest.mark.parametrize(
    "words",
    [
        ["posterior=ivon"],
        ["posterior=ivon", "posterior.mc_samples=2", "trainer.micro_batch_size=1"],
        ["posterior=sam", "trainer.clip_grad_norm=0.1"],
        ["posterior=deep_ensemble", "posterior.member=ivon"],
        ["posterior=deep_ensemble", "posterior.member=swag"],
        ["posterior=swag"],
        ["posterior=mc_dropout"],
        ["posterior=laplace_kron", "metrics.linearised=true"],
        ["posterior=laplace_last_layer"],
        ["posterior=ivon", "metrics.curvature=true"],
        ["posterior=ivon", "trainer.precision=64-true"],
        ["posterior=ivon", "data=diabetes"],
        ["posterior=laplace_diag", "data=diabetes", "metrics.linearised=true"],
        ["posterior=ivon", "task=step_cost"],
        ["posterior=ivon", "trainer=ddp", "trainer.batch_size=64"],
        ["posterior=ivon", "scale=paper"],  # on a GPU, but a dry run is on the CPU
        ["task=continual", "scale=paper", "correction=ewc"],
        ["task=continual", "scale=paper", "correction=vcl", "posterior=vogn"],
    ],
    ids=" ".join,
)
def test_a_dry_run_steps(words):
    before = torch.get_rng_state()
    dry_run(plan(*SMALL, *words))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dry_run_takes_the_real_step(monkeypatch):
    """The first step's learning rate is the schedule's, and ess stands for the real data."""
    from bayesrule.optim import IVON

    arm = plan(*SMALL, "posterior.lr=0.2", "trainer.warmup=0.5", "trainer.epochs=10")
    seen = {}
    update = IVON.update

    def spy(self, statistics):
        group = self.param_groups[0]
        seen.update(lr=group["lr"], ess=group["ess"], seen=seen.get("seen", 0) + 1)
        return update(self, statistics)

    monkeypatch.setattr(IVON, "update", spy)
    dry_run(arm)
    assert seen == {"lr": pytest.approx(0.2 / 80), "ess": 800.0, "seen": 1}


def test_a_diverging_step_is_noticed():
    words = ["posterior=sgd", "posterior.lr=1e38", "trainer.warmup=0", "model.activation=relu"]
    with pytest.raises(NonFiniteLoss, match=r"prediction by rule mc1 after one step is not finite"):
        dry_run(plan(*SMALL, *words))


def test_a_wrong_combination_is_noticed():
    with pytest.raises(BayesruleError, match=r"compares a diagonal precision"):
        dry_run(plan(*SMALL, "posterior=sgd", "metrics.curvature=true"))


def test_too_large_a_model_is_cut_in_depth_and_said():
    arm = plan("model=vit_tiny", "data=cifar10", "posterior=ivon")
    assert dry_config(arm, 1e12)[1] == []
    config, notes = dry_config(arm, 1e8)
    assert config["model"]["depth"] == 2
    assert arm.config["model"]["depth"] == 12
    needed = arm.memory / 1e9
    (note,) = notes
    assert note.startswith("depth 12 -> 2 (")
    assert f"would need about {needed:.1f} GB here" in note
    small = build_model(config["model"], input_shape=(3, 32, 32), n_outputs=10, seed=0)
    assert count_parameters(small) < arm.parameters / 3


def test_gpt2_keeps_its_block_and_is_cut_when_slow():
    words = ["experiment=ivon/gpt2_773m", "scale=paper", "posterior=adamw"]
    config, notes = dry_config(plan(*words), 1e12)
    assert config["data"]["block_size"] == 1024
    assert config["model"]["depth"] == 2
    assert notes[0].startswith("depth 36 -> 2 (105M parameters): a full step of 774M")
    _, notes = dry_config(plan(*words), 20e9)
    assert "774M would need about 13." in notes[0]


def test_a_large_model_without_depth_is_refused():
    arm = plan("model=resnet18", "data=cifar10", "posterior=ivon")
    with pytest.raises(BayesruleError, match=r"11M would need about 0.3 GB.*has no depth"):
        dry_config(arm, 1e8)
    # a depth that the architecture does not allow is no way out either
    arm = plan("model=resnet20", "data=cifar10", "posterior=ivon")
    with pytest.raises(BayesruleError, match=r"cannot be reduced"):
        dry_config(arm, 1e6)


def test_an_ensemble_is_cut_to_two_members_and_said():
    arm = plan(*SMALL, "posterior=deep_ensemble", "posterior.members=5")
    config, notes = dry_config(arm, 1e12)
    assert config["posterior"]["members"] == 2
    assert notes == ["members 5 -> 2"]


def test_available_memory_is_a_sane_number():
    assert 1e8 < available_memory() < 1e14


# --------------------------------------------------------------------- command

PAPER = """
paper: {title: Digits, authors: A. Author, year: 2024}
studies:
  one:
    experiment: ivon/p2
    arms: {sgd: [posterior=sgd], ivon: [posterior=ivon], wild: [posterior=sgd, posterior.lr=1e38]}
    scales: {smoke: {seeds: "0-2", arms: [sgd, ivon]}, cpu: {seeds: "10-11"}}
  two:
    experiment: ivon/p2
    arms: {ivon: [posterior=ivon, "model.hidden=[5]"]}
    scales: {cpu: {seeds: "10-14"}}
claims: []
"""


@pytest.fixture
def paper(monkeypatch, tmp_path):
    """A small paper; the commands find it in place of the repository's own."""
    import bayesrule.cli.plan

    made = parse_paper(yaml.safe_load(PAPER), "ivon", "paper.yaml")
    monkeypatch.setattr(bayesrule.cli.plan, "load_paper", lambda folder: made)
    return made


def test_the_command_prints_arms_data_and_totals(paper, capsys):
    assert main(["plan", "toy", "--scale", "cpu"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    ivon = next(line.split() for line in lines if line.split()[:2] == ["ivon", "2"])
    P = 64 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    assert ivon[1:4] == ["2", "1,600", f"{P:,}"]
    assert any(line.split()[:4] == ["two", "ivon", "5", "1,600"] for line in lines)
    assert "digits  here  package scikit-learn" in out
    assert "not counted" in out
    steps = 1600 * (3 * 2 + 5)
    assert f"total: 2 studies, 4 arms, 11 runs, {steps:,} steps; largest {P:,}" in out
    assert "from outside: 1, 1 here" in out


def test_one_study_and_overrides(paper, capsys):
    words = ["--scale", "cpu", "--study", "two", "trainer.epochs=1"]
    assert main(["plan", "toy", *words]) == 0
    assert "total: 1 study, 1 arm, 5 runs, 80 steps;" in capsys.readouterr().out


def test_dry_run_of_the_command(paper, capsys):
    assert main(["plan", "toy", "--scale", "smoke", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "one/sgd" in out
    assert "all 2 arms ok" in out


def test_a_failing_arm_is_named_and_the_others_go_on(paper, capsys):
    words = ["model.hidden=[8]", "trainer.warmup=0", "model.activation=relu"]
    assert main(["plan", "toy", "--scale", "cpu", "--dry-run", *words]) == 1
    out, err = capsys.readouterr()
    assert "1 of 4 arms failed" in err
    assert "one/wild" in err
    (failed,) = [line for line in out.splitlines() if line.startswith("failed")]
    assert "is not finite" in failed
    assert sum(line.startswith("ok") for line in out.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["toy", "--study", "three"], "has no study 'three' (one of: one, two)"),
        (["toy", "--scale", "smoke", "--study", "two"], "is not run at scale smoke"),
        (["toy", "--scale", "paper"], "has no runs at scale 'paper'"),
        (["toy", "--scale", "cpu", "posterior.lrr=1"], "ivon/one, arm sgd: unknown key"),
        (
            ["toy", "--scale", "cpu", "trainer.devices=3"],
            "ivon/one, arm sgd: trainer.batch_size=50",
        ),
    ],
)
def test_wrong_words_are_refused(paper, capsys, words, says):
    assert main(["plan", *words]) == 2
    assert says in capsys.readouterr().err


def test_an_unknown_paper(capsys):
    assert main(["plan", "nosuch"]) == 2
    assert "nosuch" in capsys.readouterr().err


def test_seeds_count_runs_and_are_not_planned_apart():
    paper = load_paper(experiments_dir() / "ivon")
    arms = plan_paper(paper, "smoke", ["p2"])
    planned = select(paper, "smoke", ["p2"])
    assert sum(arm.runs for arm in arms) == len(planned)
    assert len(arms) == len({run.arm for run in planned})
    assert copy.deepcopy(arms[0].config)["study"] == f"ivon/p2/{arms[0].arm}"
