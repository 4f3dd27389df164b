"""The task: equal runs are equal, killed runs end as whole ones, wrong options are refused."""

import copy
import math

import pytest
import torch

from bayesrule.config import compose
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.metrics import metric_info
from bayesrule.posteriors import load_posterior
from bayesrule.runs import RunStore
from bayesrule.tasks.execute import execute
from bayesrule.tasks.plan import plan_arm
from bayesrule.tasks.rl.agent import Agent
from bayesrule.tasks.rl.qlearning import QLearning, learning_curve
from bayesrule.tasks.rl.training import Curves, Training, exploration, learning_steps
from bayesrule.tasks.signals import Stopped
from bayesrule.tasks.task import make_task

pytest.importorskip("gymnasium")
SMALL = (
    *("task=rl", "model=mlp", "model.hidden=[8]", "trainer.batch_size=8", "trainer.log_every=10"),
    *("task.env_steps=260", "task.learning_starts=50", "task.period=40", "task.window=100"),
    *("task.eval_episodes=2", "trainer.progress=false"),
)


def config(*words):
    return compose([*SMALL, *words])


def run(root, *words):
    store = RunStore(root)
    record = execute(config(*words), store, tell=lambda text: None)
    folder = store.get(record.id)
    posterior = (folder.path / "posterior.safetensors").read_bytes()
    return record, folder.metrics_path.read_bytes(), posterior


def schedule(*words):
    made = config(*words)
    return make_task(made).schedule(made["trainer"])


# -------------------------------------------------------------------------- schedules


def test_exploration_falls_linearly_and_stays():
    plan = schedule("task.env_steps=1000", "task.eps_fraction=0.2")
    assert exploration(plan, 1) == 1.0
    assert exploration(plan, 101) == pytest.approx(1.0 - 0.95 / 2)
    assert exploration(plan, 201) == exploration(plan, 1000) == pytest.approx(0.05)
    constant = schedule("task.eps_fraction=0", "task.eps_start=0.5", "task.eps_end=0.5")
    assert exploration(constant, 1) == exploration(constant, 260) == 0.5


@pytest.mark.parametrize("words", [
    (), ("task.train_every=4",), ("task.learning_starts=51",), ("trainer.max_steps=7",),
    ("task.period=1", "task.tau=0.1"),
])  # fmt: skip
def test_updates_are_counted_before_and_after(tmp_path, words):
    plan = schedule(*words)
    expected = sum(plan.learns(step) for step in range(1, plan.env_steps + 1))
    expected = min(expected, plan.max_updates or expected)
    assert learning_steps(plan) == expected
    record, _, _ = run(tmp_path, *words)
    assert record.details["steps"] == expected
    assert plan_arm("s", "a", [config(*words)]).steps == expected


def test_the_area_is_the_mean_of_windows_in_which_games_ended():
    curves = Curves(games=[(50, 10.0, 1), (90, 20.0, 1), (250, 60.0, 1), (390, 2.0, 1)])
    for step, value in ((100, 15.0), (300, 60.0), (400, 2.0)):
        curves.add("train/return", step, value)
    found = learning_curve(curves, 400)
    assert found["train/auc"] == pytest.approx((15.0 + 60.0 + 2.0) / 3)
    assert found["train/last20"] == 2.0
    assert found["train/games"] == 4.0
    assert math.isnan(learning_curve(Curves(), 400)["train/auc"])


# ------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("words", [
    ("env=cartpole", "posterior=adamw"),
    ("env=cartpole", "posterior=ivon", "task.bootstrap=online", "task.kappa=0.5"),
    ("env=four_rooms", "task.eval_every=70", "task.eval_epsilon=0.1", "task.replay=60"),
])  # fmt: skip
def test_stopped_anywhere_it_ends_as_a_whole_run(tmp_path, monkeypatch, words):
    whole = run(tmp_path / "whole", *words)
    assert whole[0].status == "done"
    real = Training._one_step

    def stopping(self):
        real(self)
        if self.step in (3, 100, 131, 132, 259, 260):  # also before learning, and at a window's end
            self.stop.signum = 15

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_one_step", stopping)
        for _ in range(6):
            with pytest.raises(Stopped):
                run(tmp_path / "stopped", *words)
    record, history, posterior = run(tmp_path / "stopped", *words)
    assert record.metrics == whole[0].metrics
    assert record.details["curves"] == whole[0].details["curves"]
    assert history == whole[1]
    assert posterior == whole[2]


def test_a_damaged_segment_sends_the_run_to_the_checkpoint_before(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    real = Training._one_step

    def stopping(self):
        real(self)
        if self.step in (90, 150):
            self._save()
        if self.step == 200:
            self.stop.signum = 15

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_one_step", stopping)
        with pytest.raises(Stopped):
            run(tmp_path / "damaged")
    newest = sorted((tmp_path / "damaged").glob("*/checkpoints/train/replay/*.segment"))[-1]
    newest.write_bytes(newest.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="checkpoint before it is used"):
        again = run(tmp_path / "damaged")
    assert again[0].metrics == whole[0].metrics
    assert again[1:] == whole[1:]


def test_arms_meet_the_same_games_and_random_actions(tmp_path):
    """Up to the first update all arms do the same, weights included."""
    words = ("task.env_steps=60", "task.learning_starts=58")
    runs = [
        run(tmp_path, *words, *arm)[0]
        for arm in ((), ("task.bootstrap=online",), ("task.kappa=1",), ("posterior=sgd",))
    ]
    assert len({record.id for record in runs}) == 4
    assert len({record.metrics["train/auc"] for record in runs}) == 1


def test_without_weight_no_target_and_regularisation_are_the_same_run(tmp_path):
    """I1 in a whole run: kappa = 0 with different periods gives the same network."""
    words = ("task.bootstrap=online", "task.kappa=0")
    first = run(tmp_path, *words, "task.period=40")
    second = run(tmp_path, *words, "task.period=7")
    assert first[2] == second[2]
    assert first[0].metrics == second[0].metrics
    third = run(tmp_path, "task.bootstrap=online", "task.kappa=0.1", "task.period=40")
    assert third[2] != first[2]


def test_the_metrics_of_a_run(tmp_path):
    record, _, _ = run(tmp_path, "env=four_rooms", "task.eval_epsilon=0.1")
    metrics = record.metrics
    assert {"q/mse", "q/max", "test/return@mean", "replay/rewarded"} <= metrics.keys()
    assert all(metric_info(name) for name in metrics)  # every key is in the table of metrics
    assert metrics["q/log_mse"] == pytest.approx(math.log(metrics["q/mse"]))
    assert -1.21 - 1e-9 <= metrics["test/return@mean"] <= 0.79
    posterior = load_posterior(RunStore(tmp_path).get(record.id).path)
    assert sum(t.numel() for t in posterior.mean_state().values()) == record.details["parameters"]


def test_the_values_learnt_solve_a_small_problem(tmp_path):
    """CartPole with gamma = 0: Q must become the reward, 1, for all actions and states."""
    words = ("task.gamma=0", "task.env_steps=600", "posterior.lr=0.01")
    record, _, _ = run(tmp_path, *words)
    assert record.metrics["q/max"] == pytest.approx(1.0, abs=0.05)


# ------------------------------------------------------------------------------ errors


def test_a_loss_that_is_not_finite_names_update_and_term(tmp_path):
    store = RunStore(tmp_path)
    words = ("posterior=sgd", "posterior.lr=1e30", "task.bootstrap=online")
    record = execute(config(*words), store, tell=lambda text: None)
    assert record.status == "failed"
    assert "the temporal-difference loss is" in record.error[1]
    assert "at update" in record.error[1]
    assert not list(tmp_path.glob("*/posterior.*"))


@pytest.mark.parametrize(("words", "reason"), [
    (("data=digits",), "not from data=digits"),
    (("posterior=deep_ensemble",), "learns one Q-network by one optimiser"),
    (("trainer=ddp_cpu",), "acts and learns in one process"),
    (("trainer.precision=bf16-mixed",), "full precision"),
    (("trainer.micro_batch_size=4",), "takes each batch whole"),
    (("trainer.compile=true",), "does not compile"),
    (("trainer.eval_every=2",), "use task.eval_every"),
    (("callbacks.patience=2",), "does not stop early"),
    (("task.learning_starts=260",), "no update would be made"),
    (("task.bootstrap=hybrid", "task.kappa=1"), "a term of its own"),
])  # fmt: skip
def test_what_means_nothing_is_refused_before_anything_starts(tmp_path, words, reason):
    made = config(*words)
    for attempt in (
        lambda: plan_arm("s", "a", [made]),
        lambda: QLearning.check(make_task(made), made),
    ):
        with pytest.raises(ConfigError, match=reason):
            attempt()


def test_env_goes_with_a_task_that_has_one():
    with pytest.raises(ConfigError, match="with task=rl"):
        compose(["env=cartpole"])
    with pytest.raises(ConfigError, match="did you mean 'cartpole'"):
        compose(["task=rl", "env=cartpol"])


def test_an_agent_is_restored_with_its_optimiser():
    from bayesrule.optim import IVON
    from bayesrule.tasks.rl.losses import Transitions

    generator = torch.Generator().manual_seed(0)
    batch = Transitions(
        torch.randn(6, 3, generator=generator),
        torch.randint(0, 2, (6,), generator=generator),
        torch.randn(6, generator=generator),
        torch.randn(6, 3, generator=generator),
        torch.zeros(6),
    )

    def agent():
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.fill_(0.1)
            model.bias.zero_()
        optimizer = IVON(model.named_parameters(), lr=0.1, ess=100, seed=3)
        return Agent(model, optimizer, gamma=0.9, bootstrap="online", kappa=0.5)

    first, second = agent(), agent()
    first.learn(batch)
    first.follow(0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert first.learn(batch) == second.learn(batch)
    assert torch.equal(first.online.weight, second.online.weight)
    assert first.updates == second.updates == 2


def test_a_stored_q_network_is_not_evaluated_on_data(tmp_path):
    from bayesrule.tasks.reevaluate import reevaluate

    record, _, _ = run(tmp_path, "task.env_steps=60", "task.learning_starts=58")
    with pytest.raises(BayesruleError, match="learnt from no data set"):
        reevaluate(RunStore(tmp_path).get(record.id))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_values_are_those_of_evaluation_mode(dropout):
    from bayesrule.models.mlp import MLP
    from bayesrule.optim import SGD

    model = MLP(3, 2, [32], dropout=dropout)
    agent = Agent(model, SGD(model.parameters()), gamma=0.9, bootstrap="online", kappa=0.0)
    obs = torch.randn(5, 3)
    model.train()
    first, second = agent.values(obs), agent.values(obs)
    assert model.training
    model.eval()
    with torch.no_grad():
        assert torch.equal(first, model(obs))
    assert torch.equal(first, second)
