"""Losses of networks with several outputs: the output nearest to the label counts, the others are left alone.

S. Liu, P. Qiao, Y. Dou, "Multi-Outputs Is All You Need For Deblur", arXiv 2208.13029, with the error of each backbone. Axis
letters: B batch, m outputs, C channels, H and W rows and columns. Outputs are (B, m, C, H, W), or (B, C, H, W) of one; labels
(B, C, H, W); both in [0, 1]. A loss is a scalar.

The nearest output is looked for without a gradient, so that a training keeps what one output needs and not what m do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Errors = Callable[[Tensor, Tensor], Tensor]
"""Of pictures and labels, both (B, C, H, W): one error a sample, (B,)."""

EPSILON = 1e-8
CHARBONNIER_SQUARE = 1e-6
EDGE_WEIGHT = 0.05
HINET_WEIGHT = 0.5
_DB = 10 / math.log(10)


@dataclass(frozen=True)
class Best:
    """The nearest output of each sample.

    Attributes:
        error: (B,), with a gradient to that output alone; for an average of two heads half of it to each.
        output: (B,) which it is.
    """

    error: Tensor
    output: Tensor


def best_of(errors: Errors, outputs: Tensor, label: Tensor) -> Best:
    """The smallest error over the outputs, sample by sample.

    Args:
        errors: Which error.
        outputs: (B, m, C, H, W), or (B, C, H, W) of one output.
        label: (B, C, H, W).

    Raises:
        ValueError: The shapes do not go together.
    """
    several = outputs if outputs.ndim == label.ndim + 1 else outputs[:, None]
    if label.ndim != 4 or several.shape[:1] + several.shape[2:] != label.shape:
        raise ValueError(f"a label of shape {tuple(label.shape)} does not go with outputs of shape {tuple(outputs.shape)}")
    if several.shape[1] == 1:
        return Best(errors(several[:, 0], label), label.new_zeros(len(label), dtype=torch.long))
    with torch.no_grad():
        nearest = torch.stack([errors(output, label) for output in several.unbind(1)], 1).argmin(1)
    chosen = several[torch.arange(len(label), device=label.device), nearest]
    return Best(errors(chosen, label), nearest)


def win_counts(nearest: Tensor, outputs: int) -> list[int]:
    """How often each output was nearest: one that never is has starved.

    >>> win_counts(torch.tensor([0, 2, 2]), 4)
    [1, 0, 2, 0]
    """
    return torch.bincount(nearest.flatten(), minlength=outputs).tolist()


# Errors of a sample ----------------------------------------------------------------------------------------------


def squared_error(pictures: Tensor, labels: Tensor) -> Tensor:
    """Mean of d^2 of each sample, (B,)."""
    return (pictures - labels).square().flatten(1).mean(1)


def absolute_error(pictures: Tensor, labels: Tensor) -> Tensor:
    """Mean of |d| of each sample, (B,)."""
    return (pictures - labels).abs().flatten(1).mean(1)


def charbonnier_error(pictures: Tensor, labels: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 1e-6), a smooth L1, of each sample, (B,). Lai et al., LapSRN, CVPR 2017, equation 4, with eps 1e-3."""
    return _charbonnier(pictures - labels)


def charbonnier_edge_error(pictures: Tensor, labels: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 1e-6), plus 0.05 times that of the Laplacians, of each sample, (B,). MPRNet, equations 2 to 4."""
    difference = pictures - labels
    # The Laplacian is linear: that of the difference is the difference of both.
    return _charbonnier(difference) + EDGE_WEIGHT * _charbonnier(laplacian(difference))


def laplacian(x: Tensor) -> Tensor:
    """x - G(up(G(x))) of (B, C, H, W), what a step of a Laplacian pyramid loses, by MPRNet's operators.

    G blurs by (0.05, 0.25, 0.4, 0.25, 0.05) along both axes with repeated edges; up keeps every other row and column, times 4,
    and puts zeros elsewhere.
    """
    blurred = _blurred(x)
    raised = torch.zeros_like(blurred)
    raised[:, :, ::2, ::2] = 4 * blurred[:, :, ::2, ::2]
    return x - _blurred(raised)


def _blurred(x: Tensor) -> Tensor:
    line = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05], dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, line.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    return F.conv2d(x, line.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)


def _charbonnier(difference: Tensor) -> Tensor:
    return torch.sqrt(difference.square() + CHARBONNIER_SQUARE).flatten(1).mean(1)


# Losses ----------------------------------------------------------------------------------------------------------


def psnr_loss(outputs: Tensor, label: Tensor) -> Tensor:
    """Negative PSNR in dB of the nearest outputs, 10 log10(MSE + 1e-8), mean over samples: NAFNet's, and HINet's of a stage."""
    return _DB * torch.log(best_of(squared_error, outputs, label).error + EPSILON).mean()


def l1_loss(outputs: Tensor, label: Tensor) -> Tensor:
    """Mean absolute error of the nearest outputs: Restormer's."""
    return best_of(absolute_error, outputs, label).error.mean()


def charbonnier_loss(outputs: Tensor, label: Tensor) -> Tensor:
    """Charbonnier error of the nearest outputs, mean over samples."""
    return best_of(charbonnier_error, outputs, label).error.mean()


def charbonnier_edge_loss(outputs: Tensor, label: Tensor) -> Tensor:
    """Charbonnier and edge error of the outputs whose sum of both is smallest: MPRNet's of a stage."""
    return best_of(charbonnier_edge_error, outputs, label).error.mean()


def hinet_loss(stages: Sequence[Tensor], label: Tensor) -> Tensor:
    """Half the PSNR loss of each stage, with a nearest output of its own."""
    return HINET_WEIGHT * torch.stack([psnr_loss(stage, label) for stage in stages]).sum()


def mprnet_loss(stages: Sequence[Tensor], label: Tensor) -> Tensor:
    """The sum of the stages' Charbonnier and edge losses, with a nearest output each."""
    return torch.stack([charbonnier_edge_loss(stage, label) for stage in stages]).sum()
