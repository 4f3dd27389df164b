import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import yaml

from bayesrule.errors import ConfigError, CorruptFile, NonFiniteLoss, RunLocked
from bayesrule.runs import store as store_module
from bayesrule.runs.files import JsonlWriter, read_json, write_json
from bayesrule.runs.identity import run_id
from bayesrule.runs.record import RunRecord
from bayesrule.runs.store import RunFolder, RunStore


def config_of(seed, lr=0.1):
    return {
        "experiment": "ivon/p2",
        "seed": seed,
        "posterior": {"name": "ivon", "lr": lr, "beta2": 0.9995, "weight_decay": 1e-5},
        "paths": {"runs": "/x"},
        "note": None,
    }


def finish(store, seed, status="done", **options):
    metrics = options.pop("metrics", {"test/nll@mean": 0.5 + seed})
    with store.folder(config_of(seed)).lock() as run:
        return run.write_record(status, metrics, **options)


def test_a_run_from_start_to_end(tmp_path):
    store = RunStore(tmp_path / "runs")
    run = store.folder(config_of(1))
    assert run.id == run_id(config_of(1))
    assert not (tmp_path / "runs").exists()  # lazily
    assert not run.is_done()
    with run.lock() as held:
        assert held.config() == config_of(1)
        assert run.config_path.exists()
        assert run.record() is None
        with JsonlWriter(run.metrics_path) as writer:
            writer.append({"step": 1, "loss": 0.3})
        run.write_record("done", {"test/acc@mean": 0.9}, provenance={"commit": "abc"})
    assert run.is_done()
    record = run.record()
    assert record.metrics == {"test/acc@mean": 0.9}
    assert record.config == config_of(1)
    assert record.provenance == {"commit": "abc"}
    assert set(record.files) == {"config.yaml", "metrics.jsonl"}
    assert run.history() == [{"step": 1, "loss": 0.3}]
    assert store.verify() == []
    assert {entry.name for entry in run.path.iterdir()} == {
        "config.yaml",
        "record.json",
        "metrics.jsonl",
    }


def test_volatile_keys_find_the_same_folder_and_keep_the_first_config(tmp_path):
    store = RunStore(tmp_path)
    finish(store, 1)
    moved = config_of(1) | {"paths": {"runs": "/y"}, "note": "again"}
    with store.folder(moved).lock() as run:
        assert run.is_done()
        assert run.config()["paths"] == {"runs": "/x"}


def test_failed_and_non_finite_records(tmp_path):
    store = RunStore(tmp_path)
    finish(
        store,
        2,
        "failed",
        metrics={"a": math.nan, "b": -math.inf},
        error=NonFiniteLoss("step 7: nll is nan"),
    )
    record = store.folder(config_of(2)).record()
    assert record.error == ("NonFiniteLoss", "step 7: nll is nan")
    assert math.isnan(record.metrics["a"])
    assert record.metrics["b"] == -math.inf
    assert not store.folder(config_of(2)).is_done()
    with pytest.raises(ValueError, match="status"):
        finish(store, 3, "finished")


def test_get_by_prefix(tmp_path):
    store = RunStore(tmp_path)
    ids = sorted(finish(store, seed).id for seed in range(40))
    assert store.ids() == ids
    assert store.get(ids[0]).id == ids[0]
    shared = next(a[0] for a, b in itertools.pairwise(ids) if a[0] == b[0])
    with pytest.raises(ConfigError, match="fits"):
        store.get(shared)
    for missing in ("f" * 16, "", "../x", "*", "zz"):
        with pytest.raises(ConfigError, match="runs ls"):
            store.get(missing)


def test_ls_filters_and_statuses(tmp_path):
    store = RunStore(tmp_path)
    assert store.ls() == []
    for seed in range(4):
        finish(store, seed)
    finish(store, 4, "failed", error=ValueError("x"))
    with store.folder(config_of(5)).lock():
        pass  # begun, never ended
    with store.folder(config_of(6)).lock() as running:
        found = {run.id: run.status for run in store.ls()}
        assert found[running.id] == "running"
        assert found[run_id(config_of(5))] == "unfinished"
        assert sorted(found.values()).count("done") == 4
        assert len(found) == 7
    assert len(store.ls({"status": "done"})) == 4
    assert [run.record.config["seed"] for run in store.ls(["seed=3"])] == [3]
    assert len(store.ls({"posterior.lr": "0.1", "experiment": "ivon/*"})) == 5
    assert len(store.ls(["test/nll@mean=1.5"])) == 1
    assert store.ls({"posterior.nope": "*x*"}) == []
    with pytest.raises(ConfigError, match="key=pattern"):
        store.ls(["seed"])


def test_ls_reads_only_records(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    for seed in range(3):
        finish(store, seed)

    def forbidden(*arguments, **options):
        raise AssertionError("ls opened something other than a record")

    monkeypatch.setattr(store_module, "_read_config", forbidden)
    monkeypatch.setattr(store_module, "sha256_file", forbidden)
    monkeypatch.setattr(store_module, "read_jsonl", forbidden)
    assert len(store.ls(["seed=*"])) == 3


def test_other_files_in_the_root_are_no_runs(tmp_path):
    store = RunStore(tmp_path)
    finish(store, 1)
    (tmp_path / ".sweeps").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    assert len(store.ls()) == 1


def test_rm(tmp_path):
    store = RunStore(tmp_path)
    kept, gone = finish(store, 1).id, finish(store, 2).id
    (tmp_path / f".removed-{gone}-00").mkdir()  # left by a killed rm
    assert store.rm(gone[:12]) == gone
    assert store.ids() == [kept]
    assert not list(tmp_path.glob(".removed-*"))
    with store.folder(config_of(1)).lock(), pytest.raises(RunLocked):
        store.rm(kept)
    assert store.ids() == [kept]


def test_a_damaged_record_is_no_end_of_a_run(tmp_path):
    store = RunStore(tmp_path)
    finish(store, 1)
    run = store.folder(config_of(1))
    text = run.record_path.read_text()
    run.record_path.write_text(text.replace("1.5", "1.4"))
    with pytest.warns(UserWarning, match="counts as not finished"):
        assert not run.is_done()
    with pytest.raises(CorruptFile, match="checksum"):
        run.record()
    assert store.ls()[0].status == "corrupt"
    assert [problem.path for problem in store.verify()] == [run.record_path]
    with run.lock(), pytest.warns(UserWarning, match="written anew"):
        run.write_record("done", {"test/nll@mean": 1.5})
    assert run.is_done()
    assert run.record_path.with_name("record.json.corrupt").exists()


def test_records_of_other_versions_and_shapes(tmp_path):
    store = RunStore(tmp_path)
    finish(store, 1)
    run = store.folder(config_of(1))
    content = read_json(run.record_path)
    minimal = {key: content[key] for key in ("schema", "id", "status", "metrics")}
    write_json(run.record_path, minimal)
    assert run.record() == RunRecord(run.id, "done", {"test/nll@mean": 1.5})
    for change, word in [
        ({"schema": 99}, "install a newer one"),
        ({"schema": None}, "schema"),
        ({"id": "f" * 16}, "belongs to run"),
        ({"status": "running"}, "status"),
        ({"metrics": {"a": "high"}}, "whole"),
        ({"metrics": [1]}, "whole"),
    ]:
        write_json(run.record_path, content | change)
        with pytest.raises(CorruptFile, match=word):
            run.record()


def test_verify_says_what_is_wrong(tmp_path):
    store = RunStore(tmp_path)
    for seed in range(5):
        with store.folder(config_of(seed)).lock() as run:
            with JsonlWriter(run.metrics_path) as writer:
                writer.append({"step": 1})
            run.checkpoints.save(b"payload", 1)
            run.write_record("done", {"a": 1.0})
    runs = [store.folder(config_of(seed)) for seed in range(5)]
    assert store.verify() == []

    edited = runs[0].config_path.read_text().replace("seed: 0", "seed: 77")
    runs[0].config_path.write_text(edited)
    problems = store.verify(runs[0].id)
    assert {problem.path for problem in problems} == {runs[0].config_path}
    assert run_id(yaml.safe_load(edited)) in problems[0].message

    runs[1].metrics_path.write_text('{"step": 2}\n')
    assert "altered" in store.verify(runs[1].id)[0].message
    runs[1].metrics_path.unlink()
    assert "missing" in store.verify(runs[1].id)[0].message

    data = bytearray(runs[2].checkpoints.file(1).read_bytes())
    data[2] ^= 1
    runs[2].checkpoints.file(1).write_bytes(data)
    assert [problem.path for problem in store.verify(runs[2].id)] == [runs[2].checkpoints.file(1)]

    runs[3].config_path.write_bytes(b"\xff\x00: [")
    assert "YAML" in store.verify(runs[3].id)[0].message
    runs[4].config_path.unlink()
    assert "missing" in store.verify(runs[4].id)[0].message
    assert {problem.id for problem in store.verify()} == {run.id for run in runs}


def test_a_damaged_config_is_written_anew_under_the_lock(tmp_path):
    store = RunStore(tmp_path)
    run = store.folder(config_of(1))
    with run.lock():
        pass
    run.config_path.write_text("seed: 5\n")
    with pytest.raises(CorruptFile, match="describes run"):
        run.config()
    with pytest.warns(UserWarning, match="written anew"), run.lock():
        assert run.config() == config_of(1)


def test_numbers_survive_the_yaml(tmp_path):
    values = [1e-5, 1e22, 1.0, 0.1, -3, 5e-324, 1.7976931348623157e308, "1e-5", "no", "~", True]
    config = {"values": values, "nested": {"a": None, "ü": "ß"}}
    with RunStore(tmp_path).folder(config).lock() as run:
        stored = run.config()
    assert stored == config
    assert [type(value) for value in stored["values"]] == [type(value) for value in values]


def test_the_lock_is_exclusive_within_one_process(tmp_path):
    store = RunStore(tmp_path)
    with store.folder(config_of(1)).lock() as run:
        assert run.is_locked()
        with pytest.raises(RunLocked) as caught, store.folder(config_of(1)).lock(timeout=0.05):
            pytest.fail("two holders")
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
        with store.folder(config_of(2)).lock():
            pass
    assert not run.is_locked()
    with store.folder(config_of(1)).lock():
        pass


HOLD = """
import sys, time, json
from bayesrule.runs.store import RunStore
with RunStore(sys.argv[1]).folder(json.loads(sys.argv[2])).lock() as run:
    (run.path / ".x.123.abc.tmp").write_text("left over")
    print(run.id, flush=True)
    time.sleep(600)
"""


def test_kill_9_of_the_holder_frees_the_lock(tmp_path):
    config = config_of(1)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), json.dumps(config)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().strip() == run_id(config)
        run = RunStore(tmp_path).folder(config)
        assert run.is_locked()
        with pytest.raises(RunLocked, match=f"process {process.pid} on"), run.lock(timeout=0.05):
            pytest.fail("two holders")
        assert RunStore(tmp_path).ls()[0].status == "running"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert RunStore(tmp_path).ls()[0].status == "unfinished"
    with run.lock(timeout=5):
        assert not list(run.path.glob(".*.tmp"))
        run.write_record("done", {})
    assert run.is_done()


def test_many_writers_do_each_run_once(tmp_path):
    """Threads race for the same ten runs; each run is done by exactly one of them."""
    done = []

    def work():
        for seed in range(10):
            run = RunStore(tmp_path).folder(config_of(seed))
            with run.lock(timeout=60):
                if not run.is_done():
                    run.write_record("done", {"seed": float(seed)})
                    done.append(seed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(10))
    assert RunStore(tmp_path).verify() == []


def test_a_folder_without_config_can_still_be_read(tmp_path):
    record = finish(RunStore(tmp_path), 1)
    run = RunFolder(tmp_path, record.id)
    assert run.is_done()
    with run.lock():
        assert run.write_record("done", {"b": 2}).config == config_of(1)
    assert run.posterior_path.name == "posterior.safetensors"
