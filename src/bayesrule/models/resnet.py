"""Residual networks with activations after the sum (He et al., 2016, arXiv:1512.03385).

    h <- relu(shortcut(h) + F(h))

where F is two 3 x 3 convolutions (basic) or a 1 x 1, a 3 x 3 and a 1 x 1 (bottleneck).

Three members: the CIFAR ResNets of depth 6n + 2 (section 4.2; three stages of n basic blocks), the
ResNet-18 with a 3 x 3 or an ImageNet stem, and the ResNet-50, whose bottlenecks have their stride
in the 3 x 3 convolution (the common "v1.5"; the paper has it in the first 1 x 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesrule.errors import ConfigError
from bayesrule.models.blocks import ConvBlock
from bayesrule.models.norms import NORMS, ConvStyle, check_last_map
from bayesrule.models.registry import check_choice, image_shape, register_model

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "blocks_per_stage",
    "conv_stem",
    "resnet18",
    "resnet20",
    "resnet50",
]

SHORTCUTS = ("conv", "pad")
SUM_ACTIVATIONS = ("relu", "none")
STEMS = ("cifar", "imagenet")


class PadShortcut(nn.Module):
    """Shortcut without parameters: take every `stride`-th pixel, fill new channels with zeros.

    He et al. (2016), option A. Maps (B, C_in, H, W) to (B, C_out, ceil(H / stride), ...).

    Args:
        c_in: C_in.
        c_out: C_out, at least C_in.
        stride: Stride of the block.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.front = (c_out - c_in) // 2
        self.back = c_out - c_in - self.front

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad x."""
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.back))


class ResidualBlock(ConvBlock):
    """h <- act(shortcut(h) + branch(h)); the shortcut is the identity where shapes agree.

    Args:
        branch: F, maps (B, C_in, H, W) to (B, C_out, H / stride, W / stride).
        c_in: C_in.
        c_out: C_out.
        stride: Stride of the branch.
        style: Norm and bias of the projection shortcut.
        shortcut: ``conv`` (1 x 1 convolution and norm, option B) or ``pad`` (option A).
        sum_activation: ``relu`` or ``none``.
    """

    def __init__(
        self,
        branch: nn.Module,
        c_in: int,
        c_out: int,
        stride: int,
        style: ConvStyle,
        shortcut: str,
        sum_activation: str,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.sum_activation = check_choice("sum_activation", sum_activation, SUM_ACTIVATIONS)
        check_choice("shortcut", shortcut, SHORTCUTS)
        self.shortcut: nn.Module
        if stride == 1 and c_in == c_out:
            self.shortcut = nn.Identity()
        elif shortcut == "conv":
            conv = style.conv(c_in, c_out, 1, stride)
            self.shortcut = nn.Sequential(conv, style.norm_act(c_out, None))
        else:
            self.shortcut = PadShortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.shortcut(x) + self.branch(x)
        return F.relu(y) if self.sum_activation == "relu" else y


class BasicBlock(ResidualBlock):
    """Residual block of two 3 x 3 convolutions; `n_blocks` is that of the whole network."""

    expansion = 1

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int,
        style: ConvStyle,
        shortcut: str,
        sum_activation: str,
        n_blocks: int,
    ) -> None:
        branch = nn.Sequential(
            style.conv(c_in, width, 3, stride),
            style.norm_act(width),
            style.damp_branch(style.conv(width, width, 3), n_blocks),
            style.norm_act(width, None),
        )
        super().__init__(branch, c_in, width, stride, style, shortcut, sum_activation)


class Bottleneck(ResidualBlock):
    """Residual block of 1 x 1, 3 x 3 (stride) and 1 x 1 convolutions, 4 times as wide outside."""

    expansion = 4

    def __init__(
        self,
        c_in: int,
        width: int,
        stride: int,
        style: ConvStyle,
        shortcut: str,
        sum_activation: str,
        n_blocks: int,
    ) -> None:
        c_out = self.expansion * width
        branch = nn.Sequential(
            style.conv(c_in, width, 1),
            style.norm_act(width),
            style.conv(width, width, 3, stride),
            style.norm_act(width),
            style.damp_branch(style.conv(width, c_out, 1), n_blocks),
            style.norm_act(c_out, None),
        )
        super().__init__(branch, c_in, c_out, stride, style, shortcut, sum_activation)


def conv_stem(stem: str, c_in: int, c_out: int, style: ConvStyle) -> nn.Sequential:
    """Return the first layers: ``cifar`` 3 x 3 stride 1; ``imagenet`` 7 x 7 stride 2 and max pool.

    Raises:
        ConfigError: If `stem` is neither.
    """
    if check_choice("stem", stem, STEMS) == "cifar":
        return nn.Sequential(style.conv(c_in, c_out, 3), style.norm_act(c_out))
    conv = style.conv(c_in, c_out, 7, stride=2)
    return nn.Sequential(conv, style.norm_act(c_out), nn.MaxPool2d(3, stride=2, padding=1))


def blocks_per_stage(model: str, depth: int) -> int:
    """Return n of a CIFAR ResNet of depth 6n + 2.

    Raises:
        ConfigError: If the depth is not of that form.
    """
    if depth < 8 or (depth - 2) % 6:
        low = max(8, depth - (depth - 2) % 6)
        raise ConfigError(
            f"model={model} needs a depth 6n + 2 (8, 20, 32, 44, 56, 110, ...), not {depth}; "
            f"the nearest are {low} and {low + 6}"
        )
    return (depth - 2) // 6


class ResNet(nn.Module):
    """Stem, stages of residual blocks (each but the first halves the map), mean pool, linear head.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        n_blocks: Number of blocks of each stage.
        width: Inner width of the first stage's blocks; it doubles with each stage.
        channels: Channels of the images.
        n_outputs: K.
        stem: ``cifar`` or ``imagenet``.
        style: Norm and bias of all convolutions.
        shortcut: ``conv`` or ``pad``.
        sum_activation: ``relu`` or ``none``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        n_blocks: Sequence[int],
        width: int,
        channels: int,
        n_outputs: int,
        stem: str,
        style: ConvStyle,
        shortcut: str,
        sum_activation: str,
    ) -> None:
        super().__init__()
        check_choice("norm", style.norm, NORMS)
        self.stem = conv_stem(stem, channels, width, style)
        stages = []
        c_in = width
        for stage, n in enumerate(n_blocks):
            blocks = []
            for index in range(n):
                stride = 2 if stage > 0 and index == 0 else 1
                inner = width * 2**stage
                blocks.append(
                    block(c_in, inner, stride, style, shortcut, sum_activation, sum(n_blocks))
                )
                c_in = inner * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(c_in, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the mean-pooled last map (B, D) for images x (B, C, H, W)."""
        return torch.mean(self.stages(self.stem(x)), dim=(-2, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


@register_model("resnet20")
def resnet20(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    depth: int = 20,
    width: int = 16,
    norm: str = "batch",
    groups: int = 8,
    conv_bias: bool = False,
    shortcut: str = "pad",
    sum_activation: str = "relu",
) -> nn.Module:
    """Build the CIFAR ResNet of depth 6n + 2 (He et al., 2016, section 4.2)."""
    channels = image_shape("resnet20", input_shape)[0]
    check_last_map("resnet20", norm, input_shape, 4)
    style = ConvStyle(norm, groups, conv_bias)
    n_blocks = [blocks_per_stage("resnet20", depth)] * 3
    return ResNet(
        BasicBlock, n_blocks, width, channels, n_outputs, "cifar", style, shortcut, sum_activation
    )


@register_model("resnet18")
def resnet18(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    width: int = 64,
    stem: str = "cifar",
    norm: str = "batch",
    groups: int = 32,
    conv_bias: bool = False,
) -> nn.Module:
    """Build the ResNet-18 (He et al., 2016, Table 1), with a 3 x 3 stem for small images."""
    channels = image_shape("resnet18", input_shape)[0]
    check_last_map("resnet18", norm, input_shape, 32 if stem == "imagenet" else 8)
    style = ConvStyle(norm, groups, conv_bias)
    return ResNet(BasicBlock, [2, 2, 2, 2], width, channels, n_outputs, stem, style, "conv", "relu")


@register_model("resnet50")
def resnet50(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    width: int = 64,
    stem: str = "imagenet",
    norm: str = "batch",
    groups: int = 32,
    conv_bias: bool = False,
    sum_activation: str = "relu",
) -> nn.Module:
    """Build the ResNet-50 (He et al., 2016, Table 1)."""
    channels = image_shape("resnet50", input_shape)[0]
    check_last_map("resnet50", norm, input_shape, 32 if stem == "imagenet" else 8)
    style = ConvStyle(norm, groups, conv_bias)
    return ResNet(
        Bottleneck, [3, 4, 6, 3], width, channels, n_outputs, stem, style, "conv", sum_activation
    )
