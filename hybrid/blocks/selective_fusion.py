"""Blocks that hold several resolutions side by side: fusion by attention over them, dual attention, anti-aliased resizing.

S. W. Zamir, A. Arora, S. Khan, M. Hayat, F. S. Khan, M.-H. Yang, L. Shao, "Learning Enriched Features for Real Image
Restoration and Enhancement" (MIRNet), ECCV 2020, arXiv 2003.06792, section 3. The blur before decimation: R. Zhang, "Making
Convolutional Networks Shift-Invariant Again", ICML 2019, arXiv 1904.11486.

Axis letters: B batch, C channels, m maps that are fused. Grids are channels-last, (B, *spatial, C). No convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from hybrid.blocks.chunks import accumulate, modulate
from hybrid.blocks.convolution import STRIP_PIXELS, in_row_strips
from hybrid.blocks.layout import to_image, to_tokens

_CONVOLUTIONS: dict[int, Callable[..., _ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SelectiveKernelFusion(nn.Module):
    """Sum of m maps with weights of each channel, by a softmax over the maps from their common mean (SKFF, section 3.1).

    Args:
        dim: Channels C.
        maps: How many are fused.
    """

    def __init__(self, dim: int, maps: int, spatial_dims: int = 2) -> None:
        super().__init__()
        hidden = max(dim // 8, 4)
        self.squeeze = _convolution(dim, hidden, 1, spatial_dims)
        self.activation = nn.PReLU()
        self.expand = nn.ModuleList(_convolution(hidden, dim, 1, spatial_dims) for _ in range(maps))

    def forward(self, maps: Sequence[Tensor], kept: int) -> Tensor:
        """m maps (B, *spatial, C) to one. All but the one of number `kept` belong to the caller and may be overwritten."""
        # The mean of the sum is the sum of the means: the sum itself is never made.
        with torch.autocast(maps[0].device.type, enabled=False):
            hidden = _product(torch.stack([global_mean(x) for x in maps]).sum(0), self.squeeze)
            hidden = prelu(hidden, self.activation.weight)
            weights = torch.softmax(torch.stack([_product(hidden, each) for each in self.expand]), 0)  # (m, B, C)
        spread = [w.view(len(w), *[1] * (maps[0].ndim - 2), -1).to(maps[0].dtype) for w in weights]
        order = sorted(range(len(maps)), key=lambda i: i == kept)
        total = modulate(maps[order[0]], spread[order[0]]) if len(maps) > 1 else maps[0] * spread[0]
        for i in order[1:]:
            if torch.is_grad_enabled():
                total = torch.addcmul(total, maps[i], spread[i])
            else:
                total.addcmul_(maps[i], spread[i])
        return total


class DualAttentionUnit(nn.Module):
    """x + fuse([r * spatial gate, r * channel gate]) with r two convolutions of x (DAU, section 3.2).

    The spatial gate is a convolution of the largest and the mean channel; the channel gate comes from the mean over space.
    Neither gated map is made: the fusion is linear, so that the spatial gate multiplies its result, and the channel gate its
    weights.
    """

    def __init__(self, dim: int, reduction: int = 8, spatial_dims: int = 2) -> None:
        super().__init__()
        self.conv1, self.conv2 = (_convolution(dim, dim, 3, spatial_dims) for _ in range(2))
        self.spatial = _convolution(2, 1, 5, spatial_dims)
        self.squeeze = _convolution(dim, dim // reduction, 1, spatial_dims)
        self.expand = _convolution(dim // reduction, dim, 1, spatial_dims)
        self.fuse = _convolution(2 * dim, dim, 1, spatial_dims)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, *spatial, C) to the same; `slope` (1,) is that of the activation, which units share."""
        features = in_row_strips(lambda strip: self._convolved(strip, slope).to(x.dtype), x, halo=2, pixels=_pixels(x))
        with torch.autocast(x.device.type, enabled=False):
            hidden = F.relu(_product(global_mean(features), self.squeeze))
            channel_gate = torch.sigmoid(_product(hidden, self.expand))  # (B, C)
        summary = torch.stack([features.amax(-1), features.mean(-1)], -1)
        spatial_gate = torch.sigmoid(to_tokens(self.spatial(to_image(summary))))
        by_space, by_channel = self.fuse.weight.flatten(1).chunk(2, 1)
        by_channel = (by_channel * channel_gate[:, None]).mT  # (B, C, C)

        def fused(part: Tensor, gate: Tensor, skip: Tensor) -> Tensor:
            y = modulate(F.linear(part, by_space), gate)
            y = accumulate(y, torch.matmul(part.flatten(1, -2), by_channel.to(part.dtype)).view(part.shape))
            return accumulate(y, skip)

        if torch.is_grad_enabled():
            return fused(features, spatial_gate, x)
        rows = max(1, _pixels(x) // prod(x.shape[2:-1]))
        for first in range(0, x.shape[1], rows):
            strip = slice(first, first + rows)
            features[:, strip] = fused(features[:, strip], spatial_gate[:, strip], x[:, strip])
        return features

    def _convolved(self, x: Tensor, slope: Tensor) -> Tensor:
        return to_tokens(self.conv2(prelu(self.conv1(to_image(x)), slope)))


class ResidualDownsample(nn.Module):
    """Half the sides and twice the channels, beside a shortcut, both blurred before every other pixel is taken (section 3.3)."""

    def __init__(self, dim: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.mix = _convolution(dim, dim, 1, spatial_dims)
        self.conv = _convolution(dim, dim, 3, spatial_dims)
        self.activation1, self.activation2 = nn.PReLU(), nn.PReLU()
        self.project, self.shortcut = (_convolution(dim, 2 * dim, 1, spatial_dims) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, *spatial / 2, 2 C), where odd sides are rounded up."""
        return _in_strips(self._resized, x, up=1, down=2)

    def _resized(self, x: Tensor) -> Tensor:
        deep = prelu(to_image(F.linear(x, self.mix.weight.flatten(1))), self.activation1.weight)
        deep = to_tokens(prelu(self.conv(deep), self.activation2.weight))
        total = F.linear(blur_downsample(deep), self.project.weight.flatten(1))
        return accumulate(total, F.linear(blur_downsample(x), self.shortcut.weight.flatten(1)))


class ResidualUpsample(nn.Module):
    """Twice the sides and half the channels by a transposed convolution, beside an interpolated shortcut (section 3.3)."""

    def __init__(self, dim: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.mix = _convolution(dim, dim, 1, spatial_dims)
        self.conv = _TRANSPOSED[spatial_dims](dim, dim, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.activation1, self.activation2 = nn.PReLU(), nn.PReLU()
        self.project, self.shortcut = (_convolution(dim, dim // 2, 1, spatial_dims) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, *spatial * 2, C / 2)."""
        return _in_strips(self._resized, x, up=2, down=1)

    def _resized(self, x: Tensor) -> Tensor:
        deep = prelu(to_image(F.linear(x, self.mix.weight.flatten(1))), self.activation1.weight)
        deep = to_tokens(prelu(self.conv(deep), self.activation2.weight))
        total = F.linear(deep, self.project.weight.flatten(1))
        # The projection commutes with the interpolation, and is cheaper before it.
        small = to_image(F.linear(x, self.shortcut.weight.flatten(1)))
        large = F.interpolate(small, scale_factor=2.0, mode=_INTERPOLATIONS[x.ndim - 2], align_corners=False)
        return accumulate(total, to_tokens(large))


def blur_downsample(x: Tensor) -> Tensor:
    """Every other pixel along each axis of a grid after a blur with 1 2 1 over 4, mirrored at the edges without repeating them.

    (B, *spatial, C) with sides n of at least 2 to sides (n + 1) // 2.

    >>> blur_downsample(torch.tensor([0.0, 4.0, 8.0, 4.0]).view(1, 4, 1)).flatten().tolist()
    [2.0, 6.0]
    """
    axes, channels = x.ndim - 2, x.shape[-1]
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = reduce(lambda outer, axis: torch.tensordot(outer, line, 0), range(axes - 1), line)
    image = F.pad(to_image(x), [1, 1] * axes, mode="reflect")
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return to_tokens(convolve(image, kernel.expand(channels, 1, *kernel.shape), stride=2, groups=channels))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x where it is positive, else slope * x, of one slope (1,); in place where no gradient needs the old value."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.prelu(x, slope.to(x.dtype))
    return F.leaky_relu_(x, float(slope))


def global_mean(x: Tensor) -> Tensor:
    """(B, *spatial, C) to the means (B, C) over space, in float32 at least."""
    return x.flatten(1, -2).mean(1, dtype=torch.promote_types(x.dtype, torch.float32))


def _in_strips(step: Callable[[Tensor], Tensor], x: Tensor, up: int, down: int) -> Tensor:
    """Run a resizing `step` that sees two rows around a row over strips of a grid; sides become `up / down` times as long."""
    height, rows = x.shape[1], 2 * max(1, _pixels(x) // prod(x.shape[2:-1]) // 2)
    if height <= rows or torch.is_grad_enabled():
        return step(x)
    out: Tensor | None = None
    for top in range(0, height, rows):
        first, bottom = max(0, top - 2), min(height, top + rows)
        strip = step(x[:, first : bottom + 2])
        start, stop, skipped = (-(-row * up // down) for row in (top, bottom, top - first))
        out = strip.new_empty(len(x), -(-height * up // down), *strip.shape[2:]) if out is None else out
        out[:, start:stop] = strip[:, skipped : skipped + stop - start]
    assert out is not None
    return out


def _pixels(x: Tensor) -> int:
    """Of a strip, such that its maps stay near the caches."""
    return max(STRIP_PIXELS * 16 // x.shape[-1], 16 * prod(x.shape[2:-1]))


def _convolution(inputs: int, outputs: int, edge: int, spatial_dims: int) -> _ConvNd:
    return _CONVOLUTIONS[spatial_dims](inputs, outputs, edge, padding=edge // 2, bias=False)


def _product(x: Tensor, pointwise: nn.Module) -> Tensor:
    """A 1x1 convolution of (B, C)."""
    assert isinstance(pointwise.weight, Tensor)
    return F.linear(x, pointwise.weight.flatten(1))
