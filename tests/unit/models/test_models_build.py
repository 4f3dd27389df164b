"""Building: known parameter counts, seeds, options, and agreement of code and YAML."""

from pathlib import Path

import pytest
import torch
import yaml

from bayesrule.config.schema import parse_rule
from bayesrule.errors import ConfigError
from bayesrule.models import build_model, count_parameters, model_names, model_options
from bayesrule.models.registry import register_model

CONF = Path(__file__).parents[3] / "conf" / "model"
NETWORKS = [  # other kinds of models (Gaussian processes) are not built by `build_model`
    path for path in sorted(CONF.glob("*.yaml")) if "_kind_" not in yaml.safe_load(path.read_text())
]
CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "options", "shape", "n_outputs", "count"),
    [
        # by hand: 64*100+100 + 100*100+100 + 100*10+10
        ("mlp", {}, (64,), 10, 17_610),
        ("mlp", {"hidden": []}, (8, 8), 10, 650),
        # the BayesBiNN paper's networks (counted with its code): no biases, nothing learnt in norms
        (
            "mlp",
            {
                "hidden": [2048] * 3,
                "bias": False,
                "norm": "batch",
                "norm_affine": False,
                "norm_outputs": True,
            },
            (1, 28, 28),
            10,
            784 * 2048 + 2 * 2048**2 + 2048 * 10,
        ),
        (
            "vgg",
            {},
            CIFAR,
            10,
            9 * (3 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2)
            + 8192 * 1024
            + 1024**2
            + 1024 * 10,
        ),
        # by hand: scale and shift of 5 + 3 units
        ("mlp", {"hidden": [5], "norm": "batch", "norm_outputs": True}, (4,), 3, 25 + 18 + 16),
        # by hand: the classical counts of LeNet-5 and of AlexNet without its large linear layers
        ("lenet5", {}, CIFAR, 10, 456 + 2416 + 48_120 + 10_164 + 850),
        ("lenet5", {"norm": "batch"}, CIFAR, 10, 450 + 12 + 2400 + 32 + 48_120 + 10_164 + 850),
        ("lenet5", {}, (1, 28, 28), 10, 156 + 2416 + 30_840 + 10_164 + 850),
        ("alexnet", {}, CIFAR, 10, 23_296 + 307_392 + 663_936 + 884_992 + 590_080 + 2570),
        # by hand: convs 9*16, 16*9*32 without bias, two norms, linear 7*7*32*10+10
        ("cnn", {}, (1, 28, 28), 10, 144 + 32 + 4608 + 64 + 15_690),
        ("cnn", {"norm": "none"}, (1, 28, 28), 10, 160 + 4640 + 15_690),
        # Mnih et al.: by hand 8224 + 32832 + 36928 + 3136*512+512 + 512*4+4
        # the network for split CIFAR: 32-32-pool-64-64-pool-512, six heads of ten
        (
            "cnn",
            {"widths": [32, 64], "convs_per_stage": 2, "hidden": [512], "norm": "none"},
            CIFAR,
            60,
            896 + 9_248 + 18_496 + 36_928 + 4096 * 512 + 512 + 512 * 60 + 60,
        ),
        ("nature_cnn", {}, (4, 84, 84), 4, 1_686_180),
        # He et al.: 0.27M; the usual CIFAR ResNet-20s with options A and B
        ("resnet20", {}, CIFAR, 10, 269_722),
        ("resnet20", {"shortcut": "conv"}, CIFAR, 10, 272_474),
        # the IVON paper's own networks (counted with its code)
        (
            "resnet20",
            {"shortcut": "conv", "norm": "frn", "conv_bias": True, "sum_activation": "none"},
            CIFAR,
            10,
            274_042,
        ),
        ("resnet18", {"norm": "frn"}, CIFAR, 100, 11_224_932),
        ("preresnet110", {}, CIFAR, 10, 3_899_146),
        ("preresnet110", {}, CIFAR, 100, 3_907_876),
        ("densenet121", {"growth": 12, "norm": "frn"}, CIFAR, 10, 1_016_278),
        # He et al.'s 1.7M, with projections
        (
            "preresnet110",
            {"width": 16, "norm": "batch", "conv_bias": False, "stem_norm": False},
            CIFAR,
            10,
            1_730_522,
        ),
        # torchvision's counts, and the usual 3x3-stem variants
        ("resnet18", {}, CIFAR, 10, 11_173_962),
        ("resnet18", {"stem": "imagenet"}, IMAGENET, 1000, 11_689_512),
        ("resnet50", {}, IMAGENET, 1000, 25_557_032),
        ("densenet121", {"stem": "imagenet"}, IMAGENET, 1000, 7_978_856),
        ("densenet121", {}, CIFAR, 10, 6_956_298),
        ("vit_base", {}, IMAGENET, 1000, 86_567_656),
        # DeiT-Ti
        ("vit_tiny", {"patch_size": 16}, IMAGENET, 1000, 5_717_416),
        # GPT-2's released sizes, tied embedding counted once
        ("gpt2", {"size": "124M"}, (1024,), 50_257, 124_439_808),
        ("gpt2", {"size": "355M"}, (1024,), 50_257, 354_823_168),
        ("gpt2", {"size": "773M"}, (1024,), 50_257, 774_030_080),
    ],
)
def test_parameter_counts_are_the_known_ones(name, options, shape, n_outputs, count):
    model = build_model(
        {"name": name, **options}, input_shape=shape, n_outputs=n_outputs, seed=0, device="meta"
    )
    assert count_parameters(model) == count
    assert all(t.device.type == "meta" for t in [*model.parameters(), *model.buffers()])


def test_count_can_leave_out_frozen_parameters():
    model = build_model({"name": "mlp"}, input_shape=(4,), n_outputs=2, seed=0)
    model.head.requires_grad_(False)
    frozen = 100 * 2 + 2
    assert count_parameters(model) - count_parameters(model, trainable_only=True) == frozen


def test_same_seed_same_values_other_seed_others():
    def values(seed):
        cfg = {"name": "cnn", "widths": [4], "groups": 2}
        model = build_model(cfg, input_shape=(1, 8, 8), n_outputs=3, seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(values(3), values(3))
    assert not torch.equal(values(3), values(4))


def test_global_random_state_neither_matters_nor_moves():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model({"name": "mlp"}, input_shape=(4,), n_outputs=2, seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = build_model({"name": "mlp"}, input_shape=(4,), n_outputs=2, seed=0).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_default_device_of_the_caller_does_not_change_the_model():
    with torch.device("meta"):
        model = build_model({"name": "mlp"}, input_shape=(4,), n_outputs=2, seed=0)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_missing_name_is_refused():
    with pytest.raises(ConfigError, match="model=<name>"):
        build_model({"hidden": [3]}, input_shape=(4,), n_outputs=2, seed=0)


@pytest.mark.parametrize(
    ("cfg", "shape", "words"),
    [
        ({"name": "resnet21"}, CIFAR, "did you mean 'resnet20'"),
        ({"name": "mlp", "hiden": [3]}, (4,), "did you mean 'hidden'"),
        ({"name": "mlp", "activation": "rellu"}, (4,), "did you mean 'relu'"),
        ({"name": "cnn", "norm": "bach"}, CIFAR, "did you mean 'batch'"),
        ({"name": "cnn"}, (13,), "model=mlp"),
        ({"name": "cnn", "widths": []}, CIFAR, "at least one stage"),
        ({"name": "cnn", "widths": [4, 4, 4, 4]}, (1, 8, 8), "at most 3 widths"),
        ({"name": "resnet20", "depth": 21}, CIFAR, "nearest are 20 and 26"),
        ({"name": "resnet20", "shortcut": "c"}, CIFAR, "model.shortcut='c'"),
        ({"name": "densenet121"}, (3, 8, 6), "at least 8 pixels"),
        ({"name": "densenet121", "norm": "frn"}, (3, 15, 15), "larger than 15 pixels"),
        ({"name": "resnet18", "norm": "frn"}, (3, 8, 8), "one pixel"),
        ({"name": "resnet18", "stem": "tiny"}, CIFAR, "model.stem='tiny'"),
        ({"name": "vit_tiny", "patch_size": 5}, CIFAR, "model.patch_size=5"),
        ({"name": "vit_tiny", "heads": 5}, CIFAR, "model.heads=5"),
        ({"name": "gpt_char"}, CIFAR, "sequences of tokens"),
        ({"name": "gpt_char", "block_size": 8}, (16,), "model.block_size=8"),
        ({"name": "gpt2", "size": "1B"}, (16,), "model.size='1B'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(cfg, shape, words):
    with pytest.raises(ConfigError) as error:
        build_model(cfg, input_shape=shape, n_outputs=3, seed=0, device="meta")
    assert words in str(error.value)


def test_keys_with_an_underscore_are_not_options():
    cfg = {"name": "mlp", "_schema_": {"name": "mlp"}}
    build_model(cfg, input_shape=(4,), n_outputs=2, seed=0)


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="already taken"):
        register_model("mlp")(lambda input_shape, n_outputs: None)


def test_every_model_has_a_yaml_and_every_yaml_a_model():
    assert [path.stem for path in NETWORKS] == model_names()


@pytest.mark.parametrize("path", NETWORKS, ids=lambda p: p.stem)
def test_yaml_options_and_defaults_are_those_of_the_code(path):
    cfg = yaml.safe_load(path.read_text())
    schema = cfg.pop("_schema_")
    assert cfg.keys() == schema.keys()
    for key, value in cfg.items():
        assert parse_rule(schema[key]).coerce(value, key) == value
    assert cfg.pop("name") == path.stem
    code = model_options(path.stem)
    assert cfg == {k: list(v) if isinstance(v, tuple) else v for k, v in code.items()}
