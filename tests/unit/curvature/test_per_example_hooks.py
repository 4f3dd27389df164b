"""Per-example gradients by hooks against `torch.func`, layer by layer and model by model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bayesrule.curvature import (
    LayerRule,
    PerExampleRecorder,
    layer_rules,
    per_example_gradients,
    register_rule,
)
from bayesrule.errors import Unsupported
from bayesrule.likelihoods import Categorical
from bayesrule.models import build_model
from bayesrule.models.norms import FilterResponseNorm2d

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def randint(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


def loss_fn(output, target):
    """A mean over items that is no sum over positions or outputs."""
    return (output.flatten(1).sin().sum(1) * target.cos() + output.flatten(1).pow(2).mean(1)).mean()


def record(model, x, y, parts=(slice(None),), loss=loss_fn, **options):
    """One recorded batch, in micro-batches; leaves gradients in the model."""
    recorder = PerExampleRecorder(model, **options)
    with recorder.recording():
        for part in parts:
            share = len(y[part]) / len(y)
            (loss(model(x[part]), y[part]) * share).backward()
    return recorder


def assert_near(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        scale = value.abs().max().clamp_min(1e-12)
        assert float((found[name] - value).abs().max() / scale) < tolerance, name


def assert_all_equal_func(model, x, y, loss=loss_fn, **tolerance):
    g = per_example_gradients(model, loss, {"input": x, "target": y})
    squares = {name: rows.square().mean(0) for name, rows in g.items()}
    halves = (slice(0, 2), slice(2, None))
    for parts in ((slice(None),), halves):
        assert_near(record(model, x, y, parts, loss).mean_squares(), squares, **tolerance)
        found = record(model, x, y, parts, loss, statistic="gradients").gradients()
        assert_near(found, g, **tolerance)


def conv(*args, **options):
    return nn.Conv2d(4, 6, *args, **options)


images, sequences = (5, 4, 7, 6), (5, 7, 4)
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear_no_bias": (lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    "linear_sequence": (lambda: nn.Linear(4, 3), sequences),
    "linear_one_position": (lambda: nn.Linear(4, 3), (5, 1, 1, 4)),
    "linear_grid": (lambda: nn.Linear(6, 3), images),
    "conv": (lambda: conv(3, padding=1), images),
    "conv_strided": (lambda: conv((3, 2), stride=(2, 1), padding=(1, 0)), images),
    "conv_dilated": (lambda: conv(2, dilation=(2, 3), bias=False), images),
    "conv_grouped": (lambda: conv(3, groups=2), images),
    "conv_depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), images),
    "conv_same": (lambda: conv((3, 2), padding="same"), images),
    "conv_reflect": (lambda: conv(3, padding=(1, 2), padding_mode="reflect"), images),
    "conv_pointwise": (lambda: conv(1, stride=2), images),
    "conv_one_position": (lambda: conv((7, 6)), images),
    "conv1d": (lambda: nn.Conv1d(7, 3, 2), sequences),
    "conv_transpose": (lambda: nn.ConvTranspose2d(4, 3, 2), images),
    "layer_norm": (lambda: nn.LayerNorm(4), sequences),
    "layer_norm_flat": (lambda: nn.LayerNorm(4, bias=False), (5, 4)),
    "layer_norm_plane": (lambda: nn.LayerNorm((7, 6)), images),
    "rms_norm": (lambda: nn.RMSNorm(4), sequences),
    "group_norm": (lambda: nn.GroupNorm(2, 4), images),
    "group_norm_flat": (lambda: nn.GroupNorm(2, 4), (5, 4)),
    "batch_norm_2d": (lambda: nn.BatchNorm2d(4), images),
    "batch_norm_1d": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "instance_norm": (lambda: nn.InstanceNorm2d(4, affine=True), images),
    "frn": (lambda: FilterResponseNorm2d(4, learn_eps=True), images),
    "prelu": (lambda: nn.PReLU(4), images),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("small_chunks", [False, True])
def test_every_layer_equals_func(name, small_chunks, monkeypatch):
    if small_chunks:
        monkeypatch.setattr(layer_rules, "_CPU_ELEMENTS", 1)
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean += 0.3
            layer.running_var *= 1.7
    assert_all_equal_func(layer.eval(), randn(*shape), randn(5, seed=2))


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_repeated_tokens_of_an_embedding(padding_idx):
    torch.manual_seed(0)
    model = nn.Embedding(4, 3, padding_idx=padding_idx).double()
    tokens = randint(4, 5, 9)  # nine tokens of four kinds: every example repeats some
    assert_all_equal_func(model, tokens, randn(5, seed=2))
    assert_all_equal_func(model, randint(4, 5), randn(5, seed=2))


IMAGE_MODELS = {
    "mlp": {"name": "mlp", "hidden": [6]},
    "cnn_group": {"name": "cnn", "widths": [4, 6], "groups": 2, "hidden": [5]},
    "cnn_frn": {"name": "cnn", "widths": [4, 6], "norm": "frn"},
    "cnn_none": {"name": "cnn", "widths": [4, 6], "norm": "none"},
    "cnn_batch": {"name": "cnn", "widths": [4, 6], "norm": "batch"},
    "resnet20": {"name": "resnet20", "norm": "frn", "width": 2},
    "vit": {"name": "vit_tiny", "depth": 2, "heads": 2, "width": 8},
    "vit_mean": {"name": "vit_tiny", "depth": 1, "heads": 2, "width": 8, "pool": "mean"},
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_vision_model_equals_func(name):
    model = build_model(IMAGE_MODELS[name], input_shape=(1, 8, 8), n_outputs=3, seed=0)
    y = torch.arange(5) % 3
    assert_all_equal_func(model.double().eval(), randn(5, 1, 8, 8), y, Categorical().loss)


def test_language_model_with_a_tied_embedding_equals_func():
    cfg = {"name": "gpt_char", "depth": 1, "heads": 2, "width": 8, "block_size": 9}
    model = build_model(cfg, input_shape=(6,), n_outputs=7, seed=0).double()
    assert_all_equal_func(model, randint(7, 5, 6), randint(7, 5, 6), Categorical().loss)


class Shared(nn.Module):
    """One matrix in two layers, one layer used three times, one use without a gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.again, self.out = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        h = self.tied(self.first(x).tanh()).tanh()
        image = h.unsqueeze(1).unsqueeze(2).expand(-1, 1, 4, 4)
        for _ in range(2):
            image = self.again(image).tanh()
        self.again(image)  # goes nowhere
        return self.out(image.mean((1, 2)))


def test_shared_weights_are_summed_over_uses_before_the_square():
    torch.manual_seed(0)
    assert_all_equal_func(Shared().double(), randn(5, 4), randn(5, seed=2))


def test_two_forward_passes_before_one_backward_pass():
    model, x, y = nn.Linear(4, 3).double(), randn(5, 4), randn(5, seed=2)
    recorder = PerExampleRecorder(model)
    with recorder.recording():
        one, two = loss_fn(model(x[:2]), y[:2]), loss_fn(model(x[2:]), y[2:])
        with torch.no_grad():
            model(x[:3])
        model(x)  # no backward pass: its examples do not count
        (0.4 * one + 0.6 * two).backward()
    assert recorder.examples == 5
    assert_near(recorder.mean_squares(), record(model, x, y).mean_squares())


def test_batch_statistics_are_constants():
    torch.manual_seed(0)
    x, y = randn(5, 3, 6, 6), randn(5, seed=2)
    body, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    model = nn.Sequential(body, bn, nn.Tanh()).double().train()
    found = record(model, x, y, names=["1.weight", "1.bias"]).mean_squares()
    with torch.no_grad():
        var, mean = torch.var_mean(body(x), (0, 2, 3), correction=0)
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(var)
    assert_near(found, record(model.eval(), x, y, names=["1.weight", "1.bias"]).mean_squares())


def test_frozen_unused_and_chosen_parameters():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh()).double()
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: model[:4](x)
    model[0].weight.requires_grad_(False)
    x, y = randn(5, 4), randn(5, seed=2)
    found = record(model, x, y).mean_squares()
    assert list(found) == [n for n, p in model.named_parameters() if p.requires_grad]
    assert not found["unused.weight"].any()
    assert not found["unused.weight"].requires_grad
    assert record(model, x, y, statistic="gradients").gradients()["unused.bias"].shape == (5, 2)
    assert_near(record(model, x, y, names=["2.bias"]).mean_squares(), {"2.bias": found["2.bias"]})
    with pytest.raises(Unsupported, match=r"no trainable parameter '0\.weight'"):
        PerExampleRecorder(model, names=["0.weight"])
    with pytest.raises(Unsupported, match="no trainable parameters"):
        PerExampleRecorder(model.requires_grad_(False))


def test_outputs_and_gradients_are_the_same_bits():
    def build():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Flatten(), nn.Linear(144, 3), nn.ReLU(inplace=True), nn.Linear(3, 2),
        )  # fmt: skip

    x, y, runs = randn(6, 1, 8, 8).float(), torch.arange(6) % 2, []
    for recorded in (False, True):
        model = build()
        recorder = PerExampleRecorder(model)
        torch.manual_seed(1)
        if recorded:
            with recorder.recording():
                output = model(x)
                F.cross_entropy(output, y).backward()
            pickle.loads(pickle.dumps(copy.deepcopy(model)))
        else:
            output = model(x)
            F.cross_entropy(output, y).backward()
        runs.append([output, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *runs))


def hooks_of(model):
    return [
        hook
        for m in model.modules()
        for kind in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        for hook in kind
    ]


class Fragile(nn.Module):
    def forward(self, x):
        if len(x) == 3:
            raise ZeroDivisionError
        return x


def test_hooks_are_removed_whatever_happens():
    model = nn.Sequential(nn.Linear(4, 3), Fragile(), nn.Linear(3, 3)).double()
    x, y = randn(5, 4), randn(5, seed=2)
    recorder = PerExampleRecorder(model)
    for where in ("body", "forward"):
        with pytest.raises(ZeroDivisionError), recorder.recording():  # noqa: PT012
            assert hooks_of(model)
            loss_fn(model(x), y).backward()
            model(x[:3]) if where == "forward" else 1 / 0
        assert not hooks_of(model)
        with pytest.raises(RuntimeError, match="nothing recorded"):
            recorder.mean_squares()
    expected = record(model, x, y).mean_squares()
    with recorder.recording():
        with pytest.raises(ZeroDivisionError):
            model(x[:3])  # caught by the caller, who goes on
        loss_fn(model(x), y).backward()
    assert_near(recorder.mean_squares(), expected)
    with recorder.recording():
        pass
    with pytest.raises(RuntimeError, match="no backward pass"):
        recorder.mean_squares()
    with pytest.raises(RuntimeError, match="do not nest"), recorder.recording():  # noqa: SIM117
        with recorder.recording():
            pass
    late = loss_fn(model(x), y)
    late.backward()  # outside: nobody listens
    with pytest.raises(RuntimeError, match="collects squares"):
        record(model, x, y).gradients()
    with pytest.raises(ValueError, match="statistic must be one of"):
        PerExampleRecorder(model, statistic="cubes")


def test_bf16_autocast_accumulates_in_float32():
    torch.manual_seed(0)
    cfg = {"name": "cnn", "widths": [8], "groups": 4}
    model = build_model(cfg, input_shape=(1, 8, 8), n_outputs=3, seed=0)
    x, y, loss = randn(16, 1, 8, 8).float(), torch.arange(16) % 3, Categorical().loss

    def in_bf16(x, y):
        model.zero_grad()
        recorder = PerExampleRecorder(model)
        with recorder.recording(), torch.autocast("cpu", torch.bfloat16):
            loss(model(x), y).backward()
        return recorder.mean_squares()

    found = in_bf16(x, y)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert_near(found, record(model, x, y, loss=loss).mean_squares(), 0.1)
    alone = in_bf16(x[:1], y[:1])  # one example: the gradient that autograd found in bfloat16
    assert_near(alone, {n: p.grad.square() for n, p in model.named_parameters()}, 0.02)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

        def forward(self, x):
            return checkpoint(self.layers, x, use_reentrant=reentrant)

    model, x, y = Checkpointed().double(), randn(5, 4).requires_grad_(), randn(5, seed=2)
    if reentrant:
        with pytest.raises(Unsupported, match="use_reentrant=False"):
            record(model, x, y)
    else:
        assert_near(
            {f"layers.{n}": v for n, v in record(model.layers, x, y).mean_squares().items()},
            record(model, x, y).mean_squares(),
        )


# ------------------------------------------------------------------------------------ refusals


class OwnAndChildren(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(3)), nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x) * self.scale


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.LSTM(4, 3), r"layer '0' \(LSTM\).*weight_ih_l0.*has no rule.*register_rule"),
        (nn.MultiheadAttention(4, 2), r"\(MultiheadAttention\).*beside its child modules"),
        (OwnAndChildren(), r"\(OwnAndChildren\).*beside its child modules"),
        (nn.SyncBatchNorm(4), r"\(SyncBatchNorm\)"),
        (nn.ParameterList([torch.ones(2)]), r"\(ParameterList\)"),
        (nn.Embedding(4, 2, scale_grad_by_freq=True), "counts over the whole batch"),
        (torch.nn.utils.weight_norm(nn.Linear(4, 3)), "'weight_g' is not one of a plain Linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unsupported_layers_are_refused_by_name_and_type(layer, says):
    with pytest.raises(Unsupported, match=says):
        PerExampleRecorder(nn.Sequential(layer))
    trainable = nn.Linear(2, 2)
    PerExampleRecorder(nn.Sequential(layer.requires_grad_(False), trainable))


class Borrowed(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner, self.how = nn.Linear(4, 4), how

    def forward(self, x):
        return self.how(self.inner, x)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda m, x: F.linear(m(x), m.weight), r"'inner\.weight'.*outside the layer.*linear"),
        (lambda m, x: m(x) + m.bias, r"'inner\.bias'.*outside the layer"),
        (lambda m, x: m(x.repeat(2, 1))[:5], "10 rows in a forward pass over 5 examples"),
        (lambda m, x: m(x) + m(x.mean(0)), "without a leading axis"),
    ],
)
def test_uses_that_hooks_cannot_follow_are_refused(how, says):
    with pytest.raises(Unsupported, match=says):
        record(Borrowed(how).double(), randn(5, 4), randn(5, seed=2))


def test_only_whole_forward_and_single_backward_passes():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), randn(5, 4)
    recorder = PerExampleRecorder(model)
    with pytest.raises(Unsupported, match="call the model itself"), recorder.recording():
        model[0](x).sum().backward()
    with pytest.raises(Unsupported, match="two backward passes"), recorder.recording():  # noqa: PT012
        output = model(x)
        output.sum().backward(retain_graph=True)
        output.sum().backward()


def test_a_rule_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(4)), nn.Tanh()

        def forward(self, x):
            return self.inner(x) * self.scale

    class OwnRule(LayerRule):
        parameters = ("scale",)

        def rows(self, module, names, kept, grad):
            return {"scale": kept[0].tanh() * grad}

    model = nn.Sequential(nn.Linear(4, 4), Own()).double()
    with pytest.raises(Unsupported, match="Own"):
        PerExampleRecorder(model)
    register_rule(Own, OwnRule())
    assert_all_equal_func(model, randn(5, 4), randn(5, seed=2))


# ----------------------------------------------------------------------------- other ways to call


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_function_by_hooks_equals_the_function_by_func(chunk_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 3)).double()
    batch = {"input": randn(5, 4), "target": torch.arange(5) % 3}
    elsewhere = {n: p.detach() + 0.1 for n, p in model.named_parameters() if n != "0.bias"}
    for params in (None, elsewhere):
        options = {"params": params, "chunk_size": chunk_size}
        found = per_example_gradients(
            model, nn.CrossEntropyLoss(), batch, **options, method="hooks"
        )
        assert_near(found, per_example_gradients(model, nn.CrossEntropyLoss(), batch, **options))
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    with pytest.raises(ValueError, match="'func' or 'hooks'"):
        per_example_gradients(model, nn.CrossEntropyLoss(), batch, method="loop")
