"""Small convolutional network: stages of 3 x 3 convolutions and pooling, then linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bayesrule.errors import ConfigError
from bayesrule.models.norms import ACTIVATIONS, NormAct
from bayesrule.models.registry import check_choice, image_shape, register_model

__all__ = ["CNN", "cnn"]


class ConvStage(nn.Module):
    """`n_convs` times (3 x 3 convolution, norm, activation), 2 x 2 max pooling, dropout.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        n_convs: Number of convolutions.
        norm: ``batch``, ``group``, ``frn`` or ``none``.
        groups: Groups wanted of group normalisation.
        activation: ``relu``, ``tanh`` or ``gelu``; ``frn`` brings its own.
        dropout: Probability of dropping an entry of the pooled map.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        n_convs: int,
        norm: str,
        groups: int,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [c_in] + [c_out] * n_convs
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=norm == "none") for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(NormAct(norm, c_out, groups, activation) for _ in self.convs)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H // 2, W // 2)."""
        for conv, norm in zip(self.convs, self.norms):
            x = norm(conv(x))
        return self.dropout(self.pool(x))


class CNN(nn.Module):
    """Convolution stages, flattened, then hidden linear layers and a linear head.

    Args:
        input_shape: (C, H, W).
        n_outputs: K.
        widths: Channels of each stage.
        convs_per_stage: Convolutions before each pooling.
        hidden: Widths of linear layers between the last map and the head.
        norm: ``batch``, ``group``, ``frn`` or ``none``.
        groups: Groups wanted of group normalisation.
        activation: ``relu``, ``tanh`` or ``gelu``.
        dropout: Probability of dropping an entry after each stage.
        hidden_dropout: The same after each hidden layer.

    Raises:
        ConfigError: If the images are too small for so many poolings.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_outputs: int,
        widths: Sequence[int],
        convs_per_stage: int,
        hidden: Sequence[int],
        norm: str,
        groups: int,
        activation: str,
        dropout: float,
        hidden_dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        side = 2 ** len(widths)
        if min(height, width) < side:
            raise ConfigError(
                f"model.widths={list(widths)} halves the image {len(widths)} times, but its size "
                f"is {height} x {width}; give at most {min(height, width).bit_length() - 1} widths"
            )
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        channels_in = [channels, *widths[:-1]]
        self.stages = nn.Sequential(
            *(
                ConvStage(a, b, convs_per_stage, norm, groups, activation, dropout)
                for a, b in zip(channels_in, widths)
            )
        )
        flat = [widths[-1] * (height // side) * (width // side), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(flat))
        self.dropouts = nn.ModuleList(nn.Dropout(hidden_dropout) for _ in self.layers)
        self.head = nn.Linear(flat[-1], n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the head's input (B, D) for images x (B, C, H, W)."""
        h = torch.flatten(self.stages(x), 1)
        for layer, dropout in zip(self.layers, self.dropouts):
            h = dropout(ACTIVATIONS[self.activation](layer(h)))
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


@register_model("cnn")
def cnn(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    widths: Sequence[int] = (16, 32),
    convs_per_stage: int = 1,
    hidden: Sequence[int] = (),
    norm: str = "group",
    groups: int = 8,
    activation: str = "relu",
    dropout: float = 0.0,
    hidden_dropout: float | None = None,
) -> nn.Module:
    """Build a `CNN` with PyTorch's default initialisation; `hidden_dropout` None is `dropout`."""
    shape = image_shape("cnn", input_shape)
    if not widths:
        raise ConfigError("model.widths is empty; give the channels of at least one stage")
    channels = [int(w) for w in widths]
    linear = [int(h) for h in hidden]
    of_hidden = dropout if hidden_dropout is None else hidden_dropout
    return CNN(
        shape,
        n_outputs,
        channels,
        convs_per_stage,
        linear,
        norm,
        groups,
        activation,
        dropout,
        of_hidden,
    )
