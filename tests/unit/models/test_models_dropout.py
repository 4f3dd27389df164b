"""Monte-Carlo dropout: where it acts, that it changes nothing else, that it is reproducible."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from bayesrule.errors import ConfigError, Unsupported
from bayesrule.models import build_model, insert_dropout, mc_dropout_mode

OWN = {
    "mlp": ({"hidden": [20, 20]}, (6,)),
    "cnn": ({"widths": [4], "hidden": [8], "groups": 2}, (1, 8, 8)),
    "vit_tiny": ({"depth": 1, "width": 12}, (3, 8, 8)),
}
INSERTED = {
    "resnet20": ({"depth": 8, "width": 4}, (3, 8, 8)),
    "resnet50": ({"width": 2, "stem": "cifar"}, (3, 8, 8)),
    "preresnet110": ({"depth": 8, "width": 4, "norm": "batch"}, (3, 8, 8)),
    "densenet121": ({"growth": 2}, (3, 8, 8)),
}
ALL = OWN | INSERTED


def tiny(name):
    options, shape = ALL[name]
    return build_model({"name": name, **options}, input_shape=shape, n_outputs=3, seed=0)


def inputs(name, n=4):
    return torch.randn(n, *ALL[name][1], generator=torch.Generator().manual_seed(0))


def n_dropouts(model):
    return sum(isinstance(m, nn.Dropout) for m in model.modules())


@pytest.mark.parametrize("name", ALL)
def test_parameter_names_values_and_evaluation_are_untouched(name):
    model = tiny(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = [k for k, _ in model.named_parameters()]
    x = inputs(name)
    outputs = model.eval()(x)
    assert insert_dropout(model, 0.3) is model
    assert [k for k, _ in model.named_parameters()] == names
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert torch.equal(model(x), outputs)


@pytest.mark.parametrize("name", ALL)
def test_mode_draws_masks_and_restores_all_modes(name):
    model = insert_dropout(tiny(name), 0.3).eval()
    model.head.train()  # a mode of its own, to be kept
    modes = [m.training for m in model.modules()]
    buffers = [b.clone() for b in model.buffers()]
    x = inputs(name)
    clean = model.eval()(x)
    for module, mode in zip(model.modules(), modes):
        module.training = mode
    with mc_dropout_mode(model, seed=1) as inside:
        assert inside is model
        draws = [model(x) for _ in range(2)]
        for module in model.modules():
            assert module.training == isinstance(module, nn.Dropout)
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], clean)
    assert [m.training for m in model.modules()] == modes
    # batch statistics neither used nor updated
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers()))


def test_modes_come_back_after_an_exception():
    model = insert_dropout(tiny("resnet20"), 0.3)
    with pytest.raises(RuntimeError), mc_dropout_mode(model):
        raise RuntimeError
    assert all(m.training for m in model.modules())


def test_seed_fixes_the_masks_and_leaves_the_global_state():
    model, x = insert_dropout(tiny("mlp"), 0.3), inputs("mlp")
    state = torch.get_rng_state()

    def draw(seed):
        with mc_dropout_mode(model, seed=seed):
            return model(x)

    first = draw(1)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.rand(3)
        assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)


@pytest.mark.parametrize(("name", "n"), [("mlp", 2), ("cnn", 2), ("vit_tiny", 1 + 3)])
def test_own_layers_are_set_and_none_added(name, n):
    model = insert_dropout(tiny(name), 0.25)
    assert n_dropouts(model) == n
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.25}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet20", 3), ("resnet50", 16), ("preresnet110", 3), ("densenet121", 58)],
)
def test_one_layer_a_block_and_one_before_the_head(name, blocks):
    model = insert_dropout(tiny(name), 0.25)
    assert n_dropouts(model) == blocks + 1
    insert_dropout(model, 0.5)
    assert n_dropouts(model) == blocks + 1
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.5}


def test_inserted_before_a_linear_layer_it_has_the_known_moments():
    # f(x) = w.x with dropout on x: mean w.x, variance p/(1-p) sum (w x)^2
    linear = nn.Linear(5, 1, bias=False).double().requires_grad_(False)
    linear.weight.copy_(torch.tensor([[0.5, -1.0, 0.2, 1.5, -0.3]]))
    model = insert_dropout(nn.Sequential(linear), 0.3)
    x = torch.arange(1.0, 6.0, dtype=torch.float64)
    with mc_dropout_mode(model, seed=0):
        draws = model(x.expand(40_000, 5))[:, 0]
    terms = model[0].weight[0] * x
    var = 0.3 / 0.7 * terms.square().sum()
    assert abs(draws.mean() - terms.sum()) < 5 * (var / 40_000).sqrt()
    assert draws.var() == pytest.approx(var.item(), rel=0.05)


def test_inserted_after_a_block_it_drops_the_given_share():
    model = insert_dropout(tiny("preresnet110"), 0.4)
    kept = []
    block = model.stages[0][0]
    block.register_forward_hook(lambda module, args, out: kept.append(out != 0))
    with mc_dropout_mode(model, seed=0):
        model(inputs("preresnet110", 64))
    assert kept[0].double().mean().item() == pytest.approx(0.6, abs=0.02)


def test_training_mode_drops_too():
    model, x = insert_dropout(tiny("resnet20"), 0.3), inputs("resnet20")
    with torch.random.fork_rng():
        assert not torch.equal(model.train()(x), model(x))


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_copies_and_pickles_keep_their_own_dropout(name):
    model, x = insert_dropout(tiny(name), 0.3), inputs(name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        insert_dropout(twin, 0.0)
        assert torch.equal(twin.train()(x), twin(x))
        assert n_dropouts(twin) == n_dropouts(model)
        with mc_dropout_mode(model, seed=1):
            assert not torch.equal(model(x), model(x))


def test_functional_call_and_vmap_apply_the_masks():
    model, x = insert_dropout(tiny("preresnet110"), 0.3).eval(), inputs("preresnet110")
    params = {k: p.detach() for k, p in model.named_parameters()}

    def loss(params, x):
        return functional_call(model, params, (x[None],)).square().sum()

    with mc_dropout_mode(model, seed=0):
        twice = x[:1].expand(2, *x.shape[1:])
        rows = vmap(grad(loss), (None, 0), randomness="different")(params, twice)
    assert not torch.equal(rows["head.weight"][0], rows["head.weight"][1])


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_probability_outside_its_range_is_refused(p):
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        insert_dropout(tiny("mlp"), p)


def test_model_without_a_place_for_dropout_is_refused():
    with pytest.raises(Unsupported, match="no place for dropout"):
        insert_dropout(nn.Sequential(nn.Conv2d(1, 1, 3)), 0.1)


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_mode_without_active_dropout_is_refused(name):
    model = tiny(name)
    with pytest.raises(Unsupported, match="insert_dropout"), mc_dropout_mode(model):
        pass
    with pytest.raises(Unsupported), mc_dropout_mode(insert_dropout(model, 0.0)):
        pass


@pytest.mark.parametrize(("hidden", "rates"), [(None, [0.25, 0.25]), (0.5, [0.25, 0.5])])
def test_hidden_layers_of_a_cnn_may_have_a_rate_of_their_own(hidden, rates):
    options = {"widths": [4], "hidden": [8], "dropout": 0.25, "hidden_dropout": hidden}
    model = build_model({"name": "cnn", **options}, input_shape=(1, 8, 8), n_outputs=3, seed=0)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == rates
