"""GPT-2 (Radford et al., 2019) and its small character-level sibling.

    h_0 = W_e[token] + W_p[position],    h_l = block_l(h_{l-1}),    logits = norm(h_L) W_e^T

Pre-norm causal blocks, tanh-approximated GELU, learned positions, output tied to the embedding.
Weights start at N(0, 0.02^2), those that write into the residual stream (`proj`, `down`) at
N(0, 0.02^2 / (2 depth)), biases at 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesrule.errors import ConfigError
from bayesrule.models.attention import TransformerBlock
from bayesrule.models.registry import check_choice, register_model

__all__ = ["GPT", "GPT2_SIZES", "gpt2", "gpt_char", "load_hf_gpt2"]

GPT2_SIZES = {  # depth, heads, width
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "773M": (36, 20, 1280),
}


class TokenEmbedding(nn.Embedding):
    """The tied matrix W_e: token indices (..., T) to vectors, and vectors (..., D) to logits."""

    def forward(self, x: Tensor) -> Tensor:
        """Look up W_e[token] for indices; return x W_e^T for vectors."""
        return F.linear(x, self.weight) if x.is_floating_point() else super().forward(x)


class PositionEmbedding(nn.Embedding):
    """The positions W_p, added to vectors (..., T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Add W_p[0], ..., W_p[T - 1]."""
        return x + self.weight[: x.shape[-2]]


class GPT(nn.Module):
    """Decoder-only transformer, token indices (B, T) to logits (B, T, V).

    The output map has no weight of its own: it is the token embedding called on vectors, so that
    the tied matrix is one parameter under one name.

    Args:
        vocab: V.
        block_size: Longest sequence.
        depth: Number of blocks.
        heads: Attention heads; divide `width`.
        width: D.
        dropout: Probability of dropping an entry (embeddings, attention weights, branches).
        attention: ``math`` or ``fused``.

    Raises:
        ConfigError: If `heads` does not divide `width` or `attention` is unknown.
    """

    def __init__(
        self,
        vocab: int,
        block_size: int,
        *,
        depth: int,
        heads: int,
        width: int,
        dropout: float,
        attention: str,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.token = TokenEmbedding(vocab, width)
        self.position = PositionEmbedding(block_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    width,
                    heads,
                    causal=True,
                    gelu="tanh",
                    norm_eps=1e-5,
                    dropout=dropout,
                    attention=attention,
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-5)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                writes = name.endswith((".proj", ".down"))
                nn.init.normal_(module.weight, std=0.02 * (2 * depth) ** (-0.5 if writes else 0))
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def features(self, tokens: Tensor) -> Tensor:
        """Return the normalised last hidden states (B, T, D) for token indices (B, T).

        Raises:
            ConfigError: If the sequences are longer than the model's positions.
        """
        T = tokens.shape[-1]
        if self.block_size < T:
            raise ConfigError(
                f"sequences of {T} tokens do not fit model.block_size={self.block_size}; "
                "raise model.block_size or cut the data's blocks"
            )
        h_BTD = self.dropout(self.position(self.token(tokens)))
        return self.norm(self.blocks(h_BTD))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-token logits (B, T, V) for token indices (B, T)."""
        return self.token(self.features(tokens))


def load_hf_gpt2(model: GPT, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a Hugging Face ``GPT2LMHeadModel`` into `model`.

    Their projections are stored as (inputs, outputs) and are transposed here; a longer table of
    positions is cut to the model's block size.

    Args:
        model: The model to fill, of the same depth, width and vocabulary.
        state: ``GPT2LMHeadModel.state_dict()``, or a safetensors file of one.

    Raises:
        ConfigError: If an entry is missing or of another shape; the message names the first one.
    """
    prefix = "transformer." if any(key.startswith("transformer.") for key in state) else ""
    names = {"token": "wte", "position": "wpe", "norm": "ln_f"}
    parts = {
        "norm1": "ln_1",
        "attn.qkv": "attn.c_attn",
        "attn.proj": "attn.c_proj",
        "norm2": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    for index in range(len(model.blocks)):
        names |= {f"blocks.{index}.{ours}": f"h.{index}.{hf}" for ours, hf in parts.items()}
    for name, parameter in model.named_parameters():
        module_name, _, kind = name.rpartition(".")
        key = f"{prefix}{names[module_name]}.{kind}"
        if key not in state:
            raise ConfigError(f"the GPT-2 weights have no entry {key!r} (for {name!r})")
        value = state[key]
        if kind == "weight" and isinstance(model.get_submodule(module_name), nn.Linear):
            value = value.T
        if module_name == "position":
            value = value[: model.block_size]
        if value.shape != parameter.shape:
            raise ConfigError(
                f"the GPT-2 weights' entry {key!r} has shape {tuple(value.shape)}, "
                f"the model's {name!r} has {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(value)


def _block_size(model: str, wanted: int | None, input_shape: tuple[int, ...]) -> int:
    """Return the block size: `wanted`, or the data's length if None.

    Raises:
        ConfigError: If the data are not token sequences or are longer than `wanted`.
    """
    if len(input_shape) != 1:
        raise ConfigError(
            f"model={model} needs sequences of tokens, but the data have items of shape "
            f"{input_shape}. Choose text data, or a vision model."
        )
    if wanted is None:
        return input_shape[0]
    if wanted < input_shape[0]:
        raise ConfigError(
            f"model.block_size={wanted} is shorter than the data's {input_shape[0]} tokens; "
            "raise model.block_size or cut the data's blocks"
        )
    return wanted


@register_model("gpt_char")
def gpt_char(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    depth: int = 4,
    heads: int = 4,
    width: int = 128,
    block_size: int | None = None,
    dropout: float = 0.0,
    attention: str = "math",
) -> nn.Module:
    """Build a small `GPT` for characters; `block_size` None takes the data's length."""
    return GPT(
        n_outputs,
        _block_size("gpt_char", block_size, input_shape),
        depth=depth,
        heads=heads,
        width=width,
        dropout=dropout,
        attention=attention,
    )


@register_model("gpt2")
def gpt2(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    size: str = "124M",
    depth: int | None = None,
    heads: int | None = None,
    width: int | None = None,
    block_size: int | None = 1024,
    dropout: float = 0.0,
    attention: str = "fused",
) -> nn.Module:
    """Build a GPT-2 of a known size; `depth`, `heads` and `width` override that size's."""
    depth_0, heads_0, width_0 = GPT2_SIZES[check_choice("size", size, GPT2_SIZES)]
    return GPT(
        n_outputs,
        _block_size("gpt2", block_size, input_shape),
        depth=depth_0 if depth is None else depth,
        heads=heads_0 if heads is None else heads,
        width=width_0 if width is None else width,
        dropout=dropout,
        attention=attention,
    )
