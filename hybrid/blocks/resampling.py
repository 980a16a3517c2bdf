"""Sub-pixel enlargement, padding to a multiple, and running a local tail in strips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks import exportable


def sub_pixel_stages(features: int, scale: int) -> nn.Sequential:
    """Convolution and pixel shuffle, by 2 as often as needed or once by 3 (Shi et al., ESPCN, CVPR 2016).

    (B, F, H, W) to (B, F, H * scale, W * scale). Keys: the convolutions stand at the even places 0, 2, 4.

    Raises:
        ValueError: `scale` is neither a power of two nor 3.
    """
    steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    if scale != 3 and (scale < 1 or 2 ** len(steps) != scale):
        raise ValueError(f"a sub-pixel tail enlarges by 3 or by a power of two, not by {scale}")
    layers: list[nn.Module] = []
    for step in steps:
        layers += [nn.Conv2d(features, step * step * features, 3, padding=1), nn.PixelShuffle(step)]
    return nn.Sequential(*layers)


def pad_to_multiple(x: Tensor, multiple: int, mode: Literal["reflect", "zeros"] = "reflect") -> Tensor:
    """Extend (B, C, *spatial) at the far end of each spatial axis to a multiple, by reflection without repeating the edge.

    With `mode` ``zeros`` by zeros. Reflects back and forth where the padding is longer than the axis; an axis of one element
    is repeated.

    >>> pad_to_multiple(torch.tensor([[[1.0, 2.0, 3.0]]]), 8)
    tensor([[[1., 2., 3., 2., 1., 2., 3., 2.]]])
    """
    if torch.compiler.is_exporting():
        return exportable.padded(x, multiple, mode)
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        target = -(-size // multiple) * multiple
        if target != size and mode == "zeros":
            x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, target - size])
        elif target != size:
            place = torch.arange(target, device=x.device) % max(1, 2 * (size - 1))
            x = x.index_select(axis, torch.minimum(place, (2 * (size - 1) - place).abs()).clamp_(max=size - 1))
    return x


def strip_rows(pixels: int, width: int, least: int = 16) -> int:
    """Rows of a strip of about so many pixels, at least `least`; with gradients, where there are no strips, just these."""
    return least if torch.is_grad_enabled() else max(least, pixels // width)


def in_strips(tail: Callable[..., Tensor], *images: Tensor, scale: int, halo: int, rows: int) -> Tensor:
    """Run a local `tail` over strips of `rows` rows, each with `halo` rows of context, and join the results.

    Equal to `tail(*images)` when `halo` covers the tail's receptive field; only one strip's activations are alive.
    Images (B, C, H, W) of one size to (B, C', H * scale, W * scale). For inference; with gradients the whole is run at once.
    """
    height = images[0].shape[2]
    if torch.is_grad_enabled() or height <= rows:
        return tail(*images)
    out: Tensor | None = None
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        first, last = max(0, top - halo), min(height, bottom + halo)
        strip = tail(*(image[:, :, first:last] for image in images))
        if out is None:
            out = strip.new_empty(strip.shape[0], strip.shape[1], height * scale, strip.shape[3])
        out[:, :, top * scale : bottom * scale] = strip[:, :, (top - first) * scale : (bottom - first) * scale]
    assert out is not None
    return out
