"""What published super-resolution networks of one lineage (EDSR, SwinIR, HAT) share beside their blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of DIV2K, subtracted from RGB inputs; not in the checkpoints."""


def picture_mean(channels: int) -> Tensor:
    """(1, C, 1, 1): what is subtracted from the input; zeros for anything but RGB."""
    return torch.tensor(RGB_MEAN if channels == 3 else (0.0,) * channels).view(1, -1, 1, 1)


def count_numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the highest number that follows `prefix` in the keys.

    >>> count_numbered({"layers.0.weight": torch.ones(1), "layers.11.weight": torch.ones(1)}, "layers.")
    12
    """
    numbers = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in state)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)
