"""Vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929).

An image is a sequence of patches::

    h_0 = [class; E patch_1; ...; E patch_T] + position
    h_l = block_l(h_{l-1})
    output = W norm(h_L)[class] + b
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesrule.errors import ConfigError
from bayesrule.models.attention import TransformerBlock
from bayesrule.models.registry import check_choice, image_shape, register_model

__all__ = ["ViT", "vit_base", "vit_tiny"]

POOLS = ("cls", "mean")


class PatchSequence(nn.Module):
    """Puts the class token, if there is one, before the patches, and adds the positions.

    Args:
        n_patches: T.
        width: D.
        use_token: Whether there is a class token.
    """

    def __init__(self, n_patches: int, width: int, use_token: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if use_token else None
        self.position = nn.Parameter(torch.zeros(1, n_patches + use_token, width))

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Map patches (B, T, D) to (B, T or 1 + T, D)."""
        if self.token is not None:
            h_BTD = torch.cat([self.token.expand(len(h_BTD), -1, -1), h_BTD], dim=1)
        return h_BTD + self.position


class ViT(nn.Module):
    """Vision transformer on square patches.

    Linear weights and positions are N(0, 0.02^2) cut at two standard deviations, biases and the
    class token zero.

    Args:
        input_shape: (C, H, W).
        n_outputs: K.
        patch_size: Side of a patch; divides H and W.
        depth: Number of blocks.
        heads: Attention heads; divide `width`.
        width: D.
        mlp_ratio: Hidden width of the blocks' perceptrons over D.
        pool: ``cls`` reads the class token's output, ``mean`` averages over patches (no token).
        dropout: Probability of dropping an entry (embeddings, attention weights, branches).
        attention: ``math`` or ``fused``.

    Raises:
        ConfigError: If patches do not tile the image or heads do not divide the width.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_outputs: int,
        *,
        patch_size: int,
        depth: int,
        heads: int,
        width: int,
        mlp_ratio: int,
        pool: str,
        dropout: float,
        attention: str,
    ) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        if height % patch_size or breadth % patch_size:
            raise ConfigError(
                f"model.patch_size={patch_size} does not divide the image size {height} x {breadth}"
            )
        n_patches = (height // patch_size) * (breadth // patch_size)
        self.patch = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.pool = check_choice("pool", pool, POOLS)
        self.sequence = PatchSequence(n_patches, width, use_token=pool == "cls")
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    width,
                    heads,
                    mlp_ratio=mlp_ratio,
                    causal=False,
                    gelu="none",
                    norm_eps=1e-6,
                    dropout=dropout,
                    attention=attention,
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, n_outputs)
        nn.init.trunc_normal_(self.sequence.position, std=0.02, a=-0.04, b=0.04)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """Return the normalised class token or mean patch (B, D) for images x (B, C, H, W)."""
        h_BTD = self.sequence(self.patch(x).flatten(2).transpose(1, 2))
        h_BTD = self.norm(self.blocks(self.dropout(h_BTD)))
        return h_BTD[:, 0] if self.pool == "cls" else h_BTD.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K) for images x (B, C, H, W)."""
        return self.head(self.features(x))


@register_model("vit_tiny")
def vit_tiny(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    patch_size: int = 4,
    depth: int = 12,
    heads: int = 3,
    width: int = 192,
    mlp_ratio: int = 4,
    pool: str = "cls",
    dropout: float = 0.0,
    attention: str = "math",
) -> nn.Module:
    """Build a `ViT` of the widths of DeiT-Ti (Touvron et al., 2021), with patches for 32 x 32."""
    return ViT(
        image_shape("vit_tiny", input_shape),
        n_outputs,
        patch_size=patch_size,
        depth=depth,
        heads=heads,
        width=width,
        mlp_ratio=mlp_ratio,
        pool=pool,
        dropout=dropout,
        attention=attention,
    )


@register_model("vit_base")
def vit_base(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    patch_size: int = 16,
    depth: int = 12,
    heads: int = 12,
    width: int = 768,
    mlp_ratio: int = 4,
    pool: str = "cls",
    dropout: float = 0.0,
    attention: str = "fused",
) -> nn.Module:
    """Build the ViT-B/16 (Dosovitskiy et al., 2021, Table 1)."""
    return ViT(
        image_shape("vit_base", input_shape),
        n_outputs,
        patch_size=patch_size,
        depth=depth,
        heads=heads,
        width=width,
        mlp_ratio=mlp_ratio,
        pool=pool,
        dropout=dropout,
        attention=attention,
    )
