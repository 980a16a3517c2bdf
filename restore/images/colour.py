"""Luma and chroma of BT.601 in studio swing, and the enlargement of RGB by a network of luma.

Published networks of one channel enlarge Y alone; the eye sees colour coarsely, and bicubic serves for it.
Axis letters: B batch, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LUMA_ROUTE_VALUES = 8
"""Values alive per output pixel when luma, chroma and RGB meet, measured."""

_TO_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
_OFFSET = np.array([16.0, 128.0, 128.0]) / 255
_KERNEL_REACH = 3
"""Pixels beyond the picture that the bicubic kernel may touch, and one more."""


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] to Y in [16, 235] / 255 and Cb, Cr in [16, 240] / 255.

    >>> (255 * rgb_to_ycbcr(torch.ones(1, 3, 1, 1))).flatten().round().tolist()
    [235.0, 128.0, 128.0]
    """
    return _mix(rgb, _TO_YCBCR, _OFFSET)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycbcr`, (B, 3, H, W); not clamped."""
    inverse = np.linalg.inv(_TO_YCBCR)
    return _mix(ycbcr, inverse, -inverse @ _OFFSET)


def enlarge_bicubic(x: Tensor, factor: int) -> Tensor:
    """MATLAB's bicubic enlargement of (B, C, H, W) by a whole factor, as `restore.images.resize.imresize` in mode double.

    torch's kernel is the same, but leaves out what lies beyond the edge, where MATLAB reflects the picture: so the
    picture is extended and the result cut.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(-_KERNEL_REACH, size + _KERNEL_REACH, device=x.device) % (2 * size)
        x = x.index_select(axis, torch.minimum(place, 2 * size - 1 - place))
    y = F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True, align_corners=False)
    rim = _KERNEL_REACH * factor
    return y[..., rim:-rim, rim:-rim]


def enlarge_by_luma(network: Callable[[Tensor], Tensor], rgb: Tensor, factor: int) -> Tensor:
    """Enlarge (B, 3, H, W) RGB in [0, 1]: luma by the network, chroma by bicubic (Shi et al., ESPCN, CVPR 2016).

    Args:
        network: Takes Y (B, 1, H, W) in [16, 235] / 255 and returns it, `factor` times as large along each side.
    """
    ycbcr = rgb_to_ycbcr(rgb)
    luma = network(ycbcr[:, :1]).clamp(0, 1)
    return ycbcr_to_rgb(torch.cat((luma, enlarge_bicubic(ycbcr[:, 1:], factor)), dim=1))


def _mix(x: Tensor, matrix: np.ndarray, offset: np.ndarray) -> Tensor:
    weight, bias = (torch.from_numpy(a).to(x) for a in (matrix, offset))
    return torch.einsum("dc,bchw->bdhw", weight, x).add_(bias.view(1, -1, 1, 1))
