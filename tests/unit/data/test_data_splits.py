"""Splits, label noise, long tails, scaling and the fingerprint."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler

from bayesrule.data import load_data, noisy_labels
from bayesrule.data.scaling import array_chunks, fit_scaling
from bayesrule.data.splits import long_tail, partition
from bayesrule.errors import ConfigError, DataUnavailable


def digits(tmp_path, seed=0, **options):
    return load_data({"name": "digits", **options}, seed=seed, cache_dir=tmp_path)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_label_noise_has_its_rate_and_spares_no_class(rate, n_classes):
    n = 40_000
    labels = np.arange(n) % n_classes
    noisy = noisy_labels(labels, rate, n_classes, seed=7, stream="train")
    changed = noisy != labels
    assert stats.binomtest(int(changed.sum()), n, rate).pvalue > 1e-4
    counts = np.bincount((noisy - labels)[changed] % n_classes, minlength=n_classes)
    assert counts[0] == 0
    if n_classes > 2:
        assert stats.chisquare(counts[1:]).pvalue > 1e-4


def test_label_noise_one_changes_every_label():
    labels = np.arange(1000) % 10
    assert not np.any(noisy_labels(labels, 1.0, 10, seed=0, stream="train") == labels)
    assert np.all(noisy_labels(labels, 0.0, 10, seed=0, stream="train") == labels)


def test_noise_streams_of_train_and_test_differ():
    labels = np.zeros(1000, dtype=np.int64)
    a, b = (noisy_labels(labels, 0.5, 10, seed=0, stream=s) for s in ("train", "test"))
    assert not np.array_equal(a, b)


def test_official_parts_draw_their_noise_apart(tmp_path):
    """Row i of train and row i of test are not changed together."""
    options = {"label_noise": 0.5, "noisy_test": True}
    clean, noisy = (
        load_data({"name": "random_images", **o}, seed=0, cache_dir=tmp_path) for o in ({}, options)
    )
    n = len(clean.test)
    changed = [
        (getattr(noisy, part).targets != getattr(clean, part).targets)[:n].numpy()
        for part in ("train", "test")
    ]
    assert 0.35 < np.mean(changed[0] == changed[1]) < 0.65


def test_test_labels_stay_clean_unless_asked(tmp_path):
    clean, train_only, both = (
        digits(tmp_path, **options)
        for options in ({}, {"label_noise": 0.2}, {"label_noise": 0.2, "noisy_test": True})
    )
    assert torch.equal(clean.test.targets, train_only.test.targets)
    assert torch.equal(train_only.train.targets, both.train.targets)
    for split in ("train", "test"):
        changed = getattr(both, split).targets != getattr(clean, split).targets
        rate = float(changed.double().mean())
        assert rate == pytest.approx(both.notes[f"label_noise_{split}"])
        assert stats.binomtest(int(changed.sum()), len(changed), 0.2).pvalue > 1e-4
    assert torch.equal(both.train.whole()["input"], clean.train.whole()["input"])


def test_a_row_keeps_its_noisy_label_when_sizes_change(tmp_path):
    small, large = (digits(tmp_path, label_noise=0.3, train_size=n) for n in (100, 900))
    assert torch.equal(small.train.targets, large.train.targets[:100])


def test_digits_split_is_seeded_disjoint_and_complete(tmp_path):
    a, b, other = digits(tmp_path), digits(tmp_path), digits(tmp_path, seed=1)
    assert (len(a.train), len(a.test)) == (800, 997)
    rows = np.concatenate([a.train.rows, a.test.rows])
    assert sorted(rows.tolist()) == list(range(1797))
    assert np.array_equal(a.train.rows, b.train.rows)
    assert not np.array_equal(a.train.rows, other.train.rows)
    pixels = load_digits().images[a.train.rows]
    assert np.allclose(
        a.train.whole()["input"][:, 0].numpy(), (pixels - pixels.mean()) / pixels.std(), atol=1e-6
    )


def test_split_seed_fixes_the_split_for_all_run_seeds(tmp_path):
    options = {"split_seed": 5, "label_noise": 0.1}
    a, b = digits(tmp_path, seed=0, **options), digits(tmp_path, seed=1, **options)
    assert np.array_equal(a.train.rows, b.train.rows)
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != digits(tmp_path, seed=0, **options | {"split_seed": 6}).fingerprint


@pytest.mark.parametrize("n_test", [None, 40])
def test_partition_is_disjoint(n_test):
    parts = partition(100, n_test, seed=3, train_size=60, test_size=20, val_fraction=0.25)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (45, 15, 20)
    assert not set(parts.train) & set(parts.val)
    if parts.one_pool:
        assert not set(parts.test) & (set(parts.train) | set(parts.val))
    assert len(set(parts.test)) == 20


def test_official_parts_stay_whole_and_in_order():
    parts = partition(10, 5, seed=0)
    assert parts.train.tolist() == list(range(10))
    assert parts.test.tolist() == list(range(5))
    held = partition(10, 5, seed=0, val_fraction=0.2)
    assert held.train.tolist() == sorted(held.train.tolist())


def test_validation_rows_do_not_depend_on_noise_options(tmp_path):
    a, b = digits(tmp_path, val_fraction=0.1), digits(tmp_path, val_fraction=0.1, label_noise=0.5)
    assert np.array_equal(a.val.rows, b.val.rows)
    assert (len(a.train), len(a.val)) == (720, 80)


def test_long_tail_sizes_follow_the_exponential():
    labels = np.repeat(np.arange(5), 100)
    kept = long_tail(labels, np.arange(500), 10.0, 5, seed=0)
    counts = np.bincount(labels[kept], minlength=5)
    assert counts.tolist() == [int(100 * 10 ** (-k / 4)) for k in range(5)]
    assert kept.tolist() == sorted(kept.tolist())
    assert not np.array_equal(kept, long_tail(labels, np.arange(500), 10.0, 5, seed=1))


OPTIONS = {
    "label_noise": 0.1,
    "noisy_test": True,
    "imbalance": 3.0,
    "train_size": 700,
    "test_size": 100,
    "val_fraction": 0.1,
    "split_seed": 11,
    "scaling": "per_feature",
    "max_value": 15.0,
    "augment": "crop_flip",
    "image_size": 12,
    "invert": True,
    "ood": ["random_images"],
    "ood_size": 10,
    "test_fraction": 0.3,
}


@pytest.mark.parametrize("key", OPTIONS)
def test_fingerprint_changes_with_each_option(key, tmp_path):
    base = digits(tmp_path)
    assert base.fingerprint == digits(tmp_path).fingerprint
    assert digits(tmp_path, **{key: OPTIONS[key]}).fingerprint != base.fingerprint
    assert len(base.fingerprint) == 64


def test_fingerprint_changes_with_the_seed(tmp_path):
    assert digits(tmp_path, seed=0).fingerprint != digits(tmp_path, seed=1).fingerprint


@pytest.mark.parametrize("kind", ["scalar", "per_channel", "per_feature"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_scaling_equals_numpy(kind, dtype):
    rng = np.random.default_rng(0)
    inputs = (rng.random((9000, 3, 4, 5)) * [[[50.0]], [[100.0]], [[250.0]]]).astype(dtype)
    rows = rng.permutation(9000)[:7000]
    scaling = fit_scaling(kind, array_chunks(inputs, rows))
    train = inputs[rows].astype(np.float64)
    axes = {"scalar": None, "per_channel": (0, 2, 3), "per_feature": 0}[kind]
    expected = (train - train.mean(axis=axes, keepdims=True)) / train.std(axis=axes, keepdims=True)
    assert np.allclose(scaling(inputs[rows]).numpy(), expected, atol=1e-5)
    assert scaling.n_items == 7000


def test_constant_columns_become_zero():
    inputs = np.ones((10, 2)) * 3.0
    scaling = fit_scaling("per_feature", array_chunks(inputs, np.arange(10)))
    assert torch.equal(scaling(inputs), torch.zeros(10, 2))


def test_unit_scaling_divides_by_the_formats_largest_value(tmp_path):
    bundle = digits(tmp_path, scaling="unit")
    assert np.allclose(
        bundle.train.whole()["input"][:, 0].numpy(), load_digits().images[bundle.train.rows] / 16.0
    )


@pytest.mark.parametrize("name", ["iris", "digits", "diabetes", "random_images"])
def test_scaling_is_from_training_rows_only(name, tmp_path):
    """Statistics of train are exactly 0 and 1, those of val and test are not."""
    cfg = {"name": name, "val_fraction": 0.2}
    bundle = load_data(cfg, seed=0, cache_dir=tmp_path)
    image = len(bundle.input_shape) == 3
    for split in (bundle.train, bundle.val, bundle.test):
        x = split.whole()["input"].double()
        mean = x.mean() if image else x.mean(dim=0)
        std = x.std(correction=0) if image else x.std(dim=0, correction=0)
        centred = torch.allclose(mean, torch.zeros_like(mean), atol=1e-5)
        scaled = torch.allclose(std, torch.ones_like(std), atol=1e-5)
        assert (centred and scaled) == (split is bundle.train)


def test_regression_targets_are_standardised_and_can_be_put_back(tmp_path):
    bundle = load_data({"name": "diabetes"}, seed=0, cache_dir=tmp_path)
    raw = load_diabetes()
    train = bundle.train.whole()
    expected = StandardScaler().fit(raw.data[bundle.train.rows]).transform(raw.data)
    assert np.allclose(bundle.test.whole()["input"].numpy(), expected[bundle.test.rows], atol=1e-5)
    assert train["target"].shape == (len(bundle.train), 1)
    assert float(train["target"].mean()) == pytest.approx(0.0, abs=1e-5)
    for split in (bundle.train, bundle.test):
        back = split.targets[:, 0].double() * bundle.target_std + bundle.target_mean
        assert np.allclose(back.numpy(), raw.target[split.rows], atol=1e-3)
    plain = load_data({"name": "diabetes", "standardise_target": False}, seed=0, cache_dir=tmp_path)
    assert (plain.target_mean, plain.target_std) == (0.0, 1.0)


def test_published_splits_come_from_the_mirror(mirror, tmp_path):
    import datasets as hf

    table = hf.Dataset.from_parquet(
        str(mirror / "uci_yacht" / "splits.parquet"), cache_dir=str(tmp_path / "hf")
    )
    for row in table:
        cfg = {"name": "uci_yacht", "split": row["split"]}
        bundle = load_data(cfg, seed=0, cache_dir=tmp_path)
        assert sorted(bundle.test.rows.tolist()) == sorted(row["test_index"])
        assert set(bundle.train.rows.tolist()) == set(range(30)) - set(row["test_index"])
        assert (
            bundle.fingerprint
            != load_data({"name": "uci_yacht"}, seed=0, cache_dir=tmp_path).fingerprint
        )
    with pytest.raises(ConfigError, match="there are 2 splits"):
        load_data({"name": "uci_yacht", "split": 2}, seed=0, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="own sizes"):
        load_data({"name": "uci_yacht", "split": 0, "train_size": 3}, seed=0, cache_dir=tmp_path)


def test_published_splits_without_a_mirror_are_refused(tmp_path):
    with pytest.raises(DataUnavailable, match="no published splits"):
        load_data({"name": "diabetes", "split": 0}, seed=0, cache_dir=tmp_path)


def test_describe_is_json_and_complete(tmp_path):
    bundle = digits(tmp_path, label_noise=0.2, ood=["random_images"], ood_size=7)
    record = json.loads(json.dumps(bundle.describe()))
    assert record["source"]["served_by"] == "package"
    assert record["n_ood"] == {"random_images": 7}
    assert (record["n_train"], record["n_test"]) == (800, 997)
    assert record["scaling"]["kind"] == "scalar"
    assert record["fingerprint"] == bundle.fingerprint


def test_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    digits(tmp_path, label_noise=0.2, augment="crop_flip", imbalance=2.0)
    load_data({"name": "two_moons"}, seed=0, cache_dir=tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_generated_sets_are_seeded_and_have_their_shape(tmp_path):
    def moons(seed):
        return load_data({"name": "two_moons"}, seed=seed, cache_dir=tmp_path)

    a, b, c = moons(0), moons(0), moons(1)
    assert torch.equal(a.train.whole()["input"], b.train.whole()["input"])
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.train.targets.bincount().tolist() == [100, 100]
    cfg = {"name": "toy_regression", "gap": 1.5, "noise_std": 0.0, "scaling": "none"}
    toy = load_data(cfg | {"standardise_target": False}, seed=0, cache_dir=tmp_path)
    x = toy.train.whole()["input"]
    assert float(x.abs().min()) >= 1.5
    assert torch.allclose(toy.train.targets, x**3 / 10, atol=1e-5)
    assert toy.test.whole()["input"].diff(dim=0).std() < 1e-6
