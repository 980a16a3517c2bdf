"""What published super-resolution networks of one lineage (EDSR, SwinIR, HAT) share beside their blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hybrid.errors import WeightsError
from hybrid.weights.keys import count_numbered

__all__ = ["RGB_MEAN", "count_numbered", "picture_mean", "refuse_absolute_positions"]

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of DIV2K, subtracted from RGB inputs; not in the checkpoints."""


def picture_mean(channels: int) -> Tensor:
    """(1, C, 1, 1): what is subtracted from the input; zeros for anything but RGB."""
    return torch.tensor(RGB_MEAN if channels == 3 else (0.0,) * channels).view(1, -1, 1, 1)


def refuse_absolute_positions(state: Mapping[str, Tensor], title: str) -> None:
    """Refuse a checkpoint whose position embedding is absolute: the network would work at one input size only.

    Raises:
        WeightsError: It has one.
    """
    if "absolute_pos_embed" in state:
        raise WeightsError(
            f"This {title} was built with an absolute position embedding, which ties it to one input size.",
            hint="Use a checkpoint without `absolute_pos_embed`; all published ones are.",
        )
