"""Pre-norm transformer blocks, shared by the vision and the language models.

    h <- h + proj(attention(norm1(h))),      h <- h + down(gelu(up(norm2(h))))

Attention is softmax(Q K^T / sqrt(D / heads)) V (Vaswani et al., 2017, eq. 1), with a choice of
kernel: ``math`` writes it out, so derivatives of every order, forward mode and `vmap` work;
``fused`` calls PyTorch's fused kernel, which never stores the (T, T) scores but offers first
derivatives only (and is run item by item by `vmap` on the CPU, with a warning of PyTorch's). Both
give the same numbers to rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesrule.errors import ConfigError
from bayesrule.models.registry import check_choice

__all__ = ["ATTENTIONS", "SelfAttention", "TransformerBlock"]

ATTENTIONS = ("math", "fused")


class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, T, D) to (B, T, D).

    Args:
        width: D.
        heads: Number of heads; divides D.
        causal: Whether position t sees positions up to t only.
        dropout: Probability of dropping an attention weight, and an entry of the output.
        attention: ``math`` or ``fused``.

    Raises:
        ConfigError: If `heads` does not divide `width` or `attention` is unknown.
    """

    def __init__(
        self, width: int, heads: int, *, causal: bool, dropout: float, attention: str
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.heads={heads} does not divide model.width={width}")
        self.heads = heads
        self.causal = causal
        self.attention = check_choice("attention", attention, ATTENTIONS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.weight_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each sequence of x (B, T, D)."""
        B, T, D = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.heads, D // self.heads)
        q_BHTE, k_BHTE, v_BHTE = (part.transpose(1, 2) for part in qkv.unbind(2))
        if self.attention == "fused":
            p = self.weight_dropout.p if self.weight_dropout.training else 0.0
            out_BHTE = F.scaled_dot_product_attention(
                q_BHTE, k_BHTE, v_BHTE, dropout_p=p, is_causal=self.causal
            )
        else:
            scores_BHTT = q_BHTE @ k_BHTE.transpose(-2, -1) / math.sqrt(D // self.heads)
            if self.causal:
                past_TT = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
                scores_BHTT = scores_BHTT.masked_fill(~past_TT, -torch.inf)
            out_BHTE = self.weight_dropout(scores_BHTT.softmax(-1)) @ v_BHTE
        return self.dropout(self.proj(out_BHTE.transpose(1, 2).reshape(B, T, D)))


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each on a normalised input and added to it.

    Args:
        width: D.
        heads: Number of heads.
        mlp_ratio: Width of the perceptron's hidden layer over D.
        causal: Whether position t sees positions up to t only.
        gelu: ``none`` for the exact GELU, ``tanh`` for the approximation of GPT-2.
        norm_eps: Guard of the layer normalisations.
        dropout: Probability of dropping an attention weight or an entry of a branch's output.
        attention: ``math`` or ``fused``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: int = 4,
        causal: bool,
        gelu: str,
        norm_eps: float,
        dropout: float,
        attention: str,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, heads, causal=causal, dropout=dropout, attention=attention)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, mlp_ratio * width)
        self.gelu = nn.GELU(approximate=gelu)
        self.down = nn.Linear(mlp_ratio * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, T, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.dropout(self.down(self.gelu(self.up(self.norm2(x)))))
