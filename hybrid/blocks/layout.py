"""Grids as lists of tokens and as images: two readings of the same channels-last memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def to_image(tokens: Tensor) -> Tensor:
    """(B, *spatial, C) tokens as a (B, C, *spatial) image in channels-last memory, without a copy."""
    return tokens.movedim(-1, 1)


def to_tokens(image: Tensor) -> Tensor:
    """(B, C, *spatial) in channels-last memory as (B, *spatial, C) tokens, without a copy."""
    return image.movedim(1, -1).contiguous()


def channels_last(network: nn.Module) -> None:
    """Lay the kernels of a network for pictures out in channels-last memory, as its grids are."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
