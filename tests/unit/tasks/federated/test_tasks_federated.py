"""task=federated: faults, resumption, accounting, refusals."""

import json
from dataclasses import replace

import pytest
import torch

from bayesrule.config import compose
from bayesrule.errors import BayesruleError, ConfigError, NonFiniteLoss, Unsupported
from bayesrule.federated import Reply
from bayesrule.posteriors import IsotropicGaussian
from bayesrule.runs import RunStore
from bayesrule.tasks.dry_run import dry_run
from bayesrule.tasks.execute import execute
from bayesrule.tasks.federated.engine import Job
from bayesrule.tasks.federated.schedule import Participation, round_factor
from bayesrule.tasks.history import History
from bayesrule.tasks.plan import plan_arm
from bayesrule.tasks.problem import Problem
from bayesrule.tasks.progress import Progress
from bayesrule.tasks.signals import Stopped, StopRequest
from bayesrule.tasks.task import Context, make_task

BASE = [
    *("task=federated", "data=digits", "data.train_size=120", "data.test_size=60"),
    *("model.hidden=[6]", "model.activation=relu", "task.clients=3", "task.rounds=3"),
    *("task.partition=iid", "trainer.epochs=1", "trainer.progress=false", "metrics.mc_samples=2"),
    *("metrics.ece_null_draws=2", "task.report=[2]"),
]
POINT = ["posterior=adamw", "posterior.weight_decay=0", "posterior.lr=0.01"]
IVON = [
    "posterior=ivon",
    "posterior.rescale_lr=false",
    "posterior.lr=0.02",
    "posterior.hess_init=0.05",
]
ARMS = {
    "fedavg": POINT,
    "fedprox": POINT,
    "admm": [*POINT, "federated.units=mean", "federated.rho=0.1", "federated.delta=0.01"],
    "fedadmm": POINT,
    "feddyn": POINT,
    "fedlap": POINT,
    "fedlap_cov": POINT,
    "fedlap_func": [*POINT, "federated.memory_items=3", "task.server_steps=5"],
    "pvi": IVON,
    "bregman_admm": IVON,
    "bayes_admm": IVON,
}


def words(name, *more):
    return [*BASE, f"federated={name}", *ARMS[name], *more]


def context(store, config, stop=None):
    folder = store.folder(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    return Context(config, folder, History(folder), stop or StopRequest())


def rows(folder):
    return [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("federated"))


@pytest.mark.parametrize("name", ARMS)
def test_every_algorithm_runs_and_is_planned(store, name):
    config = compose(words(name))
    record = execute(config, store, tell=print)
    assert record.status == "done", record.error
    assert record.metrics["test/acc@mean"] > 0.05
    assert record.metrics["round2/nll@mean"] == dict(record.details["rounds"]["test/nll@mean"])[2]
    P, floats = record.details["parameters"], 4 / 1e6
    numbers = 2 * P if config["federated"]["family"] == "diagonal" else P
    labels = 3 * 10 if name == "fedlap_func" else 0
    inputs = 3 * 3 * 3 * 64 if name == "fedlap_func" else 0
    assert record.metrics["comm/up"] == pytest.approx(9 * (numbers + labels) * floats)
    assert record.metrics["comm/down"] == pytest.approx((9 * numbers + inputs) * floats)
    assert sum(record.details["clients"]["items"]) == 120
    plan = plan_arm("unit", name, [config])
    assert plan.steps == 3 * 3 * 2
    assert any("clients 3 -> 2" in note for note in dry_run(plan))


class StopAfter(StopRequest):
    """A signal that arrives after a number of looks at it."""

    def __init__(self, looks):
        self.left, self._signum = looks, None
        super().__init__()

    @property
    def signum(self):
        self.left -= 1
        return 15 if self.left < 0 else None

    @signum.setter
    def signum(self, value):
        pass

    def check(self):
        raise Stopped(15)


@pytest.mark.parametrize("name", ["bayes_admm", "fedlap_func", "fedadmm"])
def test_a_run_stopped_inside_and_between_rounds_ends_bit_equal(tmp_path, name):
    more = [
        "task.dropout=0.2",
        "task.stragglers=0.5",
        "task.participation=0.7",
        "task.eval_every=2",
    ]
    config = compose(words(name, *more))
    whole = RunStore(tmp_path / "whole")
    expected = make_task(config).run(context(whole, config))
    parts = RunStore(tmp_path / "parts")
    stops = 0
    for looks in (1, 0, 1, 2, 1, 100):  # after one client, after two, at the end of a round, ...
        now = context(parts, config, StopAfter(looks))
        try:
            found = make_task(config).run(now)
            break
        except Stopped:
            stops += 1
        finally:
            now.history.close()
    assert stops >= 3
    assert found.metrics == expected.metrics
    assert found.details == expected.details
    assert rows(parts.folder(config)) == rows(whole.folder(config))


def rounds_of(tmp_path, name, *more):
    config = compose(words(name, *more))
    problem = Problem.from_context(context(RunStore(tmp_path), config))
    return make_task(config).rounds_of(problem).rounds, problem


def nan(reply):
    mean = {name: t.clone() for name, t in reply.posterior.mean.items()}
    next(iter(mean.values())).view(-1)[0] = float("nan")
    return replace(reply, posterior=type(reply.posterior)(mean, reply.posterior.precision))


def cut(reply):
    mean = {name: t.flatten()[:1] for name, t in reply.posterior.mean.items()}
    return Reply(reply.client, reply.num_items, IsotropicGaussian(mean, 1.0))


@pytest.mark.parametrize(("spoil", "reason"), [(nan, "not finite"), (cut, "shape")])
def test_an_unsound_reply_is_refused_and_logged_and_the_round_goes_on(tmp_path, spoil, reason):
    """The refused client keeps the dual it had; the others' round is what it is without it."""
    loop, problem = rounds_of(tmp_path / "a", "fedlap")
    loop.tamper = lambda reply, r: spoil(reply) if (reply.client, r) == (1, 1) else reply
    state = loop.run(Progress("", 1, enabled=False))
    (row,) = loop.refused
    assert (row["round"], row["client"]) == (1, 1)
    assert reason in row["reason"]
    assert next(r for r in rows(problem.folder) if "refused" in r)["client"] == 1
    assert loop.clients[1].calls == 2
    assert dict(loop.curves["comm/replies"])[2] == 2.0
    total = sum((c.dual for c in loop.clients[1:]), start=loop.clients[0].dual)
    for part, t in total.nat1.items():  # what the server holds is what the clients hold
        torch.testing.assert_close(t, state.dual_sum.nat1[part], rtol=1e-5, atol=1e-6)


def test_a_state_that_cannot_be_used_is_refused_with_its_reply(tmp_path):
    loop, _ = rounds_of(tmp_path, "fedlap")
    work = loop.engine.work

    def spoil(answer):
        if (answer.client, loop.state.round) != (1, 1):
            return answer
        dual = answer.state.dual * float("nan")
        return replace(answer, state=replace(answer.state, dual=dual))

    loop.engine.work = lambda jobs: map(spoil, work(jobs))
    loop.run(Progress("", 1, enabled=False))
    (row,) = loop.refused
    assert (row["round"], row["client"]) == (1, 1)
    assert "dual of" in row["reason"]
    assert loop.clients[1].calls == 2
    assert dict(loop.curves["comm/replies"])[2] == 2.0


def test_a_client_that_is_away_comes_back_with_its_dual(tmp_path, monkeypatch):
    loop, _ = rounds_of(tmp_path, "fedlap")
    monkeypatch.setattr(
        Participation, "answers", lambda self, seed, r, client: (client, r) != (2, 1)
    )
    duals, work = [], loop.engine.work

    def watch(jobs):
        duals.append(loop.clients[2].dual.nat1)
        return work(jobs)

    loop.engine.work = watch
    state = loop.run(Progress("", 1, enabled=False))
    before, away, back = (next(iter(d.values())) for d in duals)
    assert not torch.equal(before, away)
    assert torch.equal(away, back)
    total = sum((c.dual for c in loop.clients[1:]), start=loop.clients[0].dual)
    for part, t in total.nat1.items():
        torch.testing.assert_close(t, state.dual_sum.nat1[part], rtol=1e-5, atol=1e-6)


def test_a_straggler_does_a_part_of_its_epochs(tmp_path):
    loop, _ = rounds_of(tmp_path, "fedavg", "trainer.epochs=5", "task.straggler_epochs=0.2")
    assert loop.engine.clients.solver(0, 0, False).epochs == 5
    assert loop.engine.clients.solver(0, 0, True).epochs == 1.0


def test_divergence_of_all_clients_ends_the_run_with_a_sentence(tmp_path):
    loop, _ = rounds_of(tmp_path, "fedavg")

    def diverging(objective, carried):
        raise NonFiniteLoss("a client's loss is not finite")

    loop.engine.clients.solver = lambda k, r, late: diverging
    with pytest.raises(NonFiniteLoss, match=r"0 of 3 clients sent a sound reply.*client 0"):
        loop.run(Progress("", 1, enabled=False))
    assert [row["client"] for row in loop.refused] == [0, 1, 2]


def test_a_client_that_breaks_is_refused_and_a_wrong_configuration_ends_the_run(tmp_path):
    loop, _ = rounds_of(tmp_path / "a", "fedavg")
    sound = loop.engine.clients.solver

    def breaking(k, r, late):
        if (k, r) == (1, 0):
            raise KeyError("the client's disk is full")
        return sound(k, r, late)

    loop.engine.clients.solver = breaking
    loop.run(Progress("", 1, enabled=False))
    (row,) = loop.refused
    assert (row["client"], row["round"]) == (1, 0)
    assert "KeyError at test_tasks_federated.py" in row["reason"]
    loop, _ = rounds_of(tmp_path / "b", "fedavg")

    def unfit(k, r, late):
        raise Unsupported("this solver does not fit these messages")

    loop.engine.clients.solver = unfit
    with pytest.raises(Unsupported, match="does not fit"):
        loop.run(Progress("", 1, enabled=False))
    assert loop.refused == []


def test_a_round_with_too_few_replies_ends_the_run(tmp_path, monkeypatch):
    loop, _ = rounds_of(tmp_path, "fedavg", "task.min_replies=3")
    monkeypatch.setattr(Participation, "answers", lambda self, seed, r, client: client > 0)
    with pytest.raises(BayesruleError, match=r"2 of 3 clients sent .*task.min_replies=3"):
        loop.run(Progress("", 1, enabled=False))


def test_participation_is_a_function_of_the_seed():
    who = Participation(10, fraction=0.3, dropout=0.5, stragglers=0.5)
    rounds = [who.asked(1, r) for r in range(200)]
    assert all(len(asked) == 3 for asked in rounds)
    assert rounds == [who.asked(1, r) for r in range(200)]
    assert {k for asked in rounds for k in asked} == set(range(10))
    share = sum(who.answers(1, r, 0) for r in range(1000)) / 1000
    assert 0.45 < share < 0.55
    assert Participation(4).asked(0, 0) == [0, 1, 2, 3]
    assert all(Participation(4).answers(0, r, 0) for r in range(50))
    assert not any(Participation(4).is_straggler(0, r, 0) for r in range(50))


def test_the_learning_rate_falls_over_rounds():
    assert [round(round_factor("cosine", r, 4), 3) for r in range(4)] == [1.0, 0.854, 0.5, 0.146]
    assert round_factor("constant", 3, 4) == 1.0


@pytest.mark.parametrize(
    ("name", "word", "match"),
    [
        ("fedlap", "posterior.weight_decay=0.1", "federated.prior_prec"),
        ("bayes_admm", "posterior.rescale_lr=true", "set it to false"),
        ("fedavg", "task.report=[9]", "there are task.rounds=3"),
        ("fedavg", "trainer.precision=bf16-mixed", "full precision"),
        ("fedavg", "task.min_replies=4", "there are task.clients=3"),
        ("fedavg", "trainer.eval_every=1", "task.eval_every"),
    ],
)
def test_options_without_meaning_are_refused(store, name, word, match):
    with pytest.raises(ConfigError, match=match):
        execute(compose([*words(name), word]), store, tell=lambda text: None)


def test_a_column_of_the_inputs_may_say_who_holds_what(store):
    more = ["data=breast_cancer", "task.partition=column", "task.column=0"]
    with pytest.raises((ConfigError, BayesruleError), match=r"column 0 has \d+ values"):
        execute(compose([*words("fedavg"), *more, "data.test_size=null"]), store)


def test_weights_do_not_depend_on_the_order_of_clients(tmp_path):
    """A client's batches and noise come from (seed, client, round) alone."""
    loop, _ = rounds_of(tmp_path, "bayes_admm")
    message = loop.algorithm.message(loop.state)
    jobs = [Job(k, message, loop.clients[k]) for k in (0, 1)]
    first = [answer.reply for answer in loop.engine.work(jobs)]
    second = [answer.reply for answer in loop.engine.work(jobs[::-1])]
    for a, b in zip(first, second[::-1], strict=True):
        for name, t in a.posterior.precision.items():
            assert torch.equal(t, b.posterior.precision[name])
