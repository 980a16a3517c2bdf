"""What a training of face networks is scored by, without weights of other networks: pixels, gradients, frequencies.

Axis letters: B batch, C channels, H and W rows and columns. Pictures are (B, C, H, W) float in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GRADIENT_LEVELS = 3


def pixel_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(output, target)


def gradient_loss(output: Tensor, target: Tensor, levels: int = GRADIENT_LEVELS) -> Tensor:
    """Mean absolute error of differences between neighbours, over a pyramid of halved pictures; the mean of its levels.

    A blurred edge costs more here than in pixels, at whatever size it is seen.
    """
    difference, losses = output - target, []  # all steps are linear: those of the difference are the difference of both
    for level in range(levels):
        if level:
            difference = F.avg_pool2d(difference, 2)
        losses.append(difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean())
    return torch.stack(losses).mean()


def fourier_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the real and imaginary parts of the spectra, scaled so that white noise costs its pixels' RMS.

    Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring" (MIMO-UNet), ICCV 2021, equation 5.
    """
    with torch.autocast(output.device.type, enabled=False):
        return torch.view_as_real(torch.fft.rfft2((output - target).float(), norm="ortho")).abs().mean()
