"""The same runs on Ray.

One test, since a simulation takes half a minute and a gigabyte to start, and tests are shared out
over processes.
"""

import signal

import pytest

for package in ("flwr", "ray"):
    pytest.importorskip(package)

from test_tasks_flower_grid import (  # noqa: E402
    BASE,
    IVON,
    POINT,
    assert_equal_states,
    done,
    everything,
    rounds_of,
)

from bayesrule.config import compose  # noqa: E402
from bayesrule.runs import RunStore  # noqa: E402
from bayesrule.tasks.federated.clients import Clients  # noqa: E402
from bayesrule.tasks.flower.environment import prepare  # noqa: E402
from bayesrule.tasks.flower.grid import GridEngine  # noqa: E402
from bayesrule.tasks.flower.simulation import Simulation  # noqa: E402
from bayesrule.tasks.signals import Stopped  # noqa: E402

FAULTY_SEED = 7


def faulty_app():
    """Return the ClientApp, with two clients that fail in runs of a certain seed.

    In round 0 client 1 raises, in round 1 client 2 sends a weight that is not a number.
    """
    import json
    from dataclasses import replace

    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from bayesrule.tasks.flower.client_app import query, train
    from bayesrule.tasks.flower.records import pack, unpack

    app = ClientApp()
    app.query()(query)

    @app.train()
    def unreliable(message, context):
        from bayesrule.tasks.federated.engine import Answer

        plain, labels = unpack(message.content)
        faulty = json.loads(labels["config"])["seed"] == FAULTY_SEED
        who = plain["client"], plain["message"]["round"]
        if faulty and who == (1, 0):
            raise OSError("the client's disk is full")
        reply = train(message, context)
        if faulty and who == (2, 1):
            answer = Answer.from_plain(unpack(reply.content)[0])
            answer = replace(answer, reply=not_a_number(answer.reply))
            return Message(pack(answer.to_plain()), reply_to=message)
        return reply

    return app


def not_a_number(reply):
    from dataclasses import replace

    mean = {name: t.clone() for name, t in reply.posterior.mean.items()}
    next(iter(mean.values())).view(-1)[0] = float("nan")
    return replace(reply, posterior=type(reply.posterior)(mean, reply.posterior.precision))


@pytest.fixture
def simulation(tmp_path_factory):
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    prepare("flower", tmp_path_factory.mktemp("flower"))
    made = Simulation(3, workers=2, client_app=faulty_app())
    yield made
    made.close()
    assert {signum: signal.getsignal(signum) for signum in before} == before


def on_ray(simulation):
    return lambda config: GridEngine(simulation.grid, config, 3, check=simulation.check, wait=300)


def test_runs_on_ray(tmp_path, simulation, monkeypatch):
    check_equality(tmp_path / "equality", simulation)
    check_sharing(tmp_path / "sharing", simulation, monkeypatch)
    check_faults_and_resumption(tmp_path / "faults", simulation, monkeypatch)


def check_equality(tmp_path, simulation):
    """Server, clients, curves, bytes and history are those of the local engine, bit for bit."""
    words = [*BASE, "task.rounds=2", "federated=bayes_admm", *IVON]
    local, a = rounds_of(tmp_path / "a", words)
    other, b = rounds_of(tmp_path / "b", words, on_ray(simulation))
    done(local)
    done(other)
    assert_equal_states(everything(local), everything(other))
    assert a.metrics_path.read_bytes() == b.metrics_path.read_bytes()


def check_faults_and_resumption(tmp_path, simulation, monkeypatch):
    """A client raises, another sends NaN; the server is stopped between, and goes on elsewhere."""
    words = [*BASE, "task.rounds=2", "federated=fedlap", *POINT, f"seed={FAULTY_SEED}"]
    loop, _ = rounds_of(tmp_path / "a", words, on_ray(simulation))
    record = loop._record

    def stop_after_first_round(replied):
        record(replied)
        loop.stop.signum = signal.SIGTERM

    loop._record = stop_after_first_round
    with pytest.raises(Stopped):
        done(loop)
    loop.history.close()
    resumed, _ = rounds_of(tmp_path / "a", words, on_ray(simulation))
    done(resumed)
    reasons = {(row["client"], row["round"]): row["reason"] for row in resumed.refused}
    assert reasons.keys() == {(1, 0), (2, 1)}
    assert "the client's disk is full" in reasons[1, 0]
    assert "is not finite" in reasons[2, 1]
    assert [client.calls for client in resumed.clients] == [2, 1, 1]
    local, _ = rounds_of(tmp_path / "b", words)
    sound = Clients.solver

    def solver(clients, k, r, late):
        if (k, r) == (1, 0):
            raise OSError("the client's disk is full")
        return sound(clients, k, r, late)

    monkeypatch.setattr(Clients, "solver", solver)
    local.tamper = lambda reply, r: not_a_number(reply) if (reply.client, r) == (2, 1) else reply
    done(local)
    ours, theirs = everything(resumed), everything(local)
    for part in ("server", "clients", "curves", "bytes"):
        assert_equal_states(ours[part], theirs[part])


def check_sharing(tmp_path, simulation, monkeypatch):
    """The runs of one command have one simulation; their metrics are the local engine's."""
    from bayesrule.tasks import shared as sharing_module
    from bayesrule.tasks.execute import execute
    from bayesrule.tasks.shared import sharing

    made = []
    monkeypatch.setattr(
        "bayesrule.tasks.flower.simulation.Simulation",
        lambda clients, **options: made.append((clients, options)) or Kept(simulation),
    )
    store = RunStore(tmp_path)
    words = [*BASE, "task.rounds=1", "federated=fedavg", *POINT, "engine=flower"]
    with sharing():
        for seed in (1, 2):
            record = execute(compose([*words, f"seed={seed}", "engine.workers=2"]), store)
            assert record.status == "done", record.error
            local = execute(compose([*words[:-1], f"seed={seed}"]), store)
            assert record.metrics == local.metrics
            assert record.id != local.id
    assert made == [(3, {"workers": 2, "gpus": 0.0})]
    assert sharing_module._held == {}


class Kept:
    """A simulation that the test's own fixture closes."""

    def __init__(self, simulation):
        self.grid, self.check = simulation.grid, simulation.check

    def close(self):
        pass
