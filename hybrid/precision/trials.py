"""What a network is shown to find out whether a lower precision does, and how near its results must be.

Axes: (1, C, *spatial).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.precision.check import Agreement

LEAST_PSNR = 56.0
"""dB against float32. A result that is itself 30 dB from the truth then loses about 0.01 dB at most."""
LARGEST_DIFFERENCE = 0.05
"""Of a single value, as a share of the range."""
LEAST_EQUAL_LABELS = 0.998
"""Part of the voxels whose label must be the same."""


def sample(sides: Sequence[int], channels: int) -> Tensor:
    """(1, C, *sides) in [0, 1]: smooth shapes that differ between channels, edges, and a little noise. Always the same."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, channels, *(n // 8 + 2 for n in sides), generator=generator)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sides)]
    smooth = F.interpolate(coarse, tuple(sides), mode=mode, align_corners=True)
    edges = (smooth.mean(1, keepdim=True) > 0.5).float()
    noise = torch.randn(1, channels, *sides, generator=generator)
    return (0.6 * smooth + 0.3 * edges + 0.05 + 0.02 * noise).clamp(0, 1)


def near_pictures(exact: Tensor, other: Tensor, span: float) -> Agreement:
    """Whether a picture is near enough to another; `span` is the range of their values."""
    if not other.isfinite().all():
        return Agreement(False, "values that are not finite", {})
    difference = (other - exact).double() / span
    largest, error = float(difference.abs().max()), float(difference.square().mean())
    psnr = 99.0 if error < 1e-10 else -10 * torch.tensor(error).log10().item()
    near = psnr >= LEAST_PSNR and largest <= LARGEST_DIFFERENCE
    words = f"PSNR {psnr:.1f} dB, largest difference {largest:.4f} of the range"
    return Agreement(near, words, {"psnr": round(psnr, 2), "largest_difference": round(largest, 6)})


def near_labels(exact: Tensor, other: Tensor, *, regions: bool) -> Agreement:
    """Whether logits (1, classes, *spatial) give the same labels nearly everywhere.

    Args:
        exact, other: The logits.
        regions: Each channel is a region of its own, present where its logit exceeds 0.
    """
    if not other.isfinite().all():
        return Agreement(False, "values that are not finite", {})
    same = ((exact > 0) == (other > 0)).all(1) if regions else exact.argmax(1) == other.argmax(1)
    equal, largest = float(same.double().mean()), float((exact - other).abs().max())
    words = f"{100 * equal:.2f} % of the labels the same"
    figures = {"equal_labels": round(equal, 6), "largest_difference": round(largest, 6)}
    return Agreement(equal >= LEAST_EQUAL_LABELS, words, figures)
