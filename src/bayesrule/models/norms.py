"""Normalisation of convolutional networks: batch, group, filter response, or none.

Filter response normalisation with its thresholded linear unit (Singh & Krishnan, 2020,
arXiv:1911.09737, eqs. 1-3) normalises each channel of each item on its own::

    nu2 = mean_{h,w} x^2,      y = x / sqrt(nu2 + |eps|),      z = max(gamma y + beta, tau)

It couples no items (unlike batch normalisation) and no channels (unlike group normalisation), and
its TLU is the activation: no other follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesrule.curvature import LayerRule, register_rule
from bayesrule.errors import ConfigError
from bayesrule.models.registry import check_choice

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "BatchNormStyle",
    "ConvStyle",
    "FilterResponseNorm2d",
    "NormAct",
    "check_last_map",
    "group_count",
]

NORMS = ("batch", "group", "frn", "none")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}


class FilterResponseNorm2d(nn.Module):
    """Filter response normalisation and thresholded linear unit, z = max(gamma y + beta, tau).

    ``y = x / sqrt(mean_{h,w} x^2 + |eps|)``; Singh & Krishnan (2020), eqs. 1-3. Starts at
    gamma = 1, beta = tau = 0. Maps (B, C, H, W) to the same shape; any leading axes will do.

    Args:
        channels: C.
        eps: Guard against division by zero; 1e-6 in the paper.
        learn_eps: Learn eps, one per channel, as the paper advises for 1 x 1 maps (start 1e-4).
    """

    def __init__(self, channels: int, eps: float = 1e-6, learn_eps: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.tau = nn.Parameter(torch.zeros(channels, 1, 1))
        self.eps: Tensor | float
        self.eps = nn.Parameter(torch.full((channels, 1, 1), eps)) if learn_eps else eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W)."""
        nu2 = x.square().mean(dim=(-2, -1), keepdim=True)  # eq. 1
        eps = self.eps.abs() if isinstance(self.eps, Tensor) else self.eps
        y = x * torch.rsqrt(nu2 + eps)  # eq. 1
        return torch.maximum(self.gamma * y + self.beta, self.tau)  # eqs. 2 and 3

    def extra_repr(self) -> str:
        """Show the number of channels."""
        return f"{self.channels}"


class _FilterResponseNormRule(LayerRule):
    """Per-example gradients of `FilterResponseNorm2d`, in fewer passes than differentiating it."""

    parameters = ("gamma", "beta", "tau", "eps")

    def rows(
        self, module: nn.Module, names: Collection[str], kept: tuple[Tensor, ...], grad: Tensor
    ) -> dict[str, Tensor]:
        """Return the sums over pixels; a tie in the maximum gives half to each side."""
        assert isinstance(module, FilterResponseNorm2d)
        gamma, beta, tau = (p.detach() for p in (module.gamma, module.beta, module.tau))
        eps = module.eps.detach() if isinstance(module.eps, Tensor) else torch.tensor(module.eps)
        nu2 = kept[0].square().mean(dim=(-2, -1), keepdim=True)
        y = kept[0] * torch.rsqrt(nu2 + eps.abs())
        side = (gamma * y).add_(beta - tau).sign_()  # of z = max(...): 1, -1, or 0 for a tie
        above = torch.addcmul(grad, side, grad).mul_(0.5)
        all_BC = grad.sum((-2, -1), keepdim=True)
        above_BC = above.sum((-2, -1), keepdim=True)
        gamma_BC = y.mul_(above).sum((-2, -1), keepdim=True)
        rows = {"gamma": gamma_BC, "beta": above_BC, "tau": all_BC - above_BC}
        if "eps" in names:
            rows["eps"] = -0.5 * gamma * eps.sign() * gamma_BC / (nu2 + eps.abs())
        return {name: rows[name] for name in names}


register_rule(FilterResponseNorm2d, _FilterResponseNormRule())


def group_count(channels: int, groups: int) -> int:
    """Return the number of groups used for `channels` when `groups` were asked for.

    `groups` itself where it divides the channels; else the largest divisor of `channels` below
    it that leaves at least two channels a group (one channel a group is instance normalisation,
    which nobody asked for), and 1 where there is none.
    """
    if channels % groups == 0:
        return groups
    divisors = [g for g in range(1, groups) if channels % g == 0 and channels // g >= 2]
    return max(divisors, default=1)


def check_last_map(model: str, norm: str, input_shape: tuple[int, ...], one_pixel: int) -> None:
    """Refuse images that shrink to one pixel where that breaks the network.

    On a 1 x 1 map filter response normalisation returns x / |x|: only signs pass, no gradient.

    Args:
        model: The model's name, for the message.
        norm: ``batch``, ``group``, ``frn`` or ``none``.
        input_shape: (C, H, W).
        one_pixel: Largest side that the network reduces to one pixel.

    Raises:
        ConfigError: If the last map is 1 x 1 and `norm` is ``frn``.
    """
    side = max(input_shape[-2:])
    if norm == "frn" and side <= one_pixel:
        raise ConfigError(
            f"model={model} reduces images of side {side} to one pixel, where norm=frn passes only "
            f"signs and no gradient; use model.norm=group, another stem, or images larger than "
            f"{one_pixel} pixels"
        )


class NormAct(nn.Module):
    """A normalisation and the activation after it.

    With ``norm="frn"`` the TLU is the activation wherever the layer stands, also where the other
    norms have none (before a residual sum), as in Singh & Krishnan's ``FRN layer``.

    Args:
        norm: ``batch``, ``group``, ``frn`` or ``none``.
        channels: C.
        groups: Groups wanted of group normalisation; see `group_count`.
        activation: ``relu``, ``tanh``, ``gelu``, or None for no activation.

    Raises:
        ConfigError: If `norm` or `activation` is unknown.
    """

    def __init__(
        self, norm: str, channels: int, groups: int = 32, activation: str | None = "relu"
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        if activation is not None:
            check_choice("activation", activation, ACTIVATIONS)
        self.norm: nn.Module
        if norm == "batch":
            self.norm = nn.BatchNorm2d(channels)
        elif norm == "group":
            self.norm = nn.GroupNorm(group_count(channels, groups), channels)
        elif norm == "frn":
            self.norm = FilterResponseNorm2d(channels)
        else:
            self.norm = nn.Identity()
        self.activation = None if norm == "frn" else activation

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate x (B, C, H, W)."""
        y = self.norm(x)
        return y if self.activation is None else ACTIVATIONS[self.activation](y)

    def extra_repr(self) -> str:
        """Show the activation."""
        return f"activation={self.activation}"


@dataclass(frozen=True)
class BatchNormStyle:
    """How a network's batch normalisation is set up.

    Args:
        affine: Whether scale and shift are learnt.
        momentum: Weight of a batch in the running statistics.
        eps: Added to the variance.
    """

    affine: bool = True
    momentum: float = 0.1
    eps: float = 1e-5

    def after_linear(self, width: int) -> nn.BatchNorm1d:
        """Return the layer for (B, width)."""
        return nn.BatchNorm1d(width, self.eps, self.momentum, self.affine)

    def after_conv(self, channels: int) -> nn.BatchNorm2d:
        """Return the layer for (B, channels, H, W)."""
        return nn.BatchNorm2d(channels, self.eps, self.momentum, self.affine)


@dataclass(frozen=True)
class ConvStyle:
    """What all convolutions of a network have in common.

    Args:
        norm: ``batch``, ``group``, ``frn`` or ``none``.
        groups: Groups wanted of group normalisation.
        bias: Whether convolutions have a bias also under a norm; without one they always have.
    """

    norm: str
    groups: int = 32
    bias: bool = False

    def conv(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        """Return a convolution that keeps the map's size up to `stride`, He-initialised.

        Weights are N(0, 2 / (c_out kernel^2)) (He et al., 2015, eq. 14), biases 0.
        """
        bias = self.bias or self.norm == "none"
        conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=bias)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv

    def norm_act(self, channels: int, activation: str | None = "relu") -> NormAct:
        """Return the normalisation and activation for `channels`."""
        return NormAct(self.norm, channels, self.groups, activation)

    def damp_branch(self, conv: nn.Conv2d, n_blocks: int) -> nn.Conv2d:
        """Scale a residual branch's last convolution by n_blocks^(-1/2) where no norm does.

        Without normalisation each residual sum doubles the signal's variance, 2^54 for 110 layers;
        scaled, the whole network multiplies it by at most (1 + 1/n)^n < e.
        """
        if self.norm == "none":
            with torch.no_grad():
                conv.weight.mul_(n_blocks**-0.5)
        return conv
