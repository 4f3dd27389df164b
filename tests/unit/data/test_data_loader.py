"""Order, resuming and sharding of batches."""

from itertools import chain

import numpy as np
import pytest
import torch

from bayesrule.data import ArraySplit, ResumableLoader, load_data
from bayesrule.errors import ConfigError


def split(n=23):
    return ArraySplit(np.arange(2.0 * n).reshape(n, 2), torch.arange(n))


def indices(loader):
    return [batch["index"].tolist() for batch in loader]


@pytest.fixture
def augmented(tmp_path):
    cfg = {"name": "digits", "augment": "crop_flip", "train_size": 90}
    return load_data(cfg, seed=0, cache_dir=tmp_path).train


def test_an_epoch_has_every_item_once_in_a_seeded_order():
    loader = ResumableLoader(split(), 5, seed=0, shuffle=True)
    first, again = indices(loader), indices(loader)
    assert [len(batch) for batch in first] == [5, 5, 5, 5, 3]
    assert sorted(chain.from_iterable(first)) == list(range(23))
    assert first == again
    loader.set_epoch(1)
    second = indices(loader)
    assert second != first
    loader.set_epoch(0)
    assert indices(loader) == first
    assert indices(ResumableLoader(split(), 5, seed=1, shuffle=True)) != first
    assert len(loader) == 5


def test_without_shuffle_items_come_in_order():
    loader = ResumableLoader(split(), 5, seed=0, shuffle=False, drop_last=True)
    assert list(chain.from_iterable(indices(loader))) == list(range(20))
    assert len(loader) == 4


def test_batches_carry_the_splits_items():
    for batch in ResumableLoader(split(), 4, seed=3, shuffle=True):
        assert torch.equal(batch["input"][:, 0], 2.0 * batch["index"])
        assert torch.equal(batch["target"], batch["index"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_epoch_ends_like_an_uninterrupted_one(augmented, workers, stop):
    def loader():
        return ResumableLoader(augmented, 16, seed=0, shuffle=True, num_workers=workers)

    whole = loader()
    whole.set_epoch(3)
    expected = list(whole)
    assert len(expected) == 6
    broken = loader()
    broken.set_epoch(3)
    iterator = iter(broken)
    head = [next(iterator) for _ in range(stop)]
    state = broken.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    if stop == 6:
        assert (state["epoch"], state["start_batch"]) == (4, 0)
        return
    assert (state["epoch"], state["start_batch"]) == (3, stop)
    tail = list(resumed)
    for ours, theirs in zip(head + tail, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert indices(resumed) == [batch["index"].tolist() for batch in expected]  # start used once


def test_workers_give_the_same_batches(augmented):
    def batches(workers):
        loader = ResumableLoader(augmented, 16, seed=0, shuffle=True, num_workers=workers)
        loader.set_epoch(1)
        return list(loader)

    for ours, theirs in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_evaluation_batches_are_plain(augmented):
    loader = ResumableLoader(augmented, 90, seed=0, shuffle=False, train=False)
    loader.set_epoch(5)
    assert torch.equal(next(iter(loader))["input"], augmented.whole()["input"])


def test_a_trainer_may_set_the_start():
    loader = ResumableLoader(split(), 5, seed=0, shuffle=True)
    whole = indices(loader)
    loader.start_batch = 2
    assert loader.state_dict()["start_batch"] == 2
    loader.set_epoch(0)
    assert indices(loader) == whole[2:]
    assert indices(loader) == whole
    with pytest.raises(ConfigError, match="5 batches"):
        loader.start_batch = 5


def test_state_counts_what_was_handed_out_not_what_was_fetched(augmented):
    loader = ResumableLoader(augmented, 16, seed=0, shuffle=True, num_workers=2)
    iterator = iter(loader)
    assert loader.state_dict()["start_batch"] == 0
    next(iterator)
    next(iterator)
    assert loader.state_dict()["start_batch"] == 2


def test_a_position_of_another_epoch_is_dropped():
    """A checkpoint at an epoch cut short: the next epoch starts at its first batch."""
    loader = ResumableLoader(split(), 5, seed=0, shuffle=True)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    resumed = ResumableLoader(split(), 5, seed=0, shuffle=True)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert len(indices(resumed)) == 5
    loader.set_epoch(1)
    assert loader.state_dict() == state | {"epoch": 1, "start_batch": 0}


def test_states_of_another_loader_are_refused():
    state = ResumableLoader(split(), 5, seed=0, shuffle=True).state_dict()
    for other in (
        ResumableLoader(split(20), 5, seed=0, shuffle=True),
        ResumableLoader(split(), 4, seed=0, shuffle=True),
        ResumableLoader(split(), 5, seed=1, shuffle=True),
    ):
        with pytest.raises(ConfigError, match="no meaning here"):
            other.load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_ranks_share_each_global_batch(world_size, train):
    n = 24 if train else 25  # in evaluation the last batch has one item: some ranks have none
    one = indices(ResumableLoader(split(n), 6, seed=0, shuffle=True, train=train))
    ranks = [
        ResumableLoader(
            split(n), 6, seed=0, shuffle=True, rank=rank, world_size=world_size, train=train
        )
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {len(one)}
    parts = [indices(loader) for loader in ranks]
    for number, whole in enumerate(one):
        assert list(chain.from_iterable(part[number] for part in parts)) == whole
    if train:
        assert {len(batch) for part in parts for batch in part} == {6 // world_size}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5, "world_size": 2}, "multiple"),
        ({"batch_size": 0}, "positive multiple"),
        ({"batch_size": 4, "world_size": 2}, "do not divide"),
        ({"batch_size": 30, "drop_last": True}, "leaves no batch"),
        ({"batch_size": 4, "world_size": 2, "rank": 2, "drop_last": True}, "rank=2"),
    ],
)
def test_impossible_loaders_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ResumableLoader(split(), seed=0, shuffle=True, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_not_touched(workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(ResumableLoader(split(), 5, seed=0, shuffle=True, num_workers=workers))
    assert torch.equal(before, torch.get_rng_state())


def test_lightning_resumes_in_mid_epoch_with_the_same_batches(tmp_path):
    """Lightning finds `set_epoch`, saves the position and goes on where training stopped."""
    import lightning.pytorch as pl

    class Recorder(pl.LightningModule):
        def __init__(self, save_at=None, workers=0):
            super().__init__()
            self.automatic_optimization = False
            self.layer = torch.nn.Linear(2, 1)
            self.seen, self.save_at, self.workers = [], save_at, workers

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-6)

        def train_dataloader(self):
            return ResumableLoader(split(), 5, seed=0, shuffle=True, num_workers=self.workers)

        def training_step(self, batch, batch_idx):
            self.seen.append((self.current_epoch, batch["index"].tolist()))
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch["input"]).mean())
            optimizer.step()

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if len(self.seen) == self.save_at:
                self.trainer.save_checkpoint(tmp_path / "mid.ckpt")
                self.trainer.should_stop = True

    def trainer():
        return pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    whole = Recorder()
    trainer().fit(whole)
    assert [epoch for epoch, _ in whole.seen] == [0] * 5 + [1] * 5 + [2] * 5
    assert len({str(items) for _, items in whole.seen}) == 15
    for save_at, workers in ((3, 0), (8, 2)):
        head, tail = Recorder(save_at, workers), Recorder(None, workers)
        trainer().fit(head)
        trainer().fit(tail, ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
        assert head.seen[:save_at] + tail.seen == whole.seen
