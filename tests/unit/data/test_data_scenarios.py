"""Scenarios: which items and heads each task has, held to the data set itself."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from bayesrule.config import compose
from bayesrule.data import TextSplit, load_data
from bayesrule.data.scenarios import Permuted, Rotated, SplitClasses, make_scenario
from bayesrule.data.scenarios.rotated import Rotation
from bayesrule.data.views import Union, View
from bayesrule.errors import ConfigError, Unsupported


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return load_data({"name": "digits", "val_fraction": 0.1}, seed=3, cache_dir=cache)


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    return load_data({"name": "iris"}, seed=0, cache_dir=tmp_path_factory.mktemp("cache"))


def test_split_has_each_item_once_in_the_task_of_its_class(digits):
    stream = SplitClasses().stream(digits, seed=0)
    assert len(stream) == 5
    assert stream.n_outputs == 10
    seen = torch.cat([task.train.whole()["input"] for task in stream])
    order = torch.cat([(digits.train.targets // 2 == t).nonzero()[:, 0] for t in range(5)])
    assert torch.equal(seen, digits.train.whole()["input"][order])
    for t, task in enumerate(stream):
        assert task.classes == (2 * t, 2 * t + 1)
        assert task.columns == task.own == (2 * t, 2 * t + 1)
        inside = digits.test.targets // 2 == t
        assert torch.equal(task.test.targets, digits.test.targets[inside] % 2)
        assert task.val is not None
        assert len(task.val) == int((digits.val.targets // 2 == t).sum())


def test_heads_of_the_three_kinds(digits):
    kinds = {kind: SplitClasses(incremental=kind).stream(digits, seed=0)
             for kind in ("task", "domain", "class")}  # fmt: skip
    assert [stream.n_outputs for stream in kinds.values()] == [10, 2, 10]
    domain, classes = kinds["domain"], kinds["class"]
    assert all(task.columns == (0, 1) for task in domain)
    assert torch.equal(domain[2].train.targets, kinds["task"][2].train.targets)  # parity
    assert all(task.columns == tuple(range(10)) for task in classes)
    assert classes[3].own == (6, 7)
    assert set(classes[3].train.targets.tolist()) == {6, 7}
    assert kinds["task"].heads == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert domain.heads == [(0, 1)]


def test_order_and_number_of_classes(digits):
    stream = SplitClasses(order=[9, 0, 5], classes_per_task=1, n_tasks=2).stream(digits, seed=0)
    assert [task.classes for task in stream] == [(9,), (0,)]
    drawn = [SplitClasses(shuffle=True).stream(digits, seed=s) for s in (0, 0, 1)]
    assert drawn[0].describe() == drawn[1].describe()
    assert [t.classes for t in drawn[0]] != [t.classes for t in drawn[2]]
    with pytest.raises(ConfigError, match=r"need 12 classes, and there are 10"):
        SplitClasses(n_tasks=6).stream(digits, seed=0)
    with pytest.raises(ConfigError, match=r"every class once"):
        SplitClasses(order=[1, 1]).stream(digits, seed=0)


def test_permutations_are_fixed_invertible_and_of_their_own_seed(digits):
    stream = Permuted(n_tasks=3).stream(digits, seed=5)
    x = digits.test.whole()["input"]
    assert torch.equal(stream[0].test.whole()["input"], x)  # the first task as it is
    for task in stream[1:]:
        permuted = task.test.whole()["input"]
        assert not torch.equal(permuted, x)
        assert torch.equal(permuted.flatten(1).sort(1)[0], x.flatten(1).sort(1)[0])
        assert torch.equal(task.test.batch(torch.tensor([7, 2]))["input"], permuted[[7, 2]])
        same = Permuted(n_tasks=5).stream(digits, seed=5)[task.index]  # of (seed, task) alone
        assert torch.equal(same.train.whole()["input"], task.train.whole()["input"])
    first = Permuted(n_tasks=1, permute_first=True).stream(digits, seed=5)[0]
    assert not torch.equal(first.test.whole()["input"], x)


def test_rotations_by_right_angles_are_exact(digits):
    x = digits.test.whole()["input"]
    outside = torch.tensor(-digits.scaling["mean"] / digits.scaling["std"])
    for quarters in (1, 2, 3):
        turned = Rotation(90.0 * quarters, outside)(x)
        assert torch.allclose(turned, torch.rot90(x, quarters, (2, 3)), atol=1e-5)
    stream = Rotated(n_tasks=3, max_angle=180.0).stream(digits, seed=0)
    assert stream.notes == {"tasks": ["0 degrees", "90 degrees", "180 degrees"]}
    assert torch.equal(stream[0].test.whole()["input"], x)
    corner = Rotation(45.0, outside)(x)[:, :, 0, 0]  # nothing but what came in from outside
    assert torch.allclose(corner, outside.expand_as(corner), atol=1e-5)


def test_rotation_of_images_that_are_not_square():
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 2, 6] = 1.0  # two right of the centre: two above it after a quarter turn
    turned = Rotation(90.0, torch.zeros(()))(x)
    assert turned[0, 0, 0, 4] == pytest.approx(1.0, abs=1e-5)
    assert float(turned.sum()) == pytest.approx(1.0, abs=1e-4)


def test_rotating_a_table_is_refused(iris):
    with pytest.raises(Unsupported, match=r"turns images"):
        Rotated().stream(iris, seed=0)
    with pytest.raises(ConfigError, match=r"angles has 2"):
        Rotated(angles=[0, 5], n_tasks=3)


def test_pieces_of_an_online_stream(digits):
    whole = SplitClasses(n_tasks=2).stream(digits, seed=1)
    online = SplitClasses(n_tasks=2, online=50).stream(digits, seed=1)
    assert [len(task.train) for task in online.tasks] != [len(task.train) for task in whole]
    assert len(online.tasks) == 2
    for t in range(2):
        pieces = [each for each in online if each.task == t]
        assert [each.last for each in pieces] == [False] * (len(pieces) - 1) + [True]
        assert all(len(each.train) == 50 for each in pieces[:-1])
        rows = [row for each in pieces for row in each.train.base.rows.tolist()]
        assert sorted(rows) == sorted(whole[t].train.base.rows.tolist())
        assert rows != whole[t].train.base.rows.tolist()
        assert len(pieces[0].test) == len(whole[t].test)
    assert [each.index for each in online] == list(range(len(online)))


def test_sizes_without_data_are_those_of_the_stream(digits):
    for scenario in (SplitClasses(), Permuted(n_tasks=3), SplitClasses(online=60, n_tasks=3)):
        stream = scenario.stream(digits, seed=0)
        sizes = scenario.sizes(10, len(digits.train))
        assert sizes.n_outputs == stream.n_outputs
        assert abs(len(sizes.n_train) - len(stream)) <= (0 if scenario.online is None else 1)
        total = sum(len(each.train) for each in stream)
        assert sum(sizes.n_train) == pytest.approx(total, rel=0.1)


def test_the_fingerprint_tells_streams_apart(digits):
    makers = [
        SplitClasses(), SplitClasses(incremental="domain"), SplitClasses(n_tasks=4),
        SplitClasses(online=100), Permuted(), Permuted(n_tasks=4), Rotated(),
        Rotated(max_angle=90.0),
    ]  # fmt: skip
    prints = [maker.stream(digits, seed=0).fingerprint for maker in makers]
    prints.append(Permuted().stream(digits, seed=1).fingerprint)
    assert len(set(prints)) == len(prints)
    assert SplitClasses().stream(digits, seed=0).fingerprint == prints[0]


def test_a_class_without_items_is_named(digits):
    few = digits.train.subset((digits.train.targets != 3).nonzero()[:, 0])
    from dataclasses import replace

    thin = replace(digits, train=few)
    with pytest.raises(ConfigError, match=r"task 4 .*\(classes \[3\]\) has no training items"):
        SplitClasses(classes_per_task=1).stream(thin, seed=0)


def test_unions_and_views(digits):
    stream = SplitClasses().stream(digits, seed=0)
    union = stream.union(3)
    assert len(union) == sum(len(task.train) for task in stream[:3])
    chosen = torch.tensor([len(union) - 1, 0, len(stream[0].train), 5, 0])
    batch = union.batch(chosen)
    assert torch.equal(batch["target"], union.targets[chosen])
    assert batch["target"].tolist()[0] in (4, 5)  # outputs of the network
    whole = torch.cat([task.train.whole()["input"] for task in stream[:3]])
    assert torch.equal(batch["input"], whole[chosen])
    part = union.subset(chosen)
    assert torch.equal(part.batch(torch.tensor([1, 3]))["input"], whole[chosen[[1, 3]]])
    assert part.subset(torch.tensor([2])).targets.tolist() == [int(union.targets[chosen[2]])]
    assert len({union.digest(), part.digest(), stream.union(2).digest()}) == 3
    view = View(digits.test, digits.test.targets + 1, torch.neg, "minus")
    assert torch.equal(view.batch(chosen[:2])["input"], -digits.test.batch(chosen[:2])["input"])
    assert view.digest() != View(digits.test, digits.test.targets + 1).digest()
    with pytest.raises(ValueError, match=r"items but 1 targets"):
        View(digits.test, torch.zeros(1))
    assert torch.equal(Union([view, view]).targets[: len(view)], view.targets)


def test_the_toy_blobs_are_where_the_authors_put_them(tmp_path):
    config = compose(["task=continual", "scenario=toy"])
    data = load_data(config["data"], seed=0, cache_dir=tmp_path)
    stream = make_scenario(config["scenario"]).stream(data, seed=0)
    assert [task.classes for task in stream] == [(t, t + 5) for t in range(5)]
    assert stream.n_outputs == 2
    assert len(stream[0].train) == 4000
    centres = [[0, 0.2], [0.6, 0.9], [1.3, 0.4], [1.6, -0.1], [2, 0.3]]
    stds = [[0.08, 0.22], [0.24, 0.08], [0.04, 0.2], [0.16, 0.05], [0.05, 0.16]]
    for task, centre, std in zip(stream, centres, stds, strict=True):
        x = task.train.whole()["input"][task.train.targets == 0]
        assert torch.allclose(x.mean(0), torch.tensor(centre), atol=0.02)
        assert torch.allclose(x.std(0), torch.tensor(std), rtol=0.06)


@pytest.mark.parametrize("data", ["mnist5k", "digits"])
def test_every_scenario_of_every_packaged_image_set(data, tmp_path):
    words = ["task=continual", f"data={data}", "data.train_size=200", "data.test_size=100"]
    bundle = load_data(compose(words)["data"], seed=0, cache_dir=tmp_path)
    for scenario in ("split", "permuted", "rotated"):
        options = compose([*words, f"scenario={scenario}"])["scenario"]
        stream = make_scenario(options).stream(bundle, seed=0)
        assert len(stream) == 5
        first = [task.train.batch(torch.arange(2))["input"] for task in stream]
        assert {x.shape for x in first} == {(2, *bundle.input_shape)}
        assert not any(torch.equal(a, b) for a, b in pairwise(first))


def test_a_union_gives_items_in_the_order_asked_for(digits):
    parts = [digits.train.subset(torch.arange(a, b)) for a, b in ((0, 4), (4, 5), (5, 30))]
    union, whole = Union(parts), digits.train.subset(torch.arange(30))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    a, b = union.batch(order), whole.batch(order)
    assert torch.equal(a["input"], b["input"])
    assert torch.equal(a["target"], b["target"])
    assert torch.equal(union.targets, whole.targets)
    chosen = union.subset(order[:7])
    assert torch.equal(chosen.batch(torch.tensor([3, 1]))["target"], b["target"][[3, 1]])


def test_a_union_of_texts_has_their_mappings():
    tokens, lengths = np.arange(32).reshape(8, 4), np.array([4, 3, 2, 1, 4, 3, 2, 1])
    train = TextSplit(tokens, lengths, torch.arange(8), np.arange(8))
    union = Union([train.subset(torch.arange(3)), train.subset(torch.arange(3, 8))])
    order = torch.tensor([6, 0, 3, 2])
    a, b = union.batch(order)["input"], train.batch(order)["input"]
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in b)
