"""Augmentation, out-of-distribution companions, and images read batch by batch from disk."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from bayesrule.data import ArraySplit, ResumableLoader, load_data
from bayesrule.data.arrays import MatchShape
from bayesrule.data.augment import CropFlip, center_crop, item_bits, random_resized_crop
from bayesrule.errors import ConfigError


def test_item_bits_are_splitmix64():
    """Published first outputs of the stream of seed 0, and a plain-integer reference."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert item_bits(0, np.arange(3)).tolist() == first

    def reference(seed, item):
        mask = 2**64 - 1
        z = (seed + (item + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    items = np.array([0, 17, 10**6])
    assert item_bits(12345, items).tolist() == [reference(12345, int(i)) for i in items]


def test_each_crop_is_one_of_the_possible_ones():
    pixels = np.random.default_rng(0).integers(1, 256, size=(6, 3, 5, 7), dtype=np.uint8)
    out = CropFlip(seed=3, pad=2)(pixels, np.arange(6), epoch=4)
    assert out.dtype == np.uint8
    for original, cut in zip(pixels, out):
        padded = np.pad(original, ((0, 0), (2, 2), (2, 2)))
        windows = [
            padded[:, top : top + 5, left : left + 7] for top in range(5) for left in range(5)
        ]
        matches = [np.array_equal(cut, w) or np.array_equal(cut, w[:, :, ::-1]) for w in windows]
        assert sum(matches) == 1


def test_places_and_flips_are_uniform_and_independent():
    n = 20_000
    ramp = np.broadcast_to(np.arange(1, 10, dtype=np.uint8), (n, 1, 9, 9))
    rows = np.broadcast_to(np.arange(1, 10, dtype=np.uint8)[:, None], (n, 1, 9, 9))
    crop = CropFlip(seed=0)
    across, down = (crop(x, np.arange(n), 0)[:, 0, 4, 4] for x in (ramp, rows))
    steps = crop(np.ascontiguousarray(ramp), np.arange(n), 0)[:, 0, 4, 3:6].astype(int)
    flipped = steps[:, 0] > steps[:, 2]
    # the middle pixel shows the shift: values 1..9 on either axis
    assert stats.chisquare(np.bincount(down, minlength=10)[1:]).pvalue > 1e-4
    assert stats.chisquare(np.bincount(across, minlength=10)[1:]).pvalue > 1e-4
    inner = (across > 1) & (across < 9)  # at the border the neighbours are padding
    assert stats.binomtest(int(flipped[inner].sum()), int(inner.sum()), 0.5).pvalue > 1e-4
    table = np.histogram2d(across, down, bins=9)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def augmented(tmp_path, seed=0):
    cfg = {"name": "digits", "augment": "crop_flip", "val_fraction": 0.1}
    return load_data(cfg, seed=seed, cache_dir=tmp_path)


def test_augmentation_depends_on_seed_epoch_and_item_only(tmp_path):
    train = augmented(tmp_path).train
    alone = train.batch(torch.tensor([5]), epoch=2)["input"][0]
    among = train.batch(torch.tensor([9, 5, 700]), epoch=2)["input"][1]
    assert torch.equal(alone, among)
    whole = train.batch(torch.arange(len(train)), epoch=2)["input"]
    assert torch.equal(whole[5], alone)
    assert not torch.equal(whole, train.batch(torch.arange(len(train)), epoch=3)["input"])
    sub = train.subset(torch.tensor([700, 5]))
    assert torch.equal(sub.batch(torch.tensor([1]), epoch=2)["input"][0], alone)
    torch.manual_seed(123)
    assert torch.equal(train.batch(torch.tensor([5]), epoch=2)["input"][0], alone)


def test_augmentation_follows_the_run_seed_not_the_split_seed(tmp_path):
    cfg = {"name": "digits", "augment": "crop_flip", "split_seed": 0}
    a, b = (load_data(cfg, seed=seed, cache_dir=tmp_path).train for seed in (0, 1))
    assert np.array_equal(a.rows, b.rows)
    indices = torch.arange(50)
    assert not torch.equal(a.batch(indices, 0)["input"], b.batch(indices, 0)["input"])


def test_only_training_batches_are_augmented(tmp_path):
    bundle = augmented(tmp_path)
    plain = load_data({"name": "digits", "val_fraction": 0.1}, seed=0, cache_dir=tmp_path)
    indices = torch.arange(20)
    for part in ("train", "val", "test"):
        ours, expected = getattr(bundle, part), getattr(plain, part)
        assert torch.equal(ours.batch(indices)["input"], expected.batch(indices)["input"])
    for part in ("val", "test"):
        ours = getattr(bundle, part)
        assert torch.equal(ours.batch(indices, 1)["input"], ours.batch(indices)["input"])


def test_kept_and_computed_inputs_are_equal(tmp_path, monkeypatch):
    kept = load_data({"name": "random_images"}, seed=0, cache_dir=tmp_path).train
    indices = torch.tensor([3, 1, 499])
    expected = kept.batch(indices)["input"]
    monkeypatch.setattr("bayesrule.data.arrays._READY_BYTES", 0)
    computed = load_data({"name": "random_images"}, seed=0, cache_dir=tmp_path).train
    assert torch.equal(computed.batch(indices)["input"], expected)


def test_match_shape_equals_pillow():
    rng = np.random.default_rng(0)
    grey = rng.integers(256, size=(2, 1, 28, 28), dtype=np.uint8)
    out = MatchShape((3, 8, 8), gain=16 / 255)(grey)
    assert out.shape == (2, 3, 8, 8)
    for pixels, ours in zip(grey, out):
        image = Image.fromarray(pixels[0].astype(np.float32), mode="F")
        expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)) * 16 / 255
        assert np.allclose(ours[0], expected, atol=1e-3)
        assert np.array_equal(ours[0], ours[1])
        assert np.array_equal(ours[0], ours[2])
    colour = rng.integers(256, size=(1, 3, 6, 6), dtype=np.uint8)
    luminance = MatchShape((1, 6, 6))(colour)
    expected = np.asarray(Image.fromarray(colour[0].transpose(1, 2, 0)).convert("L"))
    assert np.abs(luminance[0, 0] - expected).max() <= 1.0


def test_companions_have_the_sets_shape_and_training_scaling(mirror, make_images, tmp_path):
    cfg = {"name": "cifar10", "ood": ["mnist", "omniglot_small", "random_images"], "ood_size": 9}
    bundle = load_data(cfg, seed=0, cache_dir=tmp_path)
    mean, std = bundle.scaling["mean"], bundle.scaling["std"]
    _, train, _ = make_images(40, (32, 32, 3), seed=3, column="img")
    assert (mean, std) == (pytest.approx(train.mean()), pytest.approx(train.std()))
    for split in bundle.ood.values():
        batch = split.whole()
        assert batch["input"].shape == (9, 3, 32, 32)
        assert torch.all(batch["target"] == -100)
    _, pixels, _ = make_images(20, (28, 28), seed=2)  # companions give their test rows
    grey = pixels[bundle.ood["mnist"].rows][:, None]
    expected = (MatchShape((3, 32, 32))(grey) - mean) / std
    assert np.allclose(bundle.ood["mnist"].whole()["input"].numpy(), expected, atol=1e-5)


def test_companions_of_another_value_range_are_rescaled(mirror, tmp_path):
    """digits has values 0..16, mnist 0..255: white is white in both."""
    bundle = load_data(
        {"name": "digits", "ood": ["mnist"], "scaling": "unit"}, seed=0, cache_dir=tmp_path
    )
    pixels = bundle.ood["mnist"].whole()["input"]
    assert pixels.shape == (20, 1, 8, 8)
    assert float(pixels.min()) >= 0.0
    assert 0.6 < float(pixels.max()) <= 1.0


def test_invert_turns_dark_ink_bright(mirror, tmp_path):
    plain, inverted = (
        load_data(
            {"name": "omniglot_small", "invert": invert, "scaling": "none"},
            seed=0,
            cache_dir=tmp_path,
        )
        for invert in (False, True)
    )
    total = plain.train.whole()["input"] + inverted.train.whole()["input"]
    assert torch.all(total == 255.0)
    assert plain.input_shape == (1, 28, 28)


def test_a_set_is_not_its_own_companion(tmp_path):
    with pytest.raises(ConfigError, match="own companion"):
        load_data({"name": "digits", "ood": ["digits"]}, seed=0, cache_dir=tmp_path)


def test_subset_of_a_split_keeps_items_together(tmp_path):
    train = load_data({"name": "digits"}, seed=0, cache_dir=tmp_path).train
    wanted = torch.nonzero(train.targets == 3)[:, 0]
    threes = train.subset(wanted)
    assert torch.all(threes.targets == 3)
    assert torch.equal(threes.whole()["input"], train.batch(wanted)["input"])
    assert threes.whole()["index"].tolist() == list(range(len(wanted)))


def test_rows_and_targets_must_agree():
    with pytest.raises(ValueError, match="3 rows but 2 targets"):
        ArraySplit(np.zeros((5, 2)), torch.zeros(2), rows=np.arange(3))


def ramp(width, height):
    """An image whose red channel is the column and green channel the row, both in 0..255."""
    x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


def test_random_resized_crop_keeps_to_area_and_ratio():
    flips, areas = 0, []
    for item in range(200):
        out = random_resized_crop(ramp(256, 256), 32, seed=1, epoch=0, item=item)
        red, green = (np.asarray(out)[:, :, c].astype(float) for c in (0, 1))
        # a crop of w columns, resized to 32, shows 31/32 of its extent
        w, h = ((c.max() - c.min()) * 32 / 31 / 255 for c in (red, green))
        areas.append(w * h)
        assert 0.7 < w / h < 1.45
        flips += red[0, 0] > red[0, -1]
    assert 0.07 < min(areas) < 0.2
    assert 0.8 < max(areas) < 1.05
    assert stats.binomtest(flips, 200, 0.5).pvalue > 1e-3


def test_random_resized_crop_of_a_stripe_takes_the_widest_centre():
    out = random_resized_crop(ramp(2000, 12), 16, seed=0, epoch=0, item=0)
    red = np.asarray(out)[:, :, 0].astype(float)
    assert out.size == (16, 16)
    assert abs(red.mean() - 127.5) < 2.0


def test_center_crop_takes_the_middle():
    out = np.asarray(center_crop(ramp(400, 200), 56))
    assert out.shape == (56, 56, 3)
    assert abs(out[:, :, 0].mean() - 127.5) < 2.0
    assert abs(out[:, :, 1].mean() - 127.5) < 2.0


@pytest.fixture
def on_disk(mirror, tmp_path):
    def load(seed=0, **options):
        cfg = {
            "name": "cifar10",
            "storage": "arrow",
            "image_size": 16,
            "scaling": "per_channel",
            "augment": "resized_crop_flip",
            **options,
        }
        return load_data(cfg, seed=seed, cache_dir=tmp_path)

    return load


def test_images_on_disk_are_cropped_scaled_and_seeded(on_disk):
    bundle = on_disk(val_fraction=0.25, label_noise=0.2)
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (30, 10, 20)
    x = bundle.train.whole()["input"].double()
    assert x.shape == (30, 3, 16, 16)
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3).double(), atol=1e-5)
    assert torch.allclose(x.std(dim=(0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5)
    alone = bundle.train.batch(torch.tensor([7]), epoch=1)["input"][0]
    among = bundle.train.batch(torch.tensor([1, 7]), epoch=1)["input"][1]
    assert torch.equal(alone, among)
    assert not torch.equal(alone, bundle.train.batch(torch.tensor([7]), epoch=2)["input"][0])
    sub = bundle.train.subset(torch.tensor([7]))
    assert torch.equal(sub.batch(torch.tensor([0]), epoch=1)["input"][0], alone)
    assert bundle.fingerprint == on_disk(val_fraction=0.25, label_noise=0.2).fingerprint
    empty = bundle.test.batch(torch.tensor([], dtype=torch.int64))
    assert empty["input"].shape == (0, 3, 16, 16)


def test_images_on_disk_through_workers(on_disk):
    train = on_disk().train
    batches = {
        workers: [
            batch["input"]
            for batch in ResumableLoader(train, 16, seed=0, shuffle=True, num_workers=workers)
        ]
        for workers in (0, 2)
    }
    assert len(batches[0]) == 3
    for ours, theirs in zip(batches[0], batches[2], strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def two_cifars(make_images, tmp_path, monkeypatch):
    """Miniatures of CIFAR-10 and CIFAR-100."""
    for name, label, k, seed in (("cifar10", "label", 10, 3), ("cifar100", "fine_label", 100, 5)):
        (tmp_path / "both" / name).mkdir(parents=True)
        for part, n in (("train", 40), ("test", 20)):
            made = make_images(n, (32, 32, 3), seed=seed, column="img", label=label, n_classes=k)[0]
            made.to_parquet(tmp_path / "both" / name / f"{part}.parquet")
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path / "both"))


@pytest.mark.usefixtures("two_cifars")
def test_joined_sets_have_the_classes_of_all_parts(tmp_path):
    joined = load_data({"name": "cifar110"}, seed=0, cache_dir=tmp_path)
    one = load_data({"name": "cifar10", "scaling": "unit"}, seed=0, cache_dir=tmp_path)
    two = load_data({"name": "cifar100", "scaling": "unit"}, seed=0, cache_dir=tmp_path)
    assert (len(joined.train), len(joined.test), joined.n_outputs) == (80, 40, 110)
    batch = joined.train.batch(torch.tensor([45, 3]))
    assert torch.equal(batch["input"][0], two.train.batch(torch.tensor([5]))["input"][0])
    assert torch.equal(batch["input"][1], one.train.batch(torch.tensor([3]))["input"][0])
    assert batch["target"].tolist() == [10 + int(two.train.targets[5]), int(one.train.targets[3])]
    assert joined.source.sha256 not in (one.source.sha256, two.source.sha256)
    fewer = load_data({"name": "cifar110", "train_size": 7}, seed=0, cache_dir=tmp_path)
    assert len(fewer.train) == 7
    assert fewer.fingerprint != joined.fingerprint


@pytest.mark.usefixtures("two_cifars")
def test_joined_sets_refuse_what_their_parts_cannot_share(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.label_noise=0\.1: cifar110 has parts"):
        load_data({"name": "cifar110", "label_noise": 0.1}, seed=0, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="have 110 classes"):
        load_data({"name": "cifar110", "n_outputs": 20}, seed=0, cache_dir=tmp_path)
