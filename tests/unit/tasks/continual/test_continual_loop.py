"""The loop: what an experience starts from, what is measured, refused and evaluated."""

import copy
import json

import pytest
import torch

from bayesrule.config import compose
from bayesrule.corrections import Correction
from bayesrule.errors import ConfigError, NonFiniteLoss, Unsupported
from bayesrule.runs import RunStore
from bayesrule.tasks.continual.loop import StreamLearner
from bayesrule.tasks.dry_run import dry_run
from bayesrule.tasks.execute import execute
from bayesrule.tasks.plan import plan_arm
from bayesrule.tasks.reevaluate import reevaluate
from bayesrule.tasks.signals import Stopped

TINY = [
    *("task=continual", "data=digits", "data.train_size=120", "data.test_size=60"),
    *("model=mlp", "model.hidden=[6]", "trainer.epochs=2", "trainer.batch_size=16"),
    *("trainer.progress=false", "metrics.mc_samples=2", "scenario=split", "scenario.n_tasks=3"),
]


def run(store, *words):
    record = execute(compose([*TINY, *words]), store, tell=lambda text: None)
    assert record.status == "done", record.error
    return record


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


class Noting(Correction):
    """Notes what the loop does, in order."""

    def __init__(self, prior=None):
        self.notes, self._prior = [], prior

    def begin(self, experience, past):
        self.notes.append(
            ("begin", experience.index, float(past.optimizer.named_mean()["head.bias"][0]))
        )

    def prior(self):
        self.notes.append(("prior",))
        return self._prior

    def loss(self, model):
        self.notes.append(("loss",))

    def after_step(self, batch, past):
        self.notes.append(("step", len(batch["target"])))

    def absorb(self, experience, past):
        self.notes.append(
            ("absorb", experience.index, float(past.optimizer.named_mean()["head.bias"][0]))
        )


def learner_of(store, correction, *words, **options):
    from bayesrule.data import load_data
    from bayesrule.data.scenarios import make_scenario
    from bayesrule.tasks.history import History
    from bayesrule.tasks.problem import Problem, make_likelihood
    from bayesrule.tasks.signals import StopRequest

    config = compose([*TINY, "logger=none", *words])
    data = load_data(config["data"], seed=0, cache_dir=store.root / "cache")
    problem = Problem(config, store.folder(config), data, make_likelihood(data, 1.0),
                      History(None), StopRequest())  # fmt: skip
    stream = make_scenario(config["scenario"]).stream(data, seed=0)
    return StreamLearner(problem, stream, correction, **options)


def test_the_order_of_calls(store):
    correction = Noting()
    learner = learner_of(store, correction, "trainer.epochs=1")
    learner.run()
    words = [note[0] for note in correction.notes]
    marks = [note for note in correction.notes if note[0] in ("begin", "absorb")]
    assert [(kind, t) for kind, t, _ in marks] == [
        (kind, t) for t in range(3) for kind in ("begin", "absorb")
    ]
    assert words[:4] == ["begin", "prior", "loss", "step"]
    for t, task in enumerate(learner.stream):
        begin = [i for i, note in enumerate(correction.notes) if note[0] == "begin"][t]
        end = [i for i, note in enumerate(correction.notes) if note[0] == "absorb"][t]
        steps = [note[1] for note in correction.notes[begin:end] if note[0] == "step"]
        assert sum(steps) == len(task.train)
    for (_, _, before), (_, _, after) in zip(marks[2::2], marks[1::2], strict=False):
        assert before == after  # the weights go on


def test_a_fresh_start_is_the_same_as_learning_the_task_alone(store):
    """`separate` on the second task equals a network that never saw the first."""
    from bayesrule.corrections import Separate

    learner = learner_of(store, Separate())
    learner.run()
    only = learner_of(RunStore(store.root / "other"), Separate())
    only.correction.alone = False
    only.learn(1)
    from bayesrule.posteriors import load_posterior

    stored = load_posterior(learner.problem.folder.path / "tasks" / "2")
    for name, value in only.optimizer.posterior(only.model).mean.items():
        assert torch.equal(stored.mean[name], value)


def test_optimiser_state_kept_or_fresh(store):
    kept = learner_of(store, Correction(), keep_state=True)
    kept.run()
    fresh = learner_of(RunStore(store.root / "other"), Correction())
    fresh.run()
    assert kept.optimizer.param_groups[0]["steps"] == kept.steps
    assert fresh.optimizer.param_groups[0]["steps"] == fresh.problem.total_steps() < fresh.steps


def test_a_posterior_start_carries_variances(store):
    """IVON goes on with its precision; with start='warm' it begins with hess_init again."""
    begun = {}

    class Look(Correction):
        def after_step(self, batch, past):
            begun.setdefault(self.t, past.posterior().precision)

        def begin(self, experience, past):
            self.t = experience.index
            self.before = past.posterior().precision

    first = []
    for start in ("warm", "posterior"):
        correction = Look()
        correction.start = start
        begun.clear()
        learner = learner_of(RunStore(store.root / start), correction, "posterior=ivon",
                             "posterior.lr=1e-12", "posterior.beta2=1.0", "posterior.hess_init=0.3",
                             "trainer.epochs=1")  # fmt: skip
        learner.check()
        scale = 2.0  # the precision that the second experience finds
        learner.learn(0)
        for state in learner.optimizer.state.values():
            state["hess"].mul_(scale)
        q = learner.optimizer.posterior(learner.model).precision
        learner.learn(1)
        first.append({n: torch.allclose(begun[1][n], q[n], rtol=1e-4) for n in q})
    assert not any(first[0].values())
    assert all(first[1].values())


def test_prior_reaches_the_optimiser(store):
    from bayesrule.posteriors import DiagonalGaussian

    model = learner_of(store, Correction()).model
    prior = DiagonalGaussian(
        {n: torch.full_like(p, 0.5) for n, p in model.named_parameters()},
        {n: torch.full_like(p, 3.0) for n, p in model.named_parameters()},
    )
    learner = learner_of(RunStore(store.root / "other"), Noting(prior), "posterior=vogn")
    learner.learn(0)
    assert "prior" in str(learner.optimizer.state_dict()).lower()
    refused = learner_of(RunStore(store.root / "third"), Noting(prior), "posterior=sgd")
    with pytest.raises(Unsupported, match=r"cannot take a DiagonalGaussian as prior"):
        refused.learn(0)


def test_a_penalty_that_is_not_finite_is_named(store):
    class Broken(Correction):
        def loss(self, model):
            return next(model.parameters()).sum() * float("nan")

    with pytest.raises(NonFiniteLoss, match=r"the correction's loss is nan at step 1"):
        learner_of(store, Broken()).run()


def test_squares_of_examples_do_not_count_the_penalty(store):
    """VOGN with a replay-like term: the gradient has it, the per-example squares do not."""
    from bayesrule.tasks.module import LearnModule

    learner = learner_of(store, Correction(), "posterior=vogn", "posterior.mc_samples=1")
    extra = learner.stream[1].train.batch(torch.arange(7))["input"]
    batch = learner.stream[0].train.batch(torch.arange(5))
    likelihood = learner.problem.likelihood
    seen = []
    for penalty in (None, lambda model: model(extra).square().sum()):
        learner.model.zero_grad()
        optimizer = learner.problem.optimizer(learner.model, learner.options, 0)
        module = LearnModule(learner.model, optimizer, likelihood, lambda step: 1.0,
                             penalty=penalty)  # fmt: skip
        update = optimizer.update
        optimizer.update = lambda statistics: seen.append(copy.deepcopy(statistics))
        optimizer.step(module.closure(batch, torch.Tensor.backward))
        optimizer.update = update
    for plain, corrected in zip(seen[0]["grad_sq"], seen[1]["grad_sq"], strict=True):
        assert torch.equal(plain, corrected)
    assert any(not torch.equal(a, b) for a, b in zip(seen[0]["grad"], seen[1]["grad"], strict=True))


# ------------------------------------------------------------------ measures


def test_names_and_matrices_agree(store):
    record = run(store)
    m, kept = record.metrics, record.details["continual"]
    a = kept["matrices"]["acc@mean"]
    assert [[value is not None for value in row] for row in a] == [
        [True, True, False], [True, True, True], [True, True, True],
    ]  # fmt: skip
    assert m["test/acc@mean"] == pytest.approx(sum(a[-1]) / 3)
    assert m["task2/acc@mean"] == a[2][1]
    assert m["after2/acc@mean"] == pytest.approx((a[1][0] + a[1][1]) / 2)
    assert m["test/learning_acc@mean"] == pytest.approx((a[0][0] + a[1][1] + a[2][2]) / 3)
    drops = [max(a[0][0], a[1][0]) - a[2][0], a[1][1] - a[2][1]]
    assert m["test/forgetting@mean"] == pytest.approx(sum(drops) / 2)
    b = kept["initial"]["acc@mean"]
    assert m["test/fwt@mean"] == pytest.approx((a[0][1] - b[1] + a[1][2] - b[2]) / 2)
    assert m["test/acc@mc2"] == m["test/acc@mean"]  # a point
    sizes = record.details["stream"]["n_train"]
    assert record.details["steps"] == sum(2 * -(-n // 16) for n in sizes)
    json.dumps(record.details)


def test_class_and_task_incremental_accuracies(store):
    classes = run(store, "scenario.incremental=class").metrics
    assert classes["test/task_il_acc@mean"] >= classes["test/acc@mean"]
    assert classes["test/task_il_acc@mean"] > 0.4
    tasks = run(store).metrics
    assert tasks["test/class_il_acc@mean"] <= tasks["test/acc@mean"]
    domain = run(store, "scenario.incremental=domain").metrics
    assert not any("_il_" in name for name in domain)


def test_validation_items_are_measured_at_the_end(store):
    found = run(store, "data.val_fraction=0.3").metrics
    assert 0.0 <= found["val/acc@mean"] <= 1.0


def test_history_has_a_row_per_task(store):
    record = run(store, "trainer.eval_every=1")
    rows = store.get(record.id).history()
    ends = [row for row in rows if "memory/items" in row]
    assert [row["phase"] for row in ends] == ["experience1", "experience2", "experience3"]
    assert ends[-1]["task1/acc@mean"] == record.metrics["task1/acc@mean"]
    assert sum("task1/acc@mean" in row for row in rows) == 3 + 3 * 2  # and after every epoch


def test_own_statistics_of_batch_normalisation(store):
    """Each task is predicted with the statistics of its own items, not of the last task's."""
    words = ("scenario=permuted", "scenario.n_tasks=2", "model.norm=batch", "trainer.epochs=4")
    shared = run(store, *words).metrics["task1/acc@mean"]
    own = run(store, *words, "task.own_statistics=true")
    assert own.metrics["task1/acc@mean"] > shared + 0.05


def test_online_pieces_end_with_tasks(store):
    record = run(store, "scenario.online=10", "trainer.epochs=1", "correction=replay",
                 "task.optimizer_state=kept", "correction.size=8")  # fmt: skip
    sizes = record.details["stream"]["n_train"]
    assert len(sizes) > 3
    assert len(record.details["continual"]["matrices"]["acc@mean"]) == 3
    assert record.metrics["memory/items"] == 8.0


def test_pictures_of_the_memory(store):
    record = run(store, "correction=replay", "task.pictures=4", "correction.size=20")
    (kept,) = record.details["continual"]["pictures"]
    assert kept["shape"] == [1, 8, 8]
    assert len(kept["targets"]) == 4


# -------------------------------------------------------------------- resume


def stop_in_the_third(store, monkeypatch, *words):
    """Stop a run in its third experience; checkpoints are written at every step."""
    import signal

    from bayesrule.tasks.signals import StopRequest

    class StopAfter(StopRequest):
        def __init__(self):
            super().__init__()
            self.looks = 22

        @property
        def signum(self):
            self.looks -= 1
            return signal.SIGTERM if self.looks < 0 else None

        @signum.setter
        def signum(self, value):
            pass

    from contextlib import contextmanager

    @contextmanager
    def request():
        yield StopAfter()

    config = compose([*TINY, *words])
    with monkeypatch.context() as patch:
        patch.setattr("bayesrule.tasks.execute.stop_request", request)
        with pytest.raises(Stopped):
            execute(config, store, tell=lambda text: None)
    return store.folder(config).path


@pytest.mark.parametrize("damage", ["flipped", "both gone"])
def test_a_damaged_position_costs_experiences_not_numbers(store, monkeypatch, damage):
    words = ("trainer.epochs=4", "trainer.checkpoint_seconds=0", "correction=replay",
             "correction.size=10", "trainer.log_every=1")  # fmt: skip
    whole = run(RunStore(store.root / "whole"), *words)
    folder = stop_in_the_third(store, monkeypatch, *words)
    assert (folder / "checkpoints" / "experience3").is_dir()
    position = folder / "checkpoints" / "position.pt"
    before = position.with_name("position.pt.previous")
    content = bytearray(position.read_bytes())
    content[len(content) // 2] ^= 1
    position.write_bytes(content)
    if damage == "both gone":
        before.write_bytes(before.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"position.pt"):
        again = run(store, *words)
    assert again.metrics == whole.metrics
    assert again.details["continual"] == whole.details["continual"]
    histories = [s.get(r.id).history() for s, r in
                 ((store, again), (RunStore(store.root / "whole"), whole))]  # fmt: skip
    assert histories[0] == histories[1]


# ------------------------------------------------------------------ evaluate


def test_evaluating_a_stored_run_gives_its_own_numbers(store):
    record = run(store, "posterior=ivon", "data.val_fraction=0.2", "scenario.incremental=class")
    found = reevaluate(store.get(record.id))
    assert found.metrics
    for name, value in found.metrics.items():
        assert value == pytest.approx(record.metrics[name], abs=1e-12), name
    for name in ("test/acc@mean", "test/task_il_acc@mc2", "task3/nll@mean", "val/ece@mc2"):
        assert name in found.metrics


def test_evaluating_tasks_with_posteriors_of_their_own_is_refused(store):
    record = run(store, "correction=separate")
    with pytest.raises(Unsupported, match=r"was predicted with a posterior of its own"):
        reevaluate(store.get(record.id))


# --------------------------------------------------------- refused, and planned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=diabetes"], r"data.kind=regression: .* choose a classification set"),
        (["scenario.online=20"], r"trainer.epochs=2: .*trainer.epochs=1"),
        (["callbacks.patience=2"], r"callbacks.patience=2: .*leave it null"),
        (["metrics.own_norms=true"], r"metrics.own_norms=True"),
        (["trainer.devices=2", "trainer.strategy=ddp"], r"kept by one process"),
        (["data=mnist5k", "data.ood=[digits]"], r"data.ood"),
        (["posterior=laplace_diag"], r"correction=online_laplace"),
        (["posterior=deep_ensemble"], r"run several seeds"),
        (["scenario.n_tasks=7"], r"need 14 classes, and there are 10"),
    ],
)
def test_refused_before_training(store, words, message):
    config = compose([*TINY, *words])
    with pytest.raises(ConfigError, match=message):
        execute(config, store, tell=lambda text: None)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("correction=replayy", r"did you mean 'replay'"),
        ("correction.sizes=3", r"correction.size"),
        ("scenario=splitt", r"did you mean 'split'"),
        ("scenario.n_task=3", r"did you mean 'scenario.n_tasks'"),
        ("correction.size=0", r"correction.size=0 is out of range"),
    ],
)
def test_mistyped_options_name_the_key(word, message):
    with pytest.raises(ConfigError, match=message):
        compose([*TINY, "correction=replay", word])


def test_groups_are_for_this_task_alone():
    with pytest.raises(ConfigError, match=r"correction=... is chosen only where .* task=continual"):
        compose(["correction=replay"])


def test_a_plan_counts_all_experiences():
    plain, joint = (plan_arm("s", "a", [compose([*TINY, f"correction={c}"])])
                    for c in ("none", "joint"))  # fmt: skip
    assert plain.steps == 3 * 2 * 2  # 24 items of each pair of classes, batches of 16, two epochs
    assert joint.steps == (2 + 3 + 5) * 2
    assert plain.parameters == 64 * 6 + 6 + 6 * 6 + 6
    assert dry_run(joint) == ["experiences 3 -> 2"]
