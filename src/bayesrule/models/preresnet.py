"""Residual networks with activations before the convolutions (He et al., 2016, arXiv:1603.05027).

    h <- shortcut(h) + conv(act(norm(conv(a)))),    a = act(norm(h))

The shortcut is the identity; where the shape changes it is a 1 x 1 convolution of `a`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesrule.models.blocks import ConvBlock
from bayesrule.models.norms import NORMS, ConvStyle, check_last_map
from bayesrule.models.registry import check_choice, image_shape, register_model
from bayesrule.models.resnet import blocks_per_stage

__all__ = ["PreActBlock", "PreResNet", "preresnet110"]


class PreActBlock(ConvBlock):
    """Pre-activation block of two 3 x 3 convolutions (He et al., 2016b, figure 4e).

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        stride: Stride of the first convolution.
        style: Norm and bias of the convolutions.
        n_blocks: Blocks of the whole network; see `ConvStyle.damp_branch`.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, style: ConvStyle, n_blocks: int) -> None:
        super().__init__()
        self.norm1 = style.norm_act(c_in)
        self.conv1 = style.conv(c_in, c_out, 3, stride)
        self.norm2 = style.norm_act(c_out)
        self.conv2 = style.damp_branch(style.conv(c_out, c_out, 3), n_blocks)
        same = stride == 1 and c_in == c_out
        self.shortcut = None if same else style.conv(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, C_in, H, W)."""
        a = self.norm1(x)
        y = self.conv2(self.norm2(self.conv1(a)))
        return y + (x if self.shortcut is None else self.shortcut(a))


class PreResNet(nn.Module):
    """Stem, three stages of `n` pre-activation blocks, norm, mean pool, linear head.

    Args:
        n: Blocks per stage; the depth is 6n + 2.
        width: Channels of the first stage; they double with each stage.
        channels: Channels of the images.
        n_outputs: K.
        style: Norm and bias of all convolutions.
        stem_norm: Norm and activation directly after the first convolution too.
    """

    def __init__(
        self,
        n: int,
        width: int,
        channels: int,
        n_outputs: int,
        style: ConvStyle,
        stem_norm: bool,
    ) -> None:
        super().__init__()
        check_choice("norm", style.norm, NORMS)
        self.stem = nn.Sequential(style.conv(channels, width, 3))
        if stem_norm:
            self.stem.append(style.norm_act(width))
        stages = []
        c_in = width
        for stage in range(3):
            c_out = width * 2**stage
            blocks = []
            for index in range(n):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(PreActBlock(c_in, c_out, stride, style, 3 * n))
                c_in = c_out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = style.norm_act(c_in)
        self.head = nn.Linear(c_in, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the mean-pooled last map (B, D) for images x (B, C, H, W)."""
        return torch.mean(self.norm(self.stages(self.stem(x))), dim=(-2, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


@register_model("preresnet110")
def preresnet110(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    depth: int = 110,
    width: int = 24,
    norm: str = "frn",
    groups: int = 8,
    conv_bias: bool = True,
    stem_norm: bool = True,
) -> nn.Module:
    """Build the pre-activation ResNet of depth 6n + 2.

    The defaults are the network of the IVON paper's CIFAR and TinyImageNet tables (filter response
    normalisation, 24 channels in the first stage), 3.91 million parameters at 100 classes. He et
    al.'s own has ``width=16, norm=batch, conv_bias=false, stem_norm=false``: 1.73 million.
    """
    channels = image_shape("preresnet110", input_shape)[0]
    check_last_map("preresnet110", norm, input_shape, 4)
    style = ConvStyle(norm, groups, conv_bias)
    n = blocks_per_stage("preresnet110", depth)
    return PreResNet(n, width, channels, n_outputs, style, stem_norm)
