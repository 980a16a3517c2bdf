"""Blocks of RWKV for pictures and volumes: token shift by one depthwise kernel, mixing along space, mixing of channels.

Z. Yang et al., "Restore-RWKV: Efficient and Effective Medical Image Restoration with RWKV", IEEE Journal of Biomedical and
Health Informatics 30(1), 2026, arXiv 2407.11087, section III. Axis letters: B batch, C channels, M hidden channels, T tokens.
Grids are channels-last, (B, *spatial, C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.convolution import depthwise, in_row_strips
from hybrid.blocks.wkv import recurrent_wkv

CHUNK_VALUES = 2**19
"""Hidden values that are worked on at a time in inference."""
KEY_CHANNELS = 32
"""Channels at least whose keys are made at a time in inference: no whole map of keys is ever alive where maps are large."""
KEY_VALUES = 2**17
"""Keys that are made at a time where so many channels have fewer: small maps are not worth many steps."""


class OmniShift(nn.Module):
    """a0 x + a1 DW1(x) + a2 DW3(x) + a3 DW5(x), of depthwise kernels with edges 1, 3 and 5: one kernel of edge 5 (equation 9).

    The one kernel is made at each call, inside the graph: it is small, and nothing has to be kept up to date.
    """

    halo = 2

    def __init__(self, dim: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(4))
        self.point, self.small, self.large = (_depthwise_kernel(dim, edge, spatial_dims) for edge in (1, 3, 5))

    def kernel(self) -> Tensor:
        """(C, 1, 5, ...)"""
        axes = self.large.ndim - 2
        of_input, of_point, of_small, of_large = self.alpha.unbind()
        centre = F.pad(of_input + of_point * self.point, [2] * 2 * axes)
        return centre + F.pad(of_small * self.small, [1] * 2 * axes) + of_large * self.large

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same."""
        return depthwise(x, self.kernel(), None)


class SpatialMix(nn.Module):
    """(sigmoid(R) * ReWKV(K, V)) W_o, where R, K and V are linear in the shifted tokens (equations 4 to 6)."""

    def __init__(self, dim: int, recurrences: int = 2, spatial_dims: int = 2) -> None:
        super().__init__()
        self.shift = OmniShift(dim, spatial_dims)
        self.decay, self.bonus = (nn.Parameter(torch.randn(recurrences, dim)) for _ in range(2))
        self.key, self.value, self.receptance, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, shifted: Tensor, scale: Tensor) -> Tensor:
        """(B, *spatial, C), which belongs to the caller and may be overwritten, to the same, times `scale` (C,)."""
        tokens = shifted.flatten(1, -2)  # (B, T, C)
        mixed = self._mixed(tokens, shifted.shape[1:-1]).flatten(2)  # (B, C, T)
        weight = self.output.weight * scale[:, None]

        def gated(part: Tensor, first: int) -> Tensor:
            gate = torch.matmul(self.receptance.weight, part.mT).sigmoid_()
            return torch.matmul((gate * mixed[..., first : first + part.shape[1]]).mT, weight.mT)

        return _in_chunks(gated, tokens, tokens.shape[-1]).view(shifted.shape)

    def _mixed(self, tokens: Tensor, spatial: torch.Size) -> Tensor:
        """(B, T, C) to (B, C, *spatial): channels first, as the products with the weights give them for nothing."""
        dim, across = tokens.shape[-1], tokens.mT
        values: Tensor = torch.matmul(self.value.weight, across).unflatten(2, spatial)
        if torch.is_grad_enabled():
            keys = torch.matmul(self.key.weight, across).unflatten(2, spatial)
            return recurrent_wkv(keys, values, self.decay, self.bonus)
        step = max(KEY_CHANNELS, KEY_VALUES // tokens[..., 0].numel())
        for group in (slice(first, first + step) for first in range(0, dim, step)):
            keys = torch.matmul(self.key.weight[group], across).unflatten(2, spatial)
            recurrent_wkv(keys, values[:, group], self.decay[:, group], self.bonus[:, group])
        return values


class ChannelMix(nn.Module):
    """sigmoid(R) * (relu(K)^2 W_v), where R and K are linear in the shifted tokens (equation 7, without its last product)."""

    def __init__(self, dim: int, width: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.shift = OmniShift(dim, spatial_dims)
        self.key = nn.Linear(dim, width, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(width, dim, bias=False)

    def forward(self, shifted: Tensor, scale: Tensor) -> Tensor:
        """(B, *spatial, C), which belongs to the caller and may be overwritten, to the same, times `scale` (C,)."""
        weight = self.value.weight * scale[:, None]

        def mixed(part: Tensor, _: int) -> Tensor:
            hidden = self.key(part).relu_()
            hidden = hidden.square() if torch.is_grad_enabled() else hidden.square_()
            return F.linear(hidden, weight).mul_(self.receptance(part).sigmoid_())

        return _in_chunks(mixed, shifted.flatten(1, -2), len(self.key.weight)).view(shifted.shape)


class RWKVBlock(nn.Module):
    """x + gamma1 * SpatialMix(LN(x)), then x + gamma2 * ChannelMix(LN(x)); the scales are folded into the last products."""

    def __init__(self, dim: int, width: int, recurrences: int = 2, spatial_dims: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.spatial = SpatialMix(dim, recurrences, spatial_dims)
        self.channel = ChannelMix(dim, width, spatial_dims)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C), which belongs to the caller and may be overwritten, to the same."""
        for norm, mix, gamma in ((self.norm1, self.spatial, self.gamma1), (self.norm2, self.channel, self.gamma2)):
            x = accumulate(x, mix(shifted(norm, mix.shift, x), gamma))
        return x


def shifted(norm: nn.LayerNorm, shift: OmniShift, x: Tensor) -> Tensor:
    """shift(norm(x)) of a grid (B, *spatial, C), as a new one."""
    return in_row_strips(lambda strip: shift(norm(strip)), x, shift.halo)


def _in_chunks(step: Callable[[Tensor, int], Tensor], tokens: Tensor, width: int) -> Tensor:
    """Run `step(part, first token)` on tokens (B, T, C), in inference part after part and in their place."""
    if torch.is_grad_enabled():
        return step(tokens, 0)
    size = max(64, CHUNK_VALUES // (width * len(tokens)))
    for first in range(0, tokens.shape[1], size):
        part = tokens[:, first : first + size]
        part.copy_(step(part, first))
    return tokens


def _depthwise_kernel(dim: int, edge: int, spatial_dims: int) -> nn.Parameter:
    """(C, 1, edge, ...), drawn as torch draws its convolutions'."""
    bound = edge ** (-spatial_dims / 2)
    return nn.Parameter(torch.empty(dim, 1, *[edge] * spatial_dims).uniform_(-bound, bound))
