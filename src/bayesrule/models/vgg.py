"""VGG-like network of BinaryConnect (Courbariaux et al., 2015, arXiv:1511.00363, sec. 3.3).

Stages of two 3 x 3 convolutions, 2 x 2 max pooling before the second one's normalisation, then
linear layers; batch normalisation after every linear map, the last included, so that no layer
needs a bias::

    (2 x 128C3) - MP2 - (2 x 256C3) - MP2 - (2 x 512C3) - MP2 - (2 x 1024FC) - K
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bayesrule.errors import ConfigError
from bayesrule.models.norms import ACTIVATIONS, BatchNormStyle
from bayesrule.models.registry import check_choice, image_shape, register_model

__all__ = ["VGG", "vgg"]


class VGG(nn.Module):
    """Convolution stages and linear layers, each map batch-normalised; equations in the module.

    Args:
        input_shape: (C, H, W).
        n_outputs: K.
        widths: Channels of each stage.
        hidden: Widths of the linear layers before the head.
        bias: Whether convolutions and linear layers have biases.
        norm: Batch normalisation.
        activation: ``relu``, ``tanh`` or ``gelu``.
        dropout: Probability of dropping an entry after each stage and linear layer.

    Raises:
        ConfigError: If the images are too small for so many poolings.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_outputs: int,
        widths: Sequence[int],
        hidden: Sequence[int],
        bias: bool,
        norm: BatchNormStyle,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        side = 2 ** len(widths)
        if not widths or min(height, width) < side:
            raise ConfigError(
                f"model.widths={list(widths)} halves the image {len(widths)} times, but its size "
                f"is {height} x {width}; give 1 to {min(height, width).bit_length() - 1} widths"
            )
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        maps = [channels, *(w for w in widths for _ in range(2))]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=bias) for a, b in pairwise(maps)
        )
        self.conv_norms = nn.ModuleList(norm.after_conv(b) for b in maps[1:])
        flat = [widths[-1] * (height // side) * (width // side), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias) for a, b in pairwise(flat))
        self.norms = nn.ModuleList(norm.after_linear(b) for b in hidden)
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in [*widths, *hidden])
        self.head = nn.Sequential(
            nn.Linear(flat[-1], n_outputs, bias), norm.after_linear(n_outputs)
        )

    def features(self, x: Tensor) -> Tensor:
        """Return the input (B, D) of the last linear map for images x (B, C, H, W)."""
        act = ACTIVATIONS[self.activation]
        dropouts = iter(self.dropouts)
        for i, (conv, norm) in enumerate(zip(self.convs, self.conv_norms)):
            pooled = i % 2 == 1  # the second of a stage
            x = conv(x)
            x = act(norm(nn.functional.max_pool2d(x, 2) if pooled else x))
            x = next(dropouts)(x) if pooled else x
        x = torch.flatten(x, 1)
        for layer, norm in zip(self.layers, self.norms):
            x = next(dropouts)(act(norm(layer(x))))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        outputs: Tensor = self.head(self.features(x))
        return outputs


@register_model("vgg")
def vgg(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    widths: Sequence[int] = (128, 256, 512),
    hidden: Sequence[int] = (1024, 1024),
    bias: bool = False,
    norm_affine: bool = False,
    norm_momentum: float = 0.2,
    norm_eps: float = 1e-5,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Build a `VGG` with PyTorch's default initialisation of its layers."""
    return VGG(
        image_shape("vgg", input_shape),
        n_outputs,
        [int(w) for w in widths],
        [int(h) for h in hidden],
        bias,
        BatchNormStyle(norm_affine, norm_momentum, norm_eps),
        activation,
        dropout,
    )
