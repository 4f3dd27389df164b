"""Eight processes write fifty runs each into one store: nothing is lost, nothing is torn."""

import json
import multiprocessing

import pytest

from bayesrule.errors import RunLocked
from bayesrule.runs import JsonlWriter, RunStore

WRITERS, EACH, SHARED = 8, 50, 10


def write(root, writer, results):
    """Write `EACH` runs: the first ten are everybody's, for which the writers race."""
    store = RunStore(root)
    written = []
    for number in range(EACH):
        owner = "all" if number < SHARED else writer
        config = {"model": {"name": f"m{owner}"}, "seed": number}
        while True:
            try:
                with store.folder(config).lock(timeout=60) as run:
                    if run.is_done():
                        break
                    with JsonlWriter(run.metrics_path) as history:
                        for step in range(5):
                            history.append({"phase": "train", "step": step, "by": str(writer)})
                    run.write_record("done", {"val/nll@mean": writer + number / 100})
                    written.append(run.id)
                    break
            except RunLocked:
                continue
    results.put(written)


@pytest.mark.fault("eight processes write four hundred runs")
def test_nothing_is_lost_and_nothing_is_torn(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=write, args=(str(tmp_path), writer, results))
        for writer in range(WRITERS)
    ]
    for process in processes:
        process.start()
    written = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = RunStore(tmp_path)
    expected = SHARED + WRITERS * (EACH - SHARED)
    ids = [each for part in written for each in part]
    assert len(ids) == len(set(ids)) == expected  # a shared run was done by one writer only
    runs = store.ls()
    assert sorted(run.id for run in runs) == sorted(ids)
    assert {run.status for run in runs} == {"done"}
    assert store.verify() == []  # every checksum holds
    for run in runs:
        rows = run.folder.history()
        assert [row["step"] for row in rows] == list(range(5))
        assert len({row["by"] for row in rows}) == 1
        assert set(json.loads(run.folder.record_path.read_text())["files"]) == {
            "config.yaml",
            "metrics.jsonl",
        }
    assert not list(tmp_path.rglob("*.tmp"))
