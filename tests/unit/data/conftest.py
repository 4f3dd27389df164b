"""A tiny mirror in Hugging Face layout, so that no test needs a network or a real one."""

import os
from pathlib import Path

import numpy as np
import pytest

REAL_MIRROR = os.environ.get("BAYESRULE_DATA")

README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
- config_name: splits
  data_files:
  - split: train
    path: splits.parquet
---
"""
PLAY = "the quick brown fox jumps over the lazy dog. " * 20


def _images(n, shape, *, seed, column="image", label="label", n_classes=10):
    """Random pixels as PNG with labels, as `datasets` stores them."""
    import datasets as hf
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = rng.integers(256, size=(n, *shape), dtype=np.uint8)
    labels = rng.permutation(np.arange(n) % n_classes)
    features = hf.Features(
        {column: hf.Image(), label: hf.ClassLabel(names=[f"c{k}" for k in range(n_classes)])}
    )
    rows = {column: [Image.fromarray(p) for p in pixels], label: labels.tolist()}
    return hf.Dataset.from_dict(rows, features=features), pixels, labels


@pytest.fixture(scope="session")
def make_images():
    return _images


@pytest.fixture(scope="session")
def play():
    """The training text of the miniature tiny_shakespeare."""
    return PLAY


@pytest.fixture(scope="session")
def mirror_folder(tmp_path_factory):
    """mnist, cifar10, omniglot_small, uci_yacht, a9a and tiny_shakespeare in miniature."""
    import datasets as hf

    hf.disable_progress_bars()
    root = tmp_path_factory.mktemp("mirror")
    rng = np.random.default_rng(0)

    def write(name, **parts):
        (root / name).mkdir()
        for part, table in parts.items():
            table.to_parquet(root / name / f"{part}.parquet")

    write("mnist", train=_images(60, (28, 28), seed=1)[0], test=_images(20, (28, 28), seed=2)[0])
    write(
        "cifar10",
        train=_images(40, (32, 32, 3), seed=3, column="img")[0],
        test=_images(20, (32, 32, 3), seed=4, column="img")[0],
    )
    write(
        "omniglot_small",
        train=_images(12, (105, 105), seed=5, label="alphabet", n_classes=8)[0],
    )
    inputs, target = rng.normal(3.0, 2.0, size=(30, 6)), rng.normal(size=30)
    columns = {f"x{d}": inputs[:, d] for d in range(6)} | {"target": target}
    tests = [sorted(rng.permutation(30)[:3].tolist()) for _ in range(2)]
    write(
        "uci_yacht",
        train=hf.Dataset.from_dict(columns),
        splits=hf.Dataset.from_dict({"split": [1, 0], "test_index": tests[::-1]}),
    )
    (root / "uci_yacht" / "README.md").write_text(README)
    rows = {"indices": [[0, 5], [], [122], [1, 2, 3]], "label": [0, 1, 1, 0]}
    write("a9a", train=hf.Dataset.from_dict(rows), test=hf.Dataset.from_dict(rows))
    write(
        "tiny_shakespeare",
        **{
            part: hf.Dataset.from_dict({"text": [text]})
            for part, text in (("train", PLAY), ("validation", PLAY[:300]), ("test", PLAY[100:500]))
        },
    )
    return root


@pytest.fixture(autouse=True)
def no_real_sources(monkeypatch):
    """No test of this folder sees a mirror or a hub unless it asks for one."""
    from bayesrule.data import sources

    def refuse(hub_id, config, revision):
        raise ConnectionError(f"no hub in tests, asked for {hub_id}")

    monkeypatch.delenv("BAYESRULE_DATA", raising=False)
    monkeypatch.setattr(sources, "_load_from_hub", refuse)
    monkeypatch.setattr(sources, "_hub_reachable", lambda: True)


@pytest.fixture
def mirror(mirror_folder, monkeypatch):
    monkeypatch.setenv("BAYESRULE_DATA", str(mirror_folder))
    return mirror_folder


@pytest.fixture
def real_mirror(monkeypatch):
    if not REAL_MIRROR or not Path(REAL_MIRROR).is_dir():
        pytest.skip("BAYESRULE_DATA does not name a data mirror")
    monkeypatch.setenv("BAYESRULE_DATA", REAL_MIRROR)
    return Path(REAL_MIRROR)
