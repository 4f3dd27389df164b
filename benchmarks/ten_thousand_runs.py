"""Ten thousand runs: how long `bayesrule runs ls` and the dashboard's table take, and memory.

    python benchmarks/ten_thousand_runs.py [--runs 10000] [--keep DIR]

Makes synthetic records (40 metrics and about 60 configuration keys each), indexes them once, and
then measures processes of their own: the command from its start to its end, and the server's
answers over HTTP, with the largest resident memory of each. Nothing is asserted; the table is
printed.
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bayesrule.runs import RunStore, run_id, write_json
from bayesrule.runs.record import RunRecord

PAGES = {
    "first page": "/runs",
    "page 100": "/runs?page=100",
    "sorted by a metric": "/runs?sort=test/nll@mc64&dir=asc",
    "filtered by a key": "/runs?q=posterior%3Divon+posterior.lr%3C0.05",
    "filtered by a metric": "/runs?q=test/nll@mean%3C0.4&status=done",
    "words": "/runs?q=paper7+digits",
    "grouped, intervals": "/runs?group=paper,arm,posterior.lr",
    "one run": "/runs/{id}",
    "sweep of all": "/parallel?axes=posterior.lr,posterior,test/nll@mc64",
}


def record(number, rng):
    arm = ("ivon", "adamw", "sgd", "bsam")[number % 4]
    posterior = {
        "_target_": f"bayesrule.optim.{arm.upper()}",
        "lr": rng.choice((0.01, 0.03, 0.1, 0.3)),
    }
    posterior |= {f"option{i}": rng.random() for i in range(10)}
    config = {
        "seed": number % 10 + 10,
        "number": number,
        "study": f"paper{number % 12}/study{number % 3}/{arm}",
        "note": "<b>a note</b>" if number % 50 == 0 else "",
        "posterior": posterior,
        "model": {"name": ("mlp", "cnn")[number % 2], **{f"size{i}": i for i in range(10)}},
        "data": {
            "name": ("digits", "mnist5k")[number % 2],
            **{f"key{i}": str(i) for i in range(15)},
        },
        "trainer": {f"key{i}": i / 10 for i in range(15)},
    }
    rules = ("mean", "mc1", "mc4", "mc64")
    stems = ("acc", "nll", "ece", "brier", "aurc", "auroc_err", "entropy", "top5", "conf", "mce")
    metrics = {f"test/{stem}@{rule}": rng.random() for stem in stems for rule in rules}
    date = f"2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}T10:{number % 60:02d}:00+00:00"
    bins = {name: [rng.random() for _ in range(20)] for name in ("counts", "sum_conf", "sum_acc")}
    return RunRecord(
        id=run_id(config),
        status="failed" if number % 97 == 0 else "done",
        metrics={} if number % 97 == 0 else metrics,
        error=("ValueError", "the loss is not finite") if number % 97 == 0 else None,
        config=config,
        provenance={"date": date, "wall_seconds": rng.random() * 100, "commit": "0" * 40},
        details={"curves": {"test/reliability@mean": bins}},
    )


def make_store(root, count):
    rng = random.Random(0)
    for number in range(count):
        one = record(number, rng)
        folder = root / one.id
        folder.mkdir(parents=True, exist_ok=True)
        if number % 500 == 0:  # damaged
            (folder / "record.json").write_text('{"schema": 1, "id"')
        elif not (folder / "record.json").exists():
            write_json(folder / "record.json", one.to_json())
    return one.id


def timed(words, environment):
    """Run a command; return its seconds and largest memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def memory(pid):
    """Return the largest resident memory of a living process in MB (Linux)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="folder for the store; kept, and used again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch) / "runs"
        start = time.perf_counter()
        last = make_store(root, args.runs)
        print(f"{len(RunStore(root).ids())} records made in {time.perf_counter() - start:.1f} s")
        environment = {
            **os.environ,
            "BAYESRULE_RUNS": str(root),
            "BAYESRULE_CACHE": f"{scratch}/cache",
        }
        bayesrule = [sys.executable, "-m", "bayesrule.cli.main"]
        rows = [("index, from nothing", *timed([*bayesrule, "runs", "ls"], environment))]
        for words in ([], ["posterior=ivon", "posterior.lr=0.1"], ["--limit", "0"]):
            seen = [timed([*bayesrule, "runs", "ls", *words], environment) for _ in range(5)]
            seconds, peaks = zip(*seen, strict=True)
            name = " ".join(["bayesrule runs ls", *words])
            rows.append((name, statistics.median(seconds), max(peaks)))
        rows += serve([*bayesrule, "dashboard", "--port", "0"], environment, last)
    print(f"{'':44}{'seconds':>9}{'peak MB':>9}")
    for name, seconds, peak in rows:
        print(f"{name:44}{seconds:9.3f}{peak:9.0f}")


def serve(words, environment, identifier):
    """Return for every page the median of five answers, and the server's memory after it."""
    server = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        base = server.stdout.readline().split()[0].rstrip("/")
        rows = []
        for name, path in PAGES.items():
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                urllib.request.urlopen(base + path.format(id=identifier)).read()
                seconds.append(time.perf_counter() - start)
            rows.append((f"dashboard: {name}", statistics.median(seconds), memory(server.pid)))
        return rows
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    main()
