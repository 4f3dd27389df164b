"""What networks say about their own structure, for services that walk over them."""

from __future__ import annotations

from torch import nn

__all__ = ["ConvBlock"]


class ConvBlock(nn.Module):
    """A block of convolutions whose output is a feature map (B, C, H, W).

    Residual and dense blocks derive from it; `bayesrule.models.insert_dropout` puts a dropout
    after each of them.
    """
