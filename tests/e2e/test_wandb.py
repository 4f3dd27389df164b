"""`logger=wandb`: what its offline file holds is what the run store holds, come what may."""

import http.server
import json
import os
import signal
import threading
import time

import pytest
from wandb_file import read_wandb

from bayesrule.runs import RunFolder, RunStore
from bayesrule.tasks.history import History
from bayesrule.tasks.loggers import WandbSink, sweep_name

SMALL = ("trainer.epochs=2", "metrics.mc_samples=2", "metrics.prefixes=[1]",
         "metrics.ece_null_draws=0", "trainer.log_every=5")  # fmt: skip


@pytest.fixture(autouse=True)
def _no_account(monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_GROUP", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def _offline(folder):
    (path,) = folder.glob("wandb/wandb/offline-run-*/run-*.wandb")
    assert path.stem == f"run-{folder.name}"
    return path


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if name != "_schema_"}
    return value


def _check(folder):
    """Compare the one offline file of a run with its history and its record."""
    found = read_wandb(_offline(folder))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {row["_step"]: row for row in found.history}
    for number, row in enumerate(rows):
        phase = row.pop("phase")
        prefix = "" if phase == "train" else f"{phase}/"
        for name, value in row.items():
            assert logged[number][prefix + name] == value
        assert found.step_metrics[f"{prefix}*"] == f"{prefix}step"
    record = json.loads((folder / "record.json").read_text())
    for name, value in record["metrics"].items():
        assert found.summary[name] == value
    for name in ("seed", "posterior", "model", "trainer"):
        assert found.config[name] == _plain(record["config"][name])
    assert found.run.run_id == folder.name
    assert found.finished
    return found, rows, logged


def test_a_killed_run_goes_on_under_its_id_in_one_whole_file(cli):
    run = ("train", "logger=wandb", "trainer.epochs=40", "trainer.log_every=7", "posterior=ivon",
           "metrics.mc_samples=2", "metrics.ece_null_draws=0",
           "trainer.checkpoint_seconds=0.05")  # fmt: skip
    killed = cli.stop_after_checkpoints(2, signal.SIGKILL, *run)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = cli.folder().glob("wandb/wandb/offline-run-*")
    finished = cli(*run)
    assert finished.returncode == 0, finished.stderr
    assert not partial.exists()  # the newest holds it all
    _, rows, logged = _check(cli.folder())
    assert sorted(logged) == list(range(len(rows) + 1))  # no row twice, none missing
    assert sum("train/loss" in row for row in logged.values()) > 20

    last, files = logged[len(rows)], _offline(cli.folder()).parent / "files"
    record = json.loads((cli.folder() / "record.json").read_text())
    table = json.loads((files / last["tables/metrics/path"]).read_text())
    assert table["columns"] == ["split", "metric", "rule", "value"]
    values = {f"{s}/{m}@{r}" if r else f"{s}/{m}": v for s, m, r, v in table["data"]}
    assert values["test/nll@mean"] == record["metrics"]["test/nll@mean"]
    bins = json.loads((files / last["tables/test/reliability@mean/path"]).read_text())
    counts = record["details"]["curves"]["test/reliability@mean"]["counts"]
    assert [row[2] for row in bins["data"]] == counts
    for figure in ("figures/training/path", "figures/reliability/path"):
        assert (files / last[figure]).read_bytes().startswith(b"\x89PNG")
    assert not list(cli.runs.parent.glob("wandb"))  # nothing outside the run's folder


def test_a_sweep_is_grouped_and_a_server_that_cannot_be_reached_costs_seconds_only(
    cli, monkeypatch
):
    for name, value in {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # nobody listens
        "WANDB_API_KEY": "a" * 40,
        "WANDB_INIT_TIMEOUT": "2",
    }.items():
        monkeypatch.setitem(cli.environment, name, value)
    words = ("logger=wandb", "posterior=adamw,deep_ensemble", *SMALL)
    result = cli("train", "-m", *words)
    assert result.returncode == 0, result.stderr
    assert "wandb is not reachable, so the run is logged offline" in result.stderr
    folders = [cli.runs / name for name in RunStore(cli.runs).ids()]
    assert len(folders) == 2  # one of them in several phases, whose steps start again
    # the file of every job is whole, also of those that one process did one after the other
    groups = {_check(folder)[0].run.run_group for folder in folders}
    assert groups == {sweep_name(words)}


class _Server:
    """As much of a wandb server as starts a run; from `gone` on it hangs up on everybody."""

    def __init__(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if server.gone:
                    self.connection.close()
                    return
                server.asked += 1
                answer = json.dumps({"data": server.answer(body.decode())}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

        self.gone, self.asked = False, 0
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def answer(self, body):
        if "upsertBucket" not in body:
            return {}
        project = {"id": "p", "name": "bayesrule", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "x", "name": "r", "displayName": "d", "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


def test_a_connection_that_is_lost_in_training_costs_seconds_and_no_rows(tmp_path, monkeypatch):
    server = _Server()
    for name, value in {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "a" * 40,
        "WANDB_INIT_TIMEOUT": "20",
        "WANDB_FINISH_TIMEOUT": "2",
    }.items():
        monkeypatch.setenv(name, value)
    logger = {"name": "wandb", "project": "bayesrule", "entity": None, "mode": None}
    config = {"logger": logger, "study": None, "tags": [], "note": "", "seed": 0}
    folder = RunFolder(tmp_path, "0" * 16)
    folder.path.mkdir()
    before = dict(os.environ)
    history = History(folder, [WandbSink(config, folder)])
    assert server.asked > 0  # it did go online
    server.gone = True
    start = time.monotonic()
    for step in range(1, 21):
        history.append({"phase": "train", "step": step, "epoch": 0, "train/loss": 1.0 / step})
    history.close()
    assert time.monotonic() - start < 60  # it would try for hours
    server.stop()
    assert dict(os.environ) == before
    (path,) = folder.path.glob("wandb/wandb/run-*/run-*.wandb")
    logged = [row["train/loss"] for row in read_wandb(path).history]
    assert logged == [1.0 / step for step in range(1, 21)]  # `wandb sync` can send them later
