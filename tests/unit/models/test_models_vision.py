"""Vision and table models: shapes, norms, functional calls, equality with outside references."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from bayesrule.errors import ConfigError
from bayesrule.models import FilterResponseNorm2d, build_model
from bayesrule.models.norms import NORMS, NormAct, group_count

TINY = {
    "mlp": {"hidden": [5, 4]},
    "cnn": {"widths": [4, 6], "groups": 2, "hidden": [5], "convs_per_stage": 2},
    "vgg": {"widths": [4, 6], "hidden": [5]},
    "lenet5": {},
    "resnet20": {"depth": 8, "width": 4},
    "resnet18": {"width": 4},
    "resnet50": {"width": 4, "stem": "cifar"},
    "preresnet110": {"depth": 8, "width": 4},
    "densenet121": {"growth": 4},
    "vit_tiny": {"depth": 2, "width": 12},
    "vit_base": {"depth": 1, "heads": 2, "width": 8, "patch_size": 8, "pool": "mean"},
}
CNNS = ["cnn", "resnet20", "resnet18", "resnet50", "preresnet110", "densenet121"]


def tiny(name, shape=(3, 16, 16), n_outputs=3, **options):
    cfg = {"name": name, **TINY[name], **options}
    return build_model(cfg, input_shape=shape, n_outputs=n_outputs, seed=0)


def images(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 24, 32)])
def test_outputs_are_the_head_of_the_features(name, shape):
    model = tiny(name, shape).eval()
    x = images(2, *shape)
    outputs = model(x)
    assert outputs.shape == (2, 3)
    assert torch.equal(outputs, model.head(model.features(x)))
    assert outputs.std() > 1e-4


@pytest.mark.parametrize("name", CNNS)
@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_mixes_items_in_training(name, norm):
    model = tiny(name, norm=norm)
    x = images(4, 3, 16, 16)
    other = torch.cat([x[:1], 2 * images(3, 3, 16, 16, seed=1)])
    alone_matters_not = torch.allclose(model(x)[0], model(other)[0], atol=1e-5)
    assert alone_matters_not == (norm != "batch")
    kinds = {type(m).__name__ for m in model.modules()}
    assert ("BatchNorm2d" in kinds) == (norm == "batch")
    assert ("GroupNorm" in kinds) == (norm == "group")
    assert ("FilterResponseNorm2d" in kinds) == (norm == "frn")


def test_normalised_mlp_is_its_layers_in_order():
    options = {"norm": "batch", "norm_outputs": True, "bias": False, "norm_eps": 1e-4}
    model = tiny("mlp", activation="relu", norm_momentum=0.15, **options)
    x = images(8, 3, 16, 16)
    h, buffers = x.flatten(1), []
    for layer in (*model.layers, model.head[0]):
        z = layer(h)
        mean, var = z.mean(0), z.var(0, unbiased=False)
        buffers.append(0.15 * mean)
        z = (z - mean) / (var + 1e-4).sqrt()
        h = torch.relu(z)
    torch.testing.assert_close(model(x), z, rtol=1e-5, atol=1e-5)
    for norm, expected in zip((*model.norms, model.head[1]), buffers, strict=True):
        torch.testing.assert_close(norm.running_mean, expected)
    assert all(p.ndim == 2 or "norm" in n or "head.1" in n for n, p in model.named_parameters())
    plain = {n: p.shape for n, p in tiny("mlp", norm_affine=False, **options).named_parameters()}
    assert list(plain) == ["layers.0.weight", "layers.1.weight", "head.0.weight"]
    outputs = tiny("mlp", norm_outputs=True)(x)
    torch.testing.assert_close(outputs.mean(0), torch.zeros(3), rtol=0, atol=1e-6)


def test_input_dropout_is_there_only_if_wanted():
    """MC dropout switches every dropout layer on, so an unwanted one would change its draws."""
    assert sum(isinstance(m, torch.nn.Dropout) for m in tiny("mlp").modules()) == 2
    model, x = tiny("mlp", input_dropout=0.5, hidden=[]), torch.ones(1, 3, 16, 16)
    outputs = torch.cat([model(x) for _ in range(20)])
    assert outputs.std(0).max() > 0.05
    assert model.eval()(x).std() > 0


def test_vgg_pools_before_the_second_norm_of_a_stage():
    model, x = tiny("vgg", (3, 8, 8)).eval(), images(2, 3, 8, 8)
    for i, (conv, norm) in enumerate(zip(model.convs, model.conv_norms, strict=True)):
        x = F.conv2d(x, conv.weight, padding=1)
        x = F.max_pool2d(x, 2, 2) if i in (1, 3) else x
        x = torch.relu(norm(x))
    x = torch.relu(model.norms[0](model.layers[0](x.flatten(1))))
    expected = model.head[1](model.head[0](x))
    torch.testing.assert_close(model(images(2, 3, 8, 8)), expected)
    with pytest.raises(ConfigError, match=r"give 1 to 3 widths"):
        tiny("vgg", (3, 8, 8), widths=[2, 2, 2, 2])


@pytest.mark.parametrize("name", TINY)
def test_functional_call_with_other_parameters(name):
    model, other = tiny(name).eval(), tiny(name).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    x = images(2, 3, 16, 16)
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    outputs = functional_call(model, state, (x,))
    assert torch.equal(outputs, other(x))
    assert not torch.equal(outputs, model(x))


@pytest.mark.parametrize("name", TINY)
def test_per_example_gradients_by_vmap_equal_a_loop(name):
    options = {"norm": "frn"} if name in CNNS else {}
    model = tiny(name, **options).double()  # in training mode, dropout 0
    if name == "vgg":  # its batch normalisation mixes items in training
        model.eval()
    params = {k: p.detach() for k, p in model.named_parameters()}
    x, y = images(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2, 1])

    def loss(params, x, y):
        return F.cross_entropy(functional_call(model, params, (x[None],)), y[None])

    rows = vmap(grad(loss), (None, 0, 0))(params, x, y)
    for i in range(3):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for key, p in model.named_parameters():
            torch.testing.assert_close(rows[key][i], p.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_has_a_gradient(name):
    options = {"norm": "group", "groups": 2} if name in CNNS else {}
    model = tiny(name, **options)
    model(images(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_frn_follows_the_paper_elementwise():
    frn = FilterResponseNorm2d(2, eps=1e-3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in frn.parameters():
            p.normal_(generator=generator)
    frn.requires_grad_(False)
    x = images(2, 2, 3, 4, dtype=torch.float64)
    z = frn(x)
    for b in range(2):
        for c in range(2):
            nu2 = sum(float(v) ** 2 for v in x[b, c].flatten()) / 12
            for h in range(3):
                for w in range(4):
                    y = float(x[b, c, h, w]) / (nu2 + 1e-3) ** 0.5
                    line = float(frn.gamma[c]) * y + float(frn.beta[c])
                    assert float(z[b, c, h, w]) == pytest.approx(max(line, float(frn.tau[c])))


def test_frn_learns_eps_only_when_asked():
    assert "eps" not in dict(FilterResponseNorm2d(2).named_parameters())
    frn = FilterResponseNorm2d(2, eps=-1e-4, learn_eps=True)
    x = images(1, 2, 1, 1)
    assert torch.allclose(frn(x), torch.relu(x / (x.square() + 1e-4).sqrt()))
    assert "eps" in dict(frn.named_parameters())


def test_frn_is_scale_invariant_up_to_eps():
    frn = FilterResponseNorm2d(3, eps=1e-12)
    x = images(2, 3, 5, 5)
    assert torch.allclose(frn(x), frn(100 * x), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups", "used"),
    [(16, 8, 8), (16, 32, 8), (24, 32, 12), (16, 16, 16), (7, 4, 1), (1, 8, 1), (30, 8, 6)],
)
def test_group_count_falls_back_to_a_divisor(channels, groups, used):
    assert group_count(channels, groups) == used
    NormAct("group", channels, groups)(torch.zeros(1, channels, 2, 2))


def test_deep_network_without_norm_keeps_its_scale():
    deep = build_model(
        {"name": "preresnet110", "norm": "none", "width": 4},
        input_shape=(3, 8, 8),
        n_outputs=2,
        seed=0,
    )
    features = deep.features(images(4, 3, 8, 8))
    assert 1e-2 < features.square().mean().sqrt() < 10


@pytest.mark.parametrize(
    ("name", "stem", "last_one", "first_two"),
    [
        ("resnet18", "cifar", 8, 9),
        ("resnet18", "imagenet", 32, 33),
        ("densenet121", "cifar", 15, 16),
        ("densenet121", "imagenet", 60, 61),
    ],
)
def test_frn_is_refused_exactly_where_one_pixel_is_left(name, stem, last_one, first_two):
    def last_map(side, norm):
        model = tiny(name, (1, side, side), stem=stem, norm=norm)
        return model.stages(model.stem(torch.zeros(2, 1, side, side))).shape[-1]

    assert last_map(last_one, "group") == 1
    assert last_map(first_two, "frn") == 2
    with pytest.raises(ConfigError, match=f"larger than {last_one} pixels"):
        last_map(last_one, "frn")


def test_pad_shortcut_is_he_et_als_option_a():
    model = tiny("resnet20")
    x = images(1, 4, 6, 6)
    y = model.stages[1][0].shortcut(x)
    assert y.shape == (1, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().sum() == 0
    assert y[:, 6:].abs().sum() == 0


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_fused_and_math_attention_agree_in_evaluation(pool, p):
    math, fused = (
        tiny("vit_tiny", attention=kind, pool=pool, dropout=p).double().eval()
        for kind in ("math", "fused")
    )
    x = images(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(math(x), fused(x), rtol=1e-10, atol=1e-12)


def test_math_attention_has_hessian_vector_products():
    model = tiny("vit_tiny", attention="math").double()
    params = {k: p.detach() for k, p in model.named_parameters()}
    x, y = images(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2])

    def loss(params):
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    def gradient(t):
        moved = {k: p + t * v[k] for k, p in params.items()}
        return grad(loss)(moved)

    v = {k: images(*p.shape, dtype=torch.float64, seed=5) for k, p in params.items()}
    _, hvp = torch.func.jvp(grad(loss), (params,), (v,))
    step = 1e-6
    plus, minus = gradient(step), gradient(-step)
    for key in params:
        central = (plus[key] - minus[key]) / (2 * step)
        torch.testing.assert_close(hvp[key], central, rtol=1e-4, atol=1e-7)


def test_vit_equals_the_transformers_implementation():
    from transformers import ViTConfig, ViTForImageClassification

    hf = ViTForImageClassification(
        ViTConfig(
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=48,
            image_size=16,
            patch_size=4,
            layer_norm_eps=1e-6,
            num_labels=3,
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in hf.parameters():
            p.normal_(std=0.3, generator=generator)
    ours = tiny("vit_tiny").eval()
    backbone = hf.vit
    with torch.no_grad():
        ours.sequence.token.copy_(backbone.embeddings.cls_token)
        ours.sequence.position.copy_(backbone.embeddings.position_embeddings)
    projection = backbone.embeddings.patch_embeddings.projection
    ours.patch.load_state_dict(projection.state_dict())
    ours.norm.load_state_dict(backbone.layernorm.state_dict())
    ours.head.load_state_dict(hf.classifier.state_dict())
    for block, layer in zip(ours.blocks, backbone.layers):
        block.norm1.load_state_dict(layer.layernorm_before.state_dict())
        block.norm2.load_state_dict(layer.layernorm_after.state_dict())
        block.attn.proj.load_state_dict(layer.attention.o_proj.state_dict())
        block.up.load_state_dict(layer.mlp.fc1.state_dict())
        block.down.load_state_dict(layer.mlp.fc2.state_dict())
        a = layer.attention
        for kind in ("weight", "bias"):
            qkv = [getattr(part, kind) for part in (a.q_proj, a.k_proj, a.v_proj)]
            block.attn.qkv.get_parameter(kind).data.copy_(torch.cat(qkv))
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), hf(x).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "depths", "sizes"),
    [
        ("resnet18", "basic", [2, 2, 2, 2], [4, 8, 16, 32]),
        ("resnet50", "bottleneck", [3, 4, 6, 3], [16, 32, 64, 128]),
    ],
)
def test_resnets_equal_the_transformers_implementation(name, kind, depths, sizes):
    from transformers import ResNetConfig, ResNetForImageClassification

    hf = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=4, hidden_sizes=sizes, depths=depths, layer_type=kind, num_labels=3
        )
    )
    ours = tiny(name, stem="imagenet")

    def copy(target, source):
        target.load_state_dict(source.state_dict())

    copy(ours.stem[0], hf.resnet.embedder.embedder.convolution)
    copy(ours.stem[1].norm, hf.resnet.embedder.embedder.normalization)
    copy(ours.head, hf.classifier[1])
    for stage, hf_stage in zip(ours.stages, hf.resnet.encoder.stages):
        for block, hf_block in zip(stage, hf_stage.layers):
            for j, layer in enumerate(hf_block.layer):
                copy(block.branch[2 * j], layer.convolution)
                copy(block.branch[2 * j + 1].norm, layer.normalization)
            if not isinstance(hf_block.shortcut, torch.nn.Identity):
                copy(block.shortcut[0], hf_block.shortcut.convolution)
                copy(block.shortcut[1].norm, hf_block.shortcut.normalization)
    x = images(4, 3, 64, 64)
    torch.testing.assert_close(ours.train()(x), hf.train()(x).logits, rtol=1e-4, atol=1e-4)
