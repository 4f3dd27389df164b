"""Character and token streams, and their windows."""

from itertools import chain

import numpy as np
import pytest
import torch

from bayesrule.data import TokenSplit, load_data, text
from bayesrule.errors import ConfigError, DataUnavailable, Unsupported


class Words:
    """A tokenizer of whole words: length of the word, end-of-text 99."""

    eos_token_id = 99

    def __call__(self, texts):
        return {"input_ids": [[len(word) for word in line.split()] for line in texts]}

    def __len__(self):
        return 100


def shakespeare(tmp_path, seed=0, **options):
    cfg = {"name": "tiny_shakespeare", "block_size": 16, **options}
    return load_data(cfg, seed=seed, cache_dir=tmp_path)


def test_vocabulary_is_the_sorted_characters_of_the_training_text(mirror, play, tmp_path):
    bundle = shakespeare(tmp_path)
    assert bundle.class_names == sorted(set(play))
    assert bundle.n_outputs == len(set(play))
    assert bundle.input_shape == (16,)
    batch = bundle.test.whole()
    decoded = "".join(bundle.class_names[c] for row in batch["input"] for c in row)
    assert decoded == play[100:500][: len(decoded)]
    shifted = "".join(bundle.class_names[c] for row in batch["target"] for c in row)
    assert shifted == play[100:500][1 : 1 + len(shifted)]
    assert len(bundle.test) == (400 - 1) // 16
    assert len(bundle.val) == (300 - 1) // 16
    assert len(bundle.train) == len(play) // 16


def test_training_windows_start_where_the_formula_says(mirror, play, tmp_path):
    train = shakespeare(tmp_path).train
    n, block = len(play), 16
    first = train.starts(np.arange(len(train)), epoch=0)
    offset = first[0]
    assert first.tolist() == [(i * block + offset) % (n - block - 1) for i in range(len(train))]
    assert train.starts(np.arange(3), epoch=None).tolist() == [0, 16, 32]
    offsets = {int(train.starts(np.array([0]), epoch=e)[0]) for e in range(20)}
    assert len(offsets) > 15
    batch = train.batch(torch.tensor([4, 2]), epoch=3)
    start = train.starts(np.array([4, 2]), epoch=3)
    for row, begin in enumerate(start):
        expected = np.asarray(train.tokens[begin : begin + block + 1], dtype=np.int64)
        assert batch["input"][row].tolist() == expected[:-1].tolist()
        assert batch["target"][row].tolist() == expected[1:].tolist()
    assert batch["input"].dtype == torch.int64


def test_offsets_follow_seed_and_epoch(mirror, tmp_path):
    a, b, c = (shakespeare(tmp_path, seed=seed).train for seed in (0, 0, 1))
    starts = [split.starts(np.arange(5), epoch=1).tolist() for split in (a, b, c)]
    assert starts[0] == starts[1] != starts[2]


@pytest.mark.parametrize("n", [18, 19, 33, 100])
def test_windows_never_leave_the_stream(n):
    for train in (True, False):
        split = TokenSplit(np.arange(n), 16, seed=0, train=train)
        for epoch in range(30):
            batch = split.batch(torch.arange(len(split)), epoch)
            assert torch.equal(batch["target"], batch["input"] + 1)
    evaluation = TokenSplit(np.arange(n), 16, seed=0, train=False)
    covered = evaluation.batch(torch.arange(len(evaluation)))["target"].flatten().tolist()
    assert covered == list(range(1, 1 + 16 * ((n - 1) // 16)))  # each token once


def test_streams_that_are_too_short_are_refused():
    with pytest.raises(ConfigError, match="has 17 tokens only"):
        TokenSplit(np.arange(17), 16, seed=0, train=True)


def test_token_streams_have_no_subsets():
    with pytest.raises(Unsupported, match="no fixed items"):
        TokenSplit(np.arange(50), 16, seed=0, train=True).subset(torch.tensor([0]))


def test_train_size_cuts_the_stream_but_not_the_vocabulary(mirror, tmp_path):
    small, whole = shakespeare(tmp_path, train_size=100), shakespeare(tmp_path)
    assert len(small.train.tokens) == 100
    assert small.class_names == whole.class_names
    assert small.fingerprint != whole.fingerprint


@pytest.mark.parametrize("option", [{"block_size": 8}, {"test_size": 50}, {"split_seed": 3}])
def test_fingerprint_of_text_changes_with_options(option, mirror, tmp_path):
    assert shakespeare(tmp_path, **option).fingerprint != shakespeare(tmp_path).fingerprint


def test_val_fraction_takes_the_end_of_the_training_tokens(mirror, play, tmp_path):
    bundle = shakespeare(tmp_path, validation_split=None, val_fraction=0.1)
    n = len(play)
    assert len(bundle.train.tokens) == n - round(0.1 * n)
    whole = shakespeare(tmp_path, validation_split=None)
    assert whole.val is None
    joined = np.concatenate([bundle.train.tokens, bundle.val.tokens])
    assert np.array_equal(joined, whole.train.tokens)


def test_unknown_characters_are_refused(tmp_path, monkeypatch):
    import datasets as hf

    folder = tmp_path / "mirror" / "tiny_shakespeare"
    folder.mkdir(parents=True)
    for part, line in (("train", "abc" * 50), ("validation", "abc" * 9), ("test", "abz" * 9)):
        hf.Dataset.from_dict({"text": [line]}).to_parquet(folder / f"{part}.parquet")
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path / "mirror"))
    with pytest.raises(ConfigError, match="'z'"):
        shakespeare(tmp_path)


@pytest.fixture
def documents(tmp_path, monkeypatch):
    import datasets as hf

    lines = [" ".join("x" * (1 + (d + w) % 7) for w in range(10)) for d in range(40)]
    folder = tmp_path / "mirror" / "openwebtext"
    folder.mkdir(parents=True)
    hf.Dataset.from_dict({"text": lines}).to_parquet(folder / "train.parquet")
    monkeypatch.setenv("BAYESRULE_DATA", str(tmp_path / "mirror"))
    monkeypatch.setattr(text, "_tokenizer", lambda name: Words())
    return lines


def test_tokenizer_streams_close_documents_and_hold_out_the_last(documents, tmp_path):
    cfg = {
        "name": "openwebtext",
        "tokenizer": "words",
        "n_outputs": 100,
        "block_size": 8,
        "test_fraction": 0.25,
    }
    bundle = load_data(cfg, seed=0, cache_dir=tmp_path)
    streams = [[*(len(word) for word in line.split()), 99] for line in documents]
    assert bundle.train.tokens.tolist() == list(chain.from_iterable(streams[:30]))
    assert bundle.test.tokens.tolist() == list(chain.from_iterable(streams[30:]))
    assert bundle.train.tokens.dtype == np.uint16
    assert isinstance(bundle.train.tokens, np.memmap)
    with pytest.raises(ConfigError, match="has 100 tokens"):
        load_data(cfg | {"n_outputs": 50257}, seed=0, cache_dir=tmp_path)


def test_openwebtext_without_a_source_says_so(tmp_path):
    with pytest.raises(DataUnavailable, match="Skylion007/openwebtext"):
        load_data({"name": "openwebtext"}, seed=0, cache_dir=tmp_path)


def test_a_missing_split_is_named(mirror, tmp_path):
    with pytest.raises(ConfigError, match="it has train"):
        shakespeare(tmp_path, test_split="testing")
