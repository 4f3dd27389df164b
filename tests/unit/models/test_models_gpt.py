"""GPT-2: equality with transformers, causality, initialisation, functional calls."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from bayesrule.errors import ConfigError
from bayesrule.models import build_model, load_hf_gpt2

VOCAB, BLOCK = 23, 16
SIZE = {"depth": 2, "heads": 2, "width": 12}


def tiny(name="gpt2", seed=0, block_size=BLOCK, **options):
    cfg = {"name": name, **SIZE, "block_size": block_size, **options}
    return build_model(cfg, input_shape=(8,), n_outputs=VOCAB, seed=seed)


def tokens(*shape, seed=0):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def hf_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_positions=BLOCK, n_embd=12, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator))
    return model


@pytest.mark.parametrize("attention", ["fused", "math"])
@pytest.mark.parametrize("length", [1, 5, BLOCK])
def test_logits_equal_those_of_transformers(attention, length):
    hf = hf_gpt2()
    ours = tiny(attention=attention).double().eval()
    load_hf_gpt2(ours, hf.state_dict())
    x = tokens(3, length)
    torch.testing.assert_close(ours(x), hf(x).logits, rtol=1e-10, atol=1e-10)


def test_gradients_equal_those_of_transformers():
    hf = hf_gpt2()
    ours = tiny(attention="math").double().eval()
    load_hf_gpt2(ours, hf.state_dict())
    x, y = tokens(2, 6), tokens(2, 6, seed=1)
    for model, logits in ((ours, ours(x)), (hf, hf(x).logits)):
        model.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    pairs = [
        (ours.token.weight.grad, hf.transformer.wte.weight.grad),
        (ours.position.weight.grad, hf.transformer.wpe.weight.grad),
        (ours.blocks[0].attn.qkv.weight.grad, hf.transformer.h[0].attn.c_attn.weight.grad.T),
    ]
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_loading_cuts_positions_and_takes_a_bare_state():
    hf = hf_gpt2()
    ours = tiny(block_size=8).double().eval()
    load_hf_gpt2(ours, hf.transformer.state_dict())
    x = tokens(2, 8)
    torch.testing.assert_close(ours(x), hf(x).logits, rtol=1e-10, atol=1e-10)


def test_loading_names_the_first_entry_that_does_not_fit():
    state = hf_gpt2().state_dict()
    with pytest.raises(ConfigError, match=r"wte\.weight.*\(23, 12\).*\(23, 24\)"):
        load_hf_gpt2(tiny(width=24), state)
    with pytest.raises(ConfigError, match=r"no entry 'transformer\.h\.2\.ln_1\.weight'"):
        load_hf_gpt2(tiny(depth=3), state)


@pytest.mark.parametrize("name", ["gpt2", "gpt_char"])
def test_logits_have_the_vocabulary_and_do_not_see_the_future(name):
    model = tiny(name).eval()
    x = tokens(2, 8)
    logits_BTV = model(x)
    assert logits_BTV.shape == (2, 8, VOCAB)
    changed = x.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCAB
    other_BTV = model(changed)
    torch.testing.assert_close(logits_BTV[:, :5], other_BTV[:, :5], rtol=1e-6, atol=1e-6)
    assert (logits_BTV[:, 5:] - other_BTV[:, 5:]).abs().amax(-1).min() > 1e-3


def test_too_long_sequences_are_refused():
    with pytest.raises(ConfigError, match=r"model\.block_size=16"):
        tiny()(tokens(1, 17))


def test_block_size_null_is_the_length_of_the_data():
    assert tiny(block_size=None).block_size == 8


def test_initial_values_have_the_scales_of_gpt2():
    cfg = {"name": "gpt2", "depth": 8, "heads": 4, "width": 64, "block_size": 64}
    model = build_model(cfg, input_shape=(64,), n_outputs=512, seed=0)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert p.abs().max() == 0
        elif "norm" in name:
            assert torch.equal(p, torch.ones_like(p))
        else:
            std = 0.02 / 4 if name.endswith(("proj.weight", "down.weight")) else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05), name


def test_embedding_and_head_are_one_parameter():
    model = tiny()
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(map(id, model.parameters())))
    assert not any("head" in name for name in names)


@pytest.mark.parametrize("attention", ["fused", "math"])
def test_per_example_gradients_by_vmap_equal_a_loop(attention):
    model = tiny(attention=attention).double()
    params = {k: p.detach() for k, p in model.named_parameters()}
    x, y = tokens(3, 6), tokens(3, 6, seed=1)

    def loss(params, x, y):
        return F.cross_entropy(functional_call(model, params, (x[None],))[0], y)

    rows = vmap(grad(loss), (None, 0, 0))(params, x, y)
    for i in range(3):
        one = grad(loss)(params, x[i], y[i])
        for key in params:
            torch.testing.assert_close(rows[key][i], one[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attention", ["fused", "math"])
def test_dropout_acts_in_training_only(attention):
    model = tiny(attention=attention, dropout=0.5)
    x = tokens(2, 8)
    with torch.random.fork_rng():
        assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
