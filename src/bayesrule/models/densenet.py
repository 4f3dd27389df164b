"""Densely connected network (Huang et al., 2017, arXiv:1608.06993).

    h <- [h, conv3x3(act(norm(conv1x1(act(norm(h))))))]     growth_rate new channels a layer

Between dense stages a transition halves the channels and, by mean pooling, the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesrule.errors import ConfigError
from bayesrule.models.blocks import ConvBlock
from bayesrule.models.norms import NORMS, ConvStyle, check_last_map
from bayesrule.models.registry import check_choice, image_shape, register_model
from bayesrule.models.resnet import STEMS, conv_stem

__all__ = ["DenseLayer", "DenseNet", "densenet121"]


class DenseLayer(ConvBlock):
    """h <- [h, F(h)] with the bottleneck F of Huang et al. (2017), "DenseNet-B".

    Args:
        c_in: Channels of the input.
        growth: New channels; the bottleneck has four times as many.
        style: Norm and bias of the convolutions.
    """

    def __init__(self, c_in: int, growth: int, style: ConvStyle) -> None:
        super().__init__()
        self.norm1 = style.norm_act(c_in)
        self.conv1 = style.conv(c_in, 4 * growth, 1)
        self.norm2 = style.norm_act(4 * growth)
        self.conv2 = style.conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Append `growth` channels to x (B, C_in, H, W)."""
        return torch.cat([x, self.conv2(self.norm2(self.conv1(self.norm1(x))))], dim=-3)


class Transition(nn.Module):
    """Norm, 1 x 1 convolution to half the channels, 2 x 2 mean pooling ("DenseNet-C")."""

    def __init__(self, c_in: int, c_out: int, style: ConvStyle) -> None:
        super().__init__()
        self.norm = style.norm_act(c_in)
        self.conv = style.conv(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H // 2, W // 2)."""
        return F.avg_pool2d(self.conv(self.norm(x)), 2)


class DenseNet(nn.Module):
    """Stem, dense stages with transitions between them, norm, mean pool, linear head.

    Args:
        n_layers: Dense layers of each stage.
        growth: New channels of each layer; the stem has twice as many.
        channels: Channels of the images.
        n_outputs: K.
        stem: ``cifar`` (one 3 x 3 convolution) or ``imagenet`` (7 x 7, norm, max pool).
        style: Norm and bias of all convolutions.
    """

    def __init__(
        self,
        n_layers: tuple[int, ...],
        growth: int,
        channels: int,
        n_outputs: int,
        stem: str,
        style: ConvStyle,
    ) -> None:
        super().__init__()
        check_choice("norm", style.norm, NORMS)
        width = 2 * growth
        if check_choice("stem", stem, STEMS) == "cifar":
            self.stem = nn.Sequential(style.conv(channels, width, 3))
        else:
            self.stem = conv_stem(stem, channels, width, style)
        stages = nn.Sequential()
        for index, n in enumerate(n_layers):
            if index > 0:
                stages.append(Transition(width, width // 2, style))
                width //= 2
            layers = [DenseLayer(width + i * growth, growth, style) for i in range(n)]
            stages.append(nn.Sequential(*layers))
            width += n * growth
        self.stages = stages
        self.norm = style.norm_act(width)
        self.head = nn.Linear(width, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the mean-pooled last map (B, D) for images x (B, C, H, W)."""
        return torch.mean(self.norm(self.stages(self.stem(x))), dim=(-2, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


@register_model("densenet121")
def densenet121(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    growth: int = 32,
    stem: str = "cifar",
    norm: str = "batch",
    groups: int = 32,
    conv_bias: bool = False,
) -> nn.Module:
    """Build the DenseNet-121 (Huang et al., 2017, Table 1)."""
    channels, height, breadth = image_shape("densenet121", input_shape)
    # the stem's strides round up, the transitions' pooling down: sides that leave one pixel
    least, most = (29, 60) if stem == "imagenet" else (8, 15)
    if min(height, breadth) < least:
        raise ConfigError(
            f"model=densenet121 with stem={stem} needs images of at least {least} pixels a side, "
            f"not {height} x {breadth}"
        )
    check_last_map("densenet121", norm, input_shape, most)
    style = ConvStyle(norm, groups, conv_bias)
    return DenseNet((6, 12, 24, 16), growth, channels, n_outputs, stem, style)
