"""Multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from bayesrule.models.norms import ACTIVATIONS, BatchNormStyle
from bayesrule.models.registry import check_choice, register_model

__all__ = ["MLP", "mlp"]


class MLP(nn.Module):
    """Fully connected network: h_l = dropout(act(norm(W_l h_{l-1} + b_l))), output = W h_L + b.

    Args:
        n_inputs: D, after flattening.
        n_outputs: K.
        hidden: Widths of the hidden layers; none gives a linear model.
        activation: ``tanh``, ``relu``, ``gelu`` or ``sigmoid``.
        dropout: Probability of dropping a hidden unit.
        input_dropout: Probability of dropping an input.
        bias: Whether the layers have biases.
        norm: Batch normalisation of the hidden layers; None for none.
        head_norm: Batch normalisation of the outputs; None for none.

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
        *,
        input_dropout: float = 0.0,
        bias: bool = True,
        norm: BatchNormStyle | None = None,
        head_norm: BatchNormStyle | None = None,
    ) -> None:
        super().__init__()

        self.activation = check_choice("activation", activation, ACTIVATIONS)
        widths = [n_inputs, *hidden]
        # a layer only if wanted: MC dropout gives every dropout layer its probability
        self.input_dropout = nn.Dropout(input_dropout) if input_dropout else nn.Identity()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(
            nn.Identity() if norm is None else norm.after_linear(width) for width in hidden
        )
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in self.layers)
        head = nn.Linear(widths[-1], n_outputs, bias)
        self.head = nn.Sequential(head, head_norm.after_linear(n_outputs)) if head_norm else head

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer (B, H) for inputs x (B, ...)."""
        h = self.input_dropout(x.flatten(1))
        for layer, norm, dropout in zip(self.layers, self.norms, self.dropouts):
            h = dropout(ACTIVATIONS[self.activation](norm(layer(h))))
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for inputs x (B, ...)."""
        outputs: Tensor = self.head(self.features(x))
        return outputs


@register_model("mlp")
def mlp(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    hidden: Sequence[int] = (100, 100),
    activation: str = "tanh",
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    bias: bool = True,
    norm: str = "none",
    norm_affine: bool = True,
    norm_momentum: float = 0.1,
    norm_eps: float = 1e-5,
    norm_outputs: bool = False,
) -> nn.Module:
    """Build an `MLP` on flattened inputs, with PyTorch's default initialisation of `nn.Linear`."""
    check_choice("norm", norm, ("none", "batch"))
    style = BatchNormStyle(norm_affine, norm_momentum, norm_eps)
    return MLP(
        math.prod(input_shape),
        n_outputs,
        [int(h) for h in hidden],
        activation,
        dropout,
        input_dropout=input_dropout,
        bias=bias,
        norm=style if norm == "batch" else None,
        head_norm=style if norm_outputs else None,
    )
