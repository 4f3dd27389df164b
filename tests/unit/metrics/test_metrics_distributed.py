"""Two gloo processes with uneven parts give the values of one process with all items."""

import datetime
import json
import os
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bayesrule import metrics as M

N = 12
PARTS = {"uneven": (slice(0, 7), slice(7, 12)), "one_empty": (slice(0, 12), slice(12, 12))}


def data():
    g = torch.Generator().manual_seed(0)
    lp = torch.randn(3, N, 6, generator=g, dtype=torch.float64)
    lp[:, 8:10] = lp[:, 1:3]  # ties across the two processes
    y = torch.randint(6, (N,), generator=g)
    mean = torch.randn(3, N, generator=g, dtype=torch.float64)
    return lp.log_softmax(-1), y, mean


def values(part, *, update_empty=True):
    lp, y, mean = (t[..., part, :] if t.ndim == 3 else t[..., part] for t in data())
    metrics = {
        "classification": M.ClassificationMetrics(6, (15, 20)),
        "binary": M.ClassificationMetrics(2),
        "regression": M.RegressionMetrics(),
        "samples": M.RegressionMetrics(),
        "ood": M.OODMetrics(("entropy", "mi"), ("a", "b")),
        "language": M.LanguageMetrics(),
    }
    if len(y) or update_empty:
        two = lp[..., :2].log_softmax(-1)
        metrics["classification"].update(None, y, lp)
        metrics["binary"].update(two[0], y % 2)
        metrics["regression"].update(mean, torch.tensor(0.8), mean[0] + 0.3)
        metrics["samples"].update(mean, None, mean[0] + 0.3)
        metrics["language"].update(lp[0], y)
        metrics["ood"].update(None, "id", lp)
        metrics["ood"].update(None, "a", (0.5 * lp).log_softmax(-1))
        metrics["ood"].update(None, "b", lp.flip(-1))
    # compute twice: the local state must be back after the first
    first = {name: metric.compute() for name, metric in metrics.items()}
    for name, metric in metrics.items():
        metric._computed = None
        again = metric.compute()
        assert again == pytest.approx(first[name], nan_ok=True, abs=0)
    bins = metrics["classification"].reliability()
    return {**first, "bins": {str(i): row.tolist() for i, row in enumerate(bins)}}


CASES = [("uneven", True), ("one_empty", True), ("one_empty", False)]


def worker(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    try:
        for case, (name, update_empty) in enumerate(CASES):
            result = values(PARTS[name][rank], update_empty=update_empty)
            Path(folder, f"{case}-{rank}.json").write_text(json.dumps(result))
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    whole = values(slice(0, N))
    for case, rank in product(range(len(CASES)), range(2)):
        result = json.loads((tmp_path / f"{case}-{rank}.json").read_text())
        assert set(result) == set(whole)
        for metric, expected in whole.items():
            assert set(result[metric]) == set(expected)
            for key, value in expected.items():
                assert result[metric][key] == pytest.approx(value, abs=1e-12, nan_ok=True), key
