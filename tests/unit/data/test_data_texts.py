"""Labelled texts: prompts, tokens, masks, subsets."""

import numpy as np
import pytest
import torch

from bayesrule.data import TextSplit, load_data
from bayesrule.data.prompts import Item, pieces, read_item
from bayesrule.errors import ConfigError
from bayesrule.pretrained import load_tokenizer

TOY = {"name": "toy_text", "tokenizer": "hashed"}
ARC = {
    "name": "arc", "template": "choices", "input_column": "question", "target_column": "answerKey",
    "n_outputs": 4, "answers": "letters",
}  # fmt: skip


def test_a_choice_question_becomes_a_prompt():
    row = {
        "question": "What is wet? ",
        "choices": {
            "text": ["sand", "water.", "iron", "a dry leaf"],
            "label": ["1", "2", "3", "4"],
        },
        "answerKey": "2",
    }
    item = read_item(row, ARC)
    assert item == Item("What is wet? ", ("sand", "water.", "iron", "a dry leaf"), 1)
    made = pieces(item, ARC, [], "prompt")
    assert made.head + made.body + made.tail == (
        "Select the right answer to the question.\nQuestion: What is wet?\n"
        "A. Sand. B. Water. C. Iron. D. A dry leaf.\nAnswer:"
    )
    assert pieces(item, ARC, [], "plain").tail == "\nA. Sand. B. Water. C. Iron. D. A dry leaf."
    row["choices"] = {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}
    assert read_item(row, ARC) is None  # another number of choices


@pytest.mark.parametrize(
    ("options", "row", "item"),
    [
        ({"template": "winogrande", "input_column": "sentence", "target_column": "answer"},
         {"sentence": "_ won", "option1": "Ann", "option2": "Bob", "answer": "2"},
         Item("_ won", ("Ann", "Bob"), 1)),
        ({"template": "piqa", "input_column": "goal", "target_column": "label"},
         {"goal": "open", "sol1": "pull", "sol2": "push", "label": 0},
         Item("open", ("pull", "push"), 0)),
        ({"template": "boolq", "input_column": "question", "target_column": "answer"},
         {"question": "is it so", "answer": True, "passage": "It is."},
         Item("is it so\nPassage: It is.", (), 1)),
        ({"template": "sentence", "input_column": "text", "target_column": "label"},
         {"text": "fine", "label": 1}, Item("fine", (), 1)),
    ],
)  # fmt: skip
def test_every_template_reads_its_columns(options, row, item):
    cfg = {"name": "boolq", "n_outputs": 2, **options}
    assert read_item(row, cfg) == item
    with pytest.raises(ConfigError, match="no column"):
        read_item({"other": 1}, cfg)


def test_words_instead_of_letters():
    cfg = {"name": "boolq", "template": "boolq", "answers": "words"}
    made = pieces(Item("is it so", (), 1), cfg, ["False", "True"], "prompt")
    assert made.tail == "\nFalse or True?\nAnswer:"


def test_tokens_are_filled_and_masked_and_the_middle_is_cut(tmp_path):
    bundle = load_data({**TOY, "form": "prompt", "max_length": 26}, seed=0, cache_dir=tmp_path)
    assert bundle.kind == "classification"
    assert bundle.input_shape == (26,)
    assert bundle.class_names == ["bad", "good"]
    batch = bundle.train.batch(torch.tensor([3, 0]))
    tokens, mask = batch["input"]["input_ids"], batch["input"]["attention_mask"]
    assert tokens.shape == mask.shape == (2, 26)
    assert tokens.dtype == mask.dtype == batch["target"].dtype == torch.int64
    assert bool((mask.diff() <= 0).all())  # filled on the right
    assert bool((tokens[mask == 0] == 0).all())
    tokenizer = load_tokenizer("hashed")
    tail = tokenizer.encode(["\nA. Bad. B. Good.\nAnswer:"])[0] + tokenizer.after
    for row, shown in zip(tokens, mask.bool(), strict=True):
        assert row[shown].tolist()[-len(tail) :] == tail  # the question is cut, never its end
    assert bundle.notes["texts_cut"] > 0
    short = load_data({**TOY, "form": "prompt", "max_length": 8}, seed=0, cache_dir=tmp_path)
    assert short.train.whole()["input"]["input_ids"][0].tolist() == [1, *tail[-7:]]


def test_splits_are_drawn_as_for_other_sets(tmp_path):
    options = {**TOY, "train_size": 100, "val_fraction": 0.2, "test_size": 50, "label_noise": 0.3}
    one, again = (load_data(options, seed=2, cache_dir=tmp_path) for _ in range(2))
    assert (len(one.train), len(one.val), len(one.test)) == (80, 20, 50)
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != load_data(options, seed=3, cache_dir=tmp_path).fingerprint
    assert 0.1 < one.notes["label_noise_train"] < 0.5
    part = one.train.subset(torch.tensor([5, 2]))
    for key in ("input_ids", "attention_mask"):
        whole = one.train.batch(torch.tensor([5, 2]))["input"][key]
        assert torch.equal(part.whole()["input"][key], whole)
    assert part.digest() != one.train.digest()


def test_without_a_pretrained_model_the_tokenizer_must_be_chosen(tmp_path):
    with pytest.raises(ConfigError, match=r"data.tokenizer=auto is that of a pretrained model"):
        load_data({"name": "toy_text"}, seed=0, cache_dir=tmp_path)


def test_the_toy_texts_can_be_told_apart(tmp_path):
    bundle = load_data(TOY, seed=0, cache_dir=tmp_path)
    counts = [np.zeros(1024), np.zeros(1024)]
    batch = bundle.train.whole()
    for row, label in zip(batch["input"]["input_ids"], batch["target"], strict=True):
        counts[int(label)] += np.bincount(row, minlength=1024)
    weight = np.sign(counts[1] - counts[0]) * (np.abs(counts[1] - counts[0]) > 20)
    test = bundle.test.whole()
    said = [weight[row].sum() > 0 for row in test["input"]["input_ids"]]
    assert np.mean(np.array(said) == test["target"].numpy()) > 0.9


def test_a_table_of_a_mirror(mirror, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = mirror / "rotten_tomatoes"
    folder.mkdir(parents=True)
    for part, n in (("train", 30), ("test", 20)):
        texts = [("good film " if k % 2 else "bad film ") * (k + 1) for k in range(n)]
        table = pa.table({"text": texts, "label": [k % 2 for k in range(n)]})
        pq.write_table(table, folder / f"{part}.parquet")
    cfg = {"name": "rotten_tomatoes", "tokenizer": "hashed", "max_length": 16, "n_train": 30}
    bundle = load_data(cfg, seed=0, cache_dir=tmp_path)
    assert bundle.source.served_by == "mirror"
    assert (len(bundle.train), len(bundle.test)) == (30, 20)
    assert isinstance(bundle.train, TextSplit)
    mask = bundle.test.whole()["input"]["attention_mask"]
    assert mask.sum(1).tolist() == [min(2 * (k + 1) + 2, 16) for k in range(20)]
    assert (bundle.test.targets == torch.arange(20) % 2).all()
    with pytest.raises(ConfigError, match=r"data.test_split=nowhere"):
        load_data({**cfg, "test_split": "nowhere"}, seed=0, cache_dir=tmp_path)


def test_of_an_answer_only_its_tokens_are_learnt(mirror, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = mirror / "gsm8k"
    folder.mkdir(parents=True)
    questions = [f"What is {k} plus {k}?" for k in range(12)]
    answers = [f"It is {2 * k} {'of course ' * k}" for k in range(12)]
    for part in ("train", "test"):
        pq.write_table(
            pa.table({"question": questions, "answer": answers}), folder / f"{part}.parquet"
        )
    cfg = {"name": "gsm8k", "tokenizer": "hashed", "n_outputs": 1024, "max_length": 20}
    bundle = load_data({**cfg, "val_fraction": 0.25}, seed=0, cache_dir=tmp_path)
    assert (bundle.kind, bundle.n_outputs, bundle.input_shape) == ("lm", 1024, (20,))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (9, 3, 12)
    tokenizer = load_tokenizer("hashed")
    batch = bundle.test.batch(torch.arange(12))
    for k in range(12):
        answer = [*tokenizer.encode([answers[k]])[0], tokenizer.end]
        target, tokens = batch["target"][k], batch["input"]["input_ids"][k]
        kept = target != -100
        first = int(kept.nonzero()[0])
        learnt = target[kept].tolist()
        assert learnt == answer[: len(learnt)]  # a long one is cut at its end
        assert learnt == tokens[first + 1 : first + 1 + len(learnt)].tolist()
        asked = tokenizer.encode([f"Question: {questions[k]}\nAnswer:"])[0]
        assert first == len(tokenizer.before) + len(asked) - 1
    assert bundle.notes["texts_cut"] > 0
    with pytest.raises(ConfigError, match=r"data.n_outputs=512: hashed has 1024 tokens"):
        load_data({**cfg, "n_outputs": 512}, seed=0, cache_dir=tmp_path)
