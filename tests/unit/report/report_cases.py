"""A made-up study with a known answer: three arms, five seeds, histories and curves."""

import numpy as np

from bayesrule.report import Records
from bayesrule.runs import ArmRun, JsonlWriter, RunStore

SEEDS = (10, 11, 12, 13, 14)
ARMS = ("adamw", "sgd", "ivon")
KS = (1, 2, 4, 8, 16, 64)
EPOCHS = 12
BINS = 10

_NLL = {"adamw": 1.75, "sgd": 2.5, "ivon": 1.3}
_ACC = {"adamw": 0.69, "sgd": 0.68, "ivon": 0.74}
_SKEW = {"adamw": 0.15, "sgd": 0.22, "ivon": 0.06}


def _metrics(arm, rng):
    base = _NLL[arm] + 0.04 * rng.standard_normal()
    acc = _ACC[arm] + 0.01 * rng.standard_normal()
    gain = 0.16 if arm == "ivon" else 0.0
    metrics = {"test/nll@mean": base + gain, "test/acc@mean": acc}
    for k in KS:
        metrics[f"test/nll@mc{k}"] = base + (gain * 1.4 / k if gain else 0.0)
        metrics[f"test/acc@mc{k}"] = acc - (0.06 / k if gain else 0.0)
    for rule in ("mean", "mc64"):
        metrics[f"test/ece@{rule}"] = _SKEW[arm] + (0.03 if rule == "mean" and gain else 0.0)
        metrics[f"ood/auroc@{rule}"] = 0.9 if arm == "ivon" else 0.8
    return metrics


def _reliability(arm, rng):
    middles = (np.arange(BINS) + 0.5) / BINS
    counts = np.floor(200 * middles**2) * (middles > 0.15) + rng.integers(0, 5, BINS)
    counts[0] = 0
    acc = np.clip(middles - _SKEW[arm], 0, 1)
    return {
        "counts": counts.tolist(),
        "sum_conf": (counts * middles).tolist(),
        "sum_acc": (counts * acc).tolist(),
    }


def _entropy(arm):
    edges = np.linspace(0, np.log(10), 31)
    middles = (edges[1:] + edges[:-1]) / 2
    inside = np.exp(-middles / 0.4)
    outside = np.exp(-((middles - (1.6 if arm == "ivon" else 1.0)) ** 2) / 0.3)
    return {
        "edges": edges.tolist(),
        "id": (inside / inside.sum()).tolist(),
        "mnist": (outside / outside.sum()).tolist(),
    }


def config(arm, seed):
    return {"posterior": {"name": arm, "lr": 0.1}, "trainer": {"epochs": EPOCHS}, "seed": seed}


def make_run(store, arm, seed):
    """Write one finished run and return it as an `ArmRun`."""
    rng = np.random.default_rng([ARMS.index(arm), seed])
    metrics = _metrics(arm, rng)
    curves = {f"ood/entropy@{rule}": _entropy(arm) for rule in ("mean", "mc64")}
    bins = _reliability(arm, rng)
    other = _reliability("adamw", rng) if arm == "ivon" else bins
    curves |= {"test/reliability@mc64": bins, "test/reliability@mean": other}
    with store.folder(config(arm, seed)).lock() as folder:
        with JsonlWriter(folder.metrics_path) as history:
            for epoch in range(EPOCHS):
                row = {"phase": "train", "step": 16 * (epoch + 1), "epoch": epoch}
                loss = 2.2 * np.exp(-epoch / 4) + 0.05 * rng.random()
                history.append(row | {"train/epoch_loss": loss})
                nll = _NLL[arm] + 0.8 * np.exp(-epoch / 2) + 0.03 * rng.standard_normal()
                history.append(row | {"test/nll@mean": nll, "test/nll@mc64": nll - 0.1})
            history.append({"phase": "other", "step": 0, "epoch": 0, "train/epoch_loss": 99.0})
        record = folder.write_record("done", metrics, details={"curves": curves, "parameters": 17})
    return ArmRun.of("p2", arm, seed, record.id, record)


def make_records(root, seeds=SEEDS, arms=ARMS):
    """Return the study's records, in a store below `root`; one more run of it failed."""
    store = RunStore(root / "runs")
    runs = [make_run(store, arm, seed) for arm in arms for seed in seeds]
    runs.append(ArmRun("p2", "ivon", 15, None, "failed", {}, "NonFiniteLoss: nan"))
    return Records(runs, store)
