"""The convolutional network of DQN: three convolutions and a hidden layer, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bayesrule.errors import ConfigError
from bayesrule.models.registry import image_shape, register_model

__all__ = ["NatureCNN", "nature_cnn"]

KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)


class NatureCNN(nn.Module):
    """Convolutions 8 x 8 / 4, 4 x 4 / 2, 3 x 3 / 1, each with ReLU, then a hidden layer and a head.

    Source: Mnih et al., "Human-level control through deep reinforcement learning" (Nature, 2015).

    Args:
        input_shape: (C, H, W), at least 36 x 36; the paper's is (4, 84, 84).
        n_outputs: K, a value per action.
        widths: Channels of the three convolutions.
        hidden: Width of the hidden layer.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_outputs: int,
        widths: Sequence[int],
        hidden: int,
    ) -> None:
        super().__init__()
        channels, *sides = input_shape
        for kernel, stride in zip(KERNELS, STRIDES):
            sides = [(side - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise ConfigError(
                f"model=nature_cnn needs images of at least 36 x 36, not {input_shape[1:]}"
            )
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride)
            for (a, b), kernel, stride in zip(pairwise([channels, *widths]), KERNELS, STRIDES)
        )
        self.hidden = nn.Linear(widths[-1] * sides[0] * sides[1], hidden)
        self.head = nn.Linear(hidden, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the head's input (B, D) for images x (B, C, H, W)."""
        for conv in self.convs:
            x = torch.relu(conv(x))
        return torch.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


@register_model("nature_cnn")
def nature_cnn(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    widths: Sequence[int] = (32, 64, 64),
    hidden: int = 512,
) -> nn.Module:
    """Build a `NatureCNN` with PyTorch's default initialisation of its layers."""
    shape = image_shape("nature_cnn", input_shape)
    if len(widths) != 3:
        raise ConfigError(f"model.widths={list(widths)}: nature_cnn has three convolutions")
    return NatureCNN(shape, n_outputs, [int(w) for w in widths], int(hidden))
