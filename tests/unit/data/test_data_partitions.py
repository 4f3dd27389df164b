"""Partitions over clients."""

import numpy as np
import pytest

from bayesrule.data.partitions import (
    by_value,
    dirichlet_classes,
    dirichlet_clients,
    iid,
    label_mix,
    partition_fingerprint,
    shards,
)
from bayesrule.errors import ConfigError
from bayesrule.seeding import numpy_generator

LABELS = np.arange(1000) % 10

SCHEMES = {
    "iid": lambda seed: iid(LABELS, 7, seed=seed),
    "dirichlet_clients": lambda seed: dirichlet_clients(LABELS, 7, seed=seed, even=0.1),
    "dirichlet_classes": lambda seed: dirichlet_classes(LABELS, 7, seed=seed),
    "shards": lambda seed: shards(LABELS, 10, seed=seed),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_item_is_used_twice_and_the_seed_decides(scheme):
    parts, again, other = (SCHEMES[scheme](seed) for seed in (3, 3, 4))
    every = np.concatenate(parts)
    assert len(np.unique(every)) == len(every)
    assert all(len(part) for part in parts)
    assert partition_fingerprint(parts) == partition_fingerprint(again)
    assert partition_fingerprint(parts) != partition_fingerprint(other)
    if scheme in ("iid", "dirichlet_classes", "shards"):
        assert len(every) == 1000


def test_iid_parts_have_equal_sizes():
    assert {len(part) for part in iid(LABELS, 7, seed=0)} == {142, 143}


def test_dirichlet_sizes_and_mixes_follow_their_concentrations():
    """Large concentrations: equal sizes and mixes; a small one: few classes a client."""
    flat = label_mix(LABELS, dirichlet_clients(LABELS, 5, seed=0, mix=1e6, size=1e6))
    assert np.abs(flat - 20).max() <= 2
    steep = label_mix(LABELS, dirichlet_clients(LABELS, 5, seed=0, mix=0.05, size=1e6, even=0.5))
    shares = steep / steep.sum(1, keepdims=True)
    assert np.sort(shares, axis=1)[:, -3:].sum(1).mean() > 0.7


def test_shares_of_a_class_are_those_of_the_equation():
    """With one class, client k's share is its size: s ~ Dir(1)."""
    parts = dirichlet_clients(np.zeros(10_000, dtype=int), 4, seed=5)
    s = numpy_generator(5, "partition", "dirichlet_clients").dirichlet(np.ones(4))
    assert np.abs(np.array([len(p) for p in parts]) / 10_000 - s).max() < 1e-3


def test_shards_hold_the_same_number_of_two_classes_and_use_all_classes_equally():
    mix = label_mix(LABELS, shards(LABELS, 10, seed=0))
    assert (np.sort(mix, axis=1)[:, -2:] == 50).all()
    assert (np.count_nonzero(mix, axis=1) == 2).all()
    assert (mix.sum(0) == 100).all()
    some = label_mix(LABELS, shards(LABELS, 20, seed=0, items_per_class=10))
    assert (some.sum(1) == 20).all()


def test_a_column_gives_a_client_for_every_value():
    hospitals = np.array(["b", "a", "b", "c"])
    assert [part.tolist() for part in by_value(hospitals)] == [[1], [0, 2], [3]]


def test_impossible_partitions_are_refused():
    with pytest.raises(ConfigError, match="training items only"):
        iid(LABELS[:3], 4, seed=0)
    with pytest.raises(ConfigError, match="items of a class"):
        shards(LABELS, 10, seed=0, items_per_class=51)
    with pytest.raises(ConfigError, match="would hold no item"):
        dirichlet_clients(LABELS[:20], 15, seed=0, mix=0.01)
