"""A small store: two arms over three seeds, and runs that are hostile, broken, or not at an end."""

from bayesrule.report.dashboard.site import Site
from bayesrule.runs import JsonlWriter, RunStore

EVIL = "</script><script>window.evil = 1</script>\"'><img src=x onerror=alert(1)> {{ 7 * 7 }}"
FORMULA = "=HYPERLINK(1)"
SEEDS = (10, 11, 12)
VALUES = {"ivon": 0.3, "sgd": 0.5}


def config(arm, seed, **more):
    return {
        "posterior": {
            "_target_": f"bayesrule.optim.{arm.upper()}",
            "lr": 0.1 if arm == "sgd" else 0.2,
        },
        "model": {"name": "mlp"},
        "data": {"name": "digits_100%"},
        "study": f"demo/main/{arm}",
        "seed": seed,
        **more,
    }


def write_run(
    root, cfg, metrics, *, status="done", steps=5, details=None, error=None, key="train/epoch_loss"
):
    with RunStore(root).folder(cfg).lock() as folder:
        with JsonlWriter(folder.metrics_path) as history:
            for step in range(1, steps + 1):
                history.append({"phase": "train", "step": step, "epoch": 0, key: 1.0 / step})
        folder.write_record(
            status,
            metrics,
            details=details or {},
            error=error,
            provenance={"date": f"2026-11-{cfg['seed']:02d}T10:00:00+00:00", "wall_seconds": 61.0},
        )
    return folder.id


def details(classes=2):
    return {
        "parameters": 17,
        "curves": {
            "test/reliability@mean": {"counts": [0, 4], "sum_conf": [0, 3.2], "sum_acc": [0, 3]},
            "test/confusion@mean": {"counts": [[2, 1], [0, 1]]},
            "test/risk_coverage@mean": {"coverage": [0.5, 1.0], "risk": [0.0, 0.25]},
            "train/return": {"step": [1, 2], "value": [0.0, "nan"]},
            "strange": {"counts": "no"},
        },
        "continual": {"matrices": {"acc@mean": [[0.9, None], [0.8, 0.7]]}, "memory": []},
        "rounds": {
            "test/acc@mean": [[1.0, 0.5], [2.0, 0.6]],
            "comm/up": [[1.0, 1e6], [2.0, 1e6]],
            "comm/down": [[1.0, 1e6], [2.0, 1e6]],
        },
        "clients": {"label_mix": [[3, 0], [1, 2]]},
    }


def make_runs(root):
    """Return the ids by name."""
    ids = {}
    for arm, value in VALUES.items():
        for seed in SEEDS:
            metrics = {"test/nll@mean": value + 0.01 * seed, "test/acc@mean": 1 - value}
            ids[f"{arm}{seed}"] = write_run(
                root, config(arm, seed), metrics, details=details() if seed == 10 else None
            )
    hostile = config(
        "ivon", 13, note=EVIL, tags=[EVIL], **{"evil": {EVIL[:60]: EVIL, "f": FORMULA}}
    )
    hostile |= {"data": {"name": EVIL}, "study": f"demo/{FORMULA}/{EVIL.replace('/', '|')}"}
    curve = {EVIL: {"counts": [1], "sum_conf": [1], "sum_acc": [1]}}
    ids["evil"] = write_run(
        root, hostile, {EVIL: 1.0, FORMULA: float("nan"), "test/nll@mean": 9.0}, key=EVIL,
        details={"curves": curve, "rounds": 3, "clients": EVIL},
    )  # fmt: skip
    ids["failed"] = write_run(
        root, config("sgd", 14), {}, status="failed", error=ValueError(f"loss is nan {EVIL}")
    )
    ids["broken"] = write_run(root, config("sgd", 15), {})
    record = root / ids["broken"] / "record.json"
    record.write_text(record.read_text()[:-40])
    folder = RunStore(root).folder(config("sgd", 16))
    with folder.lock():
        pass
    ids["unfinished"] = folder.id
    return ids


def site_of(root):
    for name in ("results", "experiments", "runs"):
        (root / name).mkdir(exist_ok=True)
    return Site(root / "runs", root / "results", root / "experiments", root / "cache")
