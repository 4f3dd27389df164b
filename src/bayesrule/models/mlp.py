"""Multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from bayesrule.models.norms import ACTIVATIONS
from bayesrule.models.registry import check_choice, register_model

__all__ = ["MLP", "mlp"]


class MLP(nn.Module):
    """Fully connected network: h_l = dropout(act(W_l h_{l-1} + b_l)), output = W h_L + b.

    Args:
        n_inputs: D, after flattening.
        n_outputs: K.
        hidden: Widths of the hidden layers; none gives a linear model.
        activation: ``tanh``, ``relu`` or ``gelu``.
        dropout: Probability of dropping a hidden unit.

    Raises:
        ConfigError: If `activation` is unknown.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        hidden: Sequence[int] = (100, 100),
        activation: str = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        widths = [n_inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in self.layers)
        self.head = nn.Linear(widths[-1], n_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer (B, H) for inputs x (B, ...)."""
        h = x.flatten(1)
        for layer, dropout in zip(self.layers, self.dropouts):
            h = dropout(ACTIVATIONS[self.activation](layer(h)))
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for inputs x (B, ...)."""
        return self.head(self.features(x))


@register_model("mlp")
def mlp(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    hidden: Sequence[int] = (100, 100),
    activation: str = "tanh",
    dropout: float = 0.0,
) -> nn.Module:
    """Build an `MLP` on flattened inputs, with PyTorch's default initialisation of `nn.Linear`."""
    return MLP(math.prod(input_shape), n_outputs, [int(h) for h in hidden], activation, dropout)
