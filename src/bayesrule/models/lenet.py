"""LeNet-5 and AlexNet for small images, as in the experiments of VOGN (arXiv 1906.02506)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesrule.errors import ConfigError
from bayesrule.models.norms import NormAct
from bayesrule.models.registry import image_shape, register_model

__all__ = ["AlexNet", "LeNet5", "alexnet", "lenet5"]


class LeNet5(nn.Module):
    """Two 5 x 5 convolutions (6 and 16 maps) with max pooling, linear layers of 120 and 84 units.

    Rectifiers instead of the original's squashing functions (after LeCun et al., 1998).

    Args:
        input_shape: (C, H, W).
        n_outputs: K.
        norm: ``none``, ``batch``, ``group`` or ``frn``, after the convolutions.
        dropout: Probability of dropping an entry after each convolution and hidden layer.

    Raises:
        ConfigError: If the images are too small.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], n_outputs: int, norm: str, dropout: float
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < 16:
            raise ConfigError(
                f"model=lenet5 needs images of at least 16 x 16 pixels, not {height} x {width}"
            )
        self.conv1 = nn.Conv2d(channels, 6, 5, bias=norm == "none")
        self.conv2 = nn.Conv2d(6, 16, 5, bias=norm == "none")
        self.norm1, self.norm2 = NormAct(norm, 6, groups=2), NormAct(norm, 16, groups=2)
        flat = 16 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
        self.fc1, self.fc2 = nn.Linear(flat, 120), nn.Linear(120, 84)
        self.head = nn.Linear(84, n_outputs)
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(4))

    def features(self, x: Tensor) -> Tensor:
        """Return the head's input (B, 84) for images x (B, C, H, W)."""
        drop1, drop2, drop3, drop4 = self.dropouts
        h = F.max_pool2d(drop1(self.norm1(self.conv1(x))), 2)
        h = F.max_pool2d(drop2(self.norm2(self.conv2(h))), 2)
        h = drop3(F.relu(self.fc1(torch.flatten(h, 1))))
        out: Tensor = drop4(F.relu(self.fc2(h)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


class AlexNet(nn.Module):
    """Five convolutions and one linear layer: AlexNet for 32 x 32 images.

    64C11 (stride 4) - MP2 - 192C5 - MP2 - 384C3 - 256C3 - 256C3 - MP2 - K (Krizhevsky, 2012, with
    the fully connected layers left out).

    Args:
        input_shape: (C, H, W).
        n_outputs: K.
        widths: Channels of the five convolutions.
        dropout: Probability of dropping an entry after each convolution.

    Raises:
        ConfigError: If the images are too small or there are not five widths.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_outputs: int,
        widths: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if len(widths) != 5:
            raise ConfigError(f"model.widths of alexnet has five numbers, not {len(widths)}")
        if min(height, width) < 29:
            raise ConfigError(
                f"model=alexnet needs images of at least 29 x 29 pixels, not {height} x {width}"
            )
        kernels = [(11, 4, 5), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, size, stride, padding)
            for (a, b), (size, stride, padding) in zip(pairwise([channels, *widths]), kernels)
        )
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in self.convs)
        side = [((n - 1) // 4 + 1) // 2 // 2 // 2 for n in (height, width)]
        self.head = nn.Linear(widths[-1] * side[0] * side[1], n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the head's input (B, D) for images x (B, C, H, W)."""
        for i, (conv, dropout) in enumerate(zip(self.convs, self.dropouts)):
            x = dropout(F.relu(conv(x)))
            if i in (0, 1, 4):
                x = F.max_pool2d(x, 2)
        return torch.flatten(x, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


@register_model("lenet5")
def lenet5(
    input_shape: tuple[int, ...], n_outputs: int, *, norm: str = "none", dropout: float = 0.0
) -> nn.Module:
    """Build a `LeNet5` with PyTorch's default initialisation of its layers."""
    return LeNet5(image_shape("lenet5", input_shape), n_outputs, norm, dropout)


@register_model("alexnet")
def alexnet(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    widths: Sequence[int] = (64, 192, 384, 256, 256),
    dropout: float = 0.0,
) -> nn.Module:
    """Build an `AlexNet` with PyTorch's default initialisation of its layers."""
    shape = image_shape("alexnet", input_shape)
    return AlexNet(shape, n_outputs, [int(w) for w in widths], dropout)
