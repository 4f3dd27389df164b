"""The engine over a grid, without Ray: a grid that calls the ClientApp in this process."""

import pytest
import torch

flwr = pytest.importorskip("flwr.app")

from flwr.app import ConfigRecord, Context, Message, RecordDict  # noqa: E402
from flwr.app.error import Error  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from bayesrule.config import compose  # noqa: E402
from bayesrule.errors import BayesruleError, ConfigError  # noqa: E402
from bayesrule.runs import RunStore, run_id  # noqa: E402
from bayesrule.tasks.federated.clients import Clients  # noqa: E402
from bayesrule.tasks.flower.client_app import app  # noqa: E402
from bayesrule.tasks.flower.deployment import check_superlink  # noqa: E402
from bayesrule.tasks.flower.grid import GridEngine  # noqa: E402
from bayesrule.tasks.flower.records import pack, unpack  # noqa: E402
from bayesrule.tasks.history import History  # noqa: E402
from bayesrule.tasks.problem import Problem  # noqa: E402
from bayesrule.tasks.progress import Progress  # noqa: E402
from bayesrule.tasks.signals import StopRequest  # noqa: E402
from bayesrule.tasks.study import configurations  # noqa: E402
from bayesrule.tasks.task import Context as TaskContext  # noqa: E402
from bayesrule.tasks.task import make_task  # noqa: E402

BASE = [
    *("task=federated", "data=digits", "data.train_size=120", "data.test_size=60"),
    *("model.hidden=[6]", "model.activation=relu", "task.clients=3", "task.rounds=3"),
    *("task.partition=iid", "trainer.epochs=1", "trainer.progress=false", "metrics.mc_samples=2"),
    *("metrics.ece_null_draws=0", "task.stragglers=0.3"),
]
POINT = ["posterior=adamw", "posterior.weight_decay=0", "posterior.lr=0.01"]
IVON = [
    *("posterior=ivon", "posterior.rescale_lr=false", "posterior.lr=0.02"),
    "posterior.hess_init=0.05",
]
ARMS = {
    "fedavg": POINT,
    "feddyn": POINT,
    "fedlap_cov": POINT,
    "fedlap_func": [*POINT, "federated.memory_items=3", "task.server_steps=5"],
    "bayes_admm": IVON,
}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class HereGrid:
    """A grid whose nodes are calls; answers come last first, one at a look.

    `fault` is given a job's message and the round, and returns a reply in place of the client's, or
    "silence".
    """

    def __init__(self, clients, fault=lambda message, round: None):
        self.nodes = {100 + k: k for k in range(clients)}
        self.fault, self.box, self.count, self.asked = fault, {}, 0, []

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.count += 1
            message.metadata.__dict__["_message_id"] = str(self.count)
            ids.append(str(self.count))
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            k = self.nodes[node]
            self.asked.append((kind, k))
            reply = None
            if kind == "train":
                reply = self.fault(message, int(message.metadata.group_id))
            if reply is None:
                node = {"partition-id": k, "num-partitions": len(self.nodes)}
                reply = app(
                    message, Context(1, message.metadata.dst_node_id, node, RecordDict(), {})
                )
            if reply != "silence":
                self.box[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids):
        here = [one for one in reversed(list(self.box)) if one in set(message_ids)]
        return [self.box.pop(one) for one in here[:1]]


def rounds_of(root, words, make_engine=None):
    config = compose(words)
    folder = RunStore(root).folder(config)
    folder.path.mkdir(parents=True, exist_ok=True)
    context = TaskContext(config, folder, History(folder), StopRequest())
    problem = Problem.from_context(context)
    engine = make_engine(config) if make_engine else None
    return make_task(config).rounds_of(problem, engine).rounds, folder


def over(grid, **options):
    return lambda config: GridEngine(grid, config, 3, poll=0.0, **options)


def done(loop):
    return loop.run(Progress("", 1, enabled=False))


def assert_equal_states(a, b):
    """Bit for bit, whatever is in them."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal_states(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_states(x, y)
    else:
        assert a == b


def everything(loop):
    return {
        "server": loop.state.to_plain(),
        "clients": [client.to_plain() for client in loop.clients],
        "curves": loop.curves,
        "refused": loop.refused,
        "bytes": [loop.bytes_up, loop.bytes_down],
    }


def test_records_keep_every_bit_and_nothing_else_travels():
    value = {
        "a": torch.tensor([1e-45, -0.0, float("inf"), 0.1]),
        "b": [torch.tensor(2.0**-1074, dtype=torch.float64), None, True, 0.1, ("x", 3)],
        "c": {"d": {}, "tensor": 1, "e": torch.arange(3)},
        "f": torch.arange(6.0).reshape(2, 3).T,
    }
    found, labels = unpack(pack(value, config="{}"))
    assert labels == {"config": "{}"}
    assert found["a"].dtype == torch.float32
    assert torch.equal(found["a"].view(torch.int32), value["a"].view(torch.int32))
    assert_equal_states(found, value)
    with pytest.raises(TypeError, match="a function cannot be sent"):
        pack({"f": lambda: 0})
    with pytest.raises(TypeError, match="keys must be strings"):
        pack({1: 2})


@pytest.mark.parametrize("name", ARMS)
def test_a_grid_gives_what_the_local_engine_gives(tmp_path, name):
    """Whatever the order in which replies arrive; the history too."""
    words = [*BASE, f"federated={name}", *ARMS[name]]
    local, a = rounds_of(tmp_path / "a", words)
    done(local)
    grid = HereGrid(3)
    other, b = rounds_of(tmp_path / "b", words, over(grid))
    done(other)
    assert_equal_states(everything(local), everything(other))
    assert a.metrics_path.read_text() == b.metrics_path.read_text()
    assert grid.asked.count(("query", 0)) == 1


def _garbage(message, round):
    content = RecordDict({"head": ConfigRecord({"outline": "[1"}), "tensors": ConfigRecord({})})
    return Message(content, reply_to=message)


FAULTS = {
    "raised ValueError": lambda m, r: Message(Error(2, "trace\nValueError: no"), reply_to=m),
    "did not answer: Node Unavailable": lambda m, r: Message(
        Error(5, "Node Unavailable"), reply_to=m
    ),
    "did not answer: no answer in time": lambda m, r: "silence",
    "sent what cannot be read": _garbage,
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_client_that_fails_is_left_out_and_the_round_goes_on(tmp_path, reason):
    """As if the same client had not answered in the local engine; its dual is kept."""
    words = [*BASE, "federated=fedlap", *POINT]

    def fault(message, round):
        wrong = message.metadata.dst_node_id == 101 and round == 1
        return FAULTS[reason](message, round) if wrong else None

    loop, _ = rounds_of(tmp_path / "a", words, over(HereGrid(3, fault), timeout=0.3))
    done(loop)
    (row,) = loop.refused
    assert (row["client"], row["round"]) == (1, 1)
    assert row["reason"].startswith(reason)
    local, _ = rounds_of(tmp_path / "b", words)
    sound = local.engine.clients.solver

    def solver(k, r, late):
        if (k, r) == (1, 1):
            raise ValueError("no")
        return sound(k, r, late)

    local.engine.clients.solver = solver
    done(local)
    ours, theirs = everything(loop), everything(local)
    assert_equal_states(ours["server"], theirs["server"])
    assert_equal_states(ours["clients"], theirs["clients"])
    assert [c.calls for c in loop.clients] == [3, 2, 3]


def test_a_node_that_is_started_anew_has_its_dual_again(tmp_path):
    """Its id is another one; the client's state came with the message."""
    words = [*BASE, "federated=fedlap", *POINT]
    local, _ = rounds_of(tmp_path / "a", words)
    done(local)
    grid = HereGrid(3)
    loop, _ = rounds_of(tmp_path / "b", words, over(grid))
    record = loop._record

    def restart(replied):
        record(replied)
        if loop.state.round == 1:
            del grid.nodes[101]
            grid.nodes[777] = 1

    loop._record = restart
    done(loop)
    assert_equal_states(everything(local), everything(loop))
    assert grid.asked.count(("query", 1)) == 2
    assert loop.refused == []


def test_a_node_that_goes_while_it_is_asked_is_asked_again(tmp_path):
    """Flower answers with None instead of the message's id."""
    grid, refused = HereGrid(3), []
    push = grid.push_messages

    def once(messages):
        if messages[0].metadata.dst_node_id == 101 and not refused:
            refused.append(101)
            return [None]
        return push(messages)

    grid.push_messages = once
    loop, _ = rounds_of(tmp_path, [*BASE, "federated=fedavg", *POINT], over(grid))
    done(loop)
    assert refused == [101]
    assert loop.refused == []


def test_no_nodes_at_all_is_said(tmp_path):
    loop, _ = rounds_of(tmp_path, [*BASE, "federated=fedavg", *POINT], over(HereGrid(0), wait=0.1))
    with pytest.raises(BayesruleError, match="no client's node has come up within"):
        done(loop)


def test_a_job_at_the_wrong_node_is_not_done():
    config = compose([*BASE, "federated=fedavg", *POINT])
    assert Clients.of(config).num_items == [40, 40, 40]
    grid = HereGrid(3)
    engine = GridEngine(grid, config, 3, poll=0.0)
    grid.nodes = {100: 0, 101: 2, 102: 1}
    list(engine._meet({0, 1, 2}))
    grid.nodes = {100: 0, 101: 1, 102: 2}  # they changed places without a new id
    from bayesrule.tasks.federated.engine import Job

    task = make_task(config)
    assert task.clients == 3
    local = Clients.of(config)
    from bayesrule.tasks.federated.parts import make_prior, weights_of

    state = local.algorithm.start(
        make_prior(local.model, config["federated"]), 3, weights_of(local.model)
    )
    job = Job(1, local.algorithm.message(state), local.algorithm.client_start(state, 1))
    (answer,) = [one for one in engine.work([job]) if one is not None]
    assert answer.reply is None
    assert "came to the node of client 2" in answer.problem


def test_the_engine_is_part_of_a_runs_identity_and_its_options_are_not():
    words = [*BASE, "federated=fedavg", *POINT]
    local, flower = compose(words), compose([*words, "engine=flower"])
    assert local["task"]["engine"] == "local"
    assert run_id(local) != run_id(flower)
    assert run_id(flower) == run_id(compose([*words, "engine=flower", "engine.workers=7"]))
    with pytest.raises(ConfigError, match="it is chosen by engine=flower"):
        make_task(compose([*words, "task.engine=flower"])).check(
            compose([*words, "task.engine=flower"])
        )


def test_an_override_of_a_group_is_for_the_studies_that_have_it():
    from bayesrule.config import experiments_dir
    from bayesrule.runs import load_paper

    paper = load_paper(experiments_dir() / "bayesian-admm")
    planned = paper.planned("smoke", None)
    configs = configurations(paper, planned, ["engine=flower", "engine.workers=2"])
    for run, config in zip(planned, configs, strict=True):
        assert config.get("engine", {}).get("name") == ("flower" if run.study == "shards" else None)
    with pytest.raises(ConfigError, match="engine"):
        configurations(paper, [run for run in planned if run.study == "toy"], ["engine=flower"])


@pytest.mark.parametrize("address", ["10.0.0.1:8000", "127.0.0.1", "superlink", "[::2]:1"])
def test_a_superlink_on_another_machine_is_refused(address):
    with pytest.raises(ConfigError, match="host:port on the loopback"):
        check_superlink(address)
    check_superlink("127.0.0.1:8000")
    check_superlink("[::1]:8000")
