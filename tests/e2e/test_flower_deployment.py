"""A SuperLink and two SuperNodes on the loopback; one of them dies in the second round."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import CommandLine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="flwr is not installed"),
]

RUN = (
    *("train", "task=federated", "data=digits", "model.hidden=[8]", "task.clients=2"),
    *("task.rounds=3", "federated=bayes_admm", "posterior=ivon", "posterior.lr=0.02"),
    *("posterior.rescale_lr=false", "posterior.hess_init=0.05", "metrics.mc_samples=2"),
    *("metrics.ece_null_draws=0", "trainer.epochs=1", "task.eval_every=1"),
)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Deployment:
    """Processes of a deployment, each a group of its own that is ended with the test."""

    def __init__(self, folder, environment):
        self.folder, self.environment, self.groups = folder, environment, []
        self.address = f"127.0.0.1:{free_port()}"

    def start(self, program, *words):
        home = self.folder / f"flower{len(self.groups)}"
        home.mkdir(parents=True)
        environment = {
            **self.environment,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HOME": str(self.folder / "home"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        log = (self.folder / f"{program}{len(self.groups)}.log").open("wb")
        path = Path(sys.executable).with_name(program)
        process = subprocess.Popen(
            [str(path), "--insecure", "--host", "127.0.0.1", *words],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        self.groups.append(process)
        return process

    def link(self):
        return self.start(
            "flower-superlink",
            *("--port", self.address.rpartition(":")[2]),
            "--disable-runtime-dependency-installation",
        )

    def node(self, k, of):
        return self.start(
            "flower-supernode",
            *("--superlink", self.address, "--port", str(free_port())),
            *("--node-config", f"partition-id={k} num-partitions={of}"),
        )

    def kill(self, process):
        """End a process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self):
        for process in self.groups:
            self.kill(process)


@pytest.fixture
def deployment(tmp_path):
    made = Deployment(tmp_path / "deployment", CommandLine(tmp_path / "unused").environment)
    yield made
    made.close()


def until(condition, what, seconds=240.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def rows_of(runs):
    rows = []
    for path in Path(runs).glob("*/metrics.jsonl"):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    return rows


@pytest.mark.timeout(900)
def test_two_nodes_give_the_bits_of_the_local_engine(cli, other_cli, deployment):
    deployment.link()
    for k in (0, 1):
        deployment.node(k, 2)
    options = ("engine=deployment", f"engine.superlink={deployment.address}")
    process = cli.start(*RUN, *options)
    _out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    local = other_cli(*RUN)
    assert local.returncode == 0, local.stderr
    assert cli.outcome() == other_cli.outcome()
    assert not (deployment.folder / "home" / ".flwr").exists()


@pytest.mark.timeout(900)
def test_a_node_that_is_killed_in_the_second_round(cli, deployment):
    """The round goes on without its client, the next one too, and the model is a valid one."""
    deployment.link()
    _, second = deployment.node(0, 2), deployment.node(1, 2)
    options = ("engine=deployment", f"engine.superlink={deployment.address}")
    process = cli.start(*RUN, *options)
    try:
        until(
            lambda: (
                any("comm/replies" in row for row in rows_of(cli.runs))
                or process.poll() is not None
            ),
            "the end of the first round",
            400.0,
        )
        deployment.kill(second)
        _out, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, err
    record = json.loads((cli.folder() / "record.json").read_text())
    assert record["status"] == "done"
    assert record["details"]["rounds"]["comm/replies"] == [[1.0, 2.0], [2.0, 1.0], [3.0, 1.0]]
    assert {row["client"] for row in record["details"]["refused"]} == {1}
    assert all("did not answer" in row["reason"] for row in record["details"]["refused"])
    assert record["metrics"]["test/acc@mean"] > 0.3

    from safetensors.torch import load_file

    posterior = load_file(cli.folder() / "posterior.safetensors")
    assert all(bool(torch.isfinite(t).all()) for t in posterior.values())
