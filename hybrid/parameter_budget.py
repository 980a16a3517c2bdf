"""Widths of a network from the number of parameters that it is to have, so that networks are compared at equal size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

RATIO = 2
"""Hidden channels of a feed-forward for each channel, before it takes up what the width leaves over."""


def parameters_of(network: nn.Module) -> int:
    """Trainable numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def widths_for(parameters: int, make: Callable[[int, int], nn.Module], step: int) -> tuple[int, int]:
    """The largest width whose network does not exceed a number of parameters, and the hidden width that fills up the rest.

    Args:
        parameters: The number aimed at.
        make: Makes the network of a width and a hidden width; it is called without memory for the parameters.
        step: The width is a multiple of this. The hidden width is any number from `RATIO` times the width.

    Raises:
        ValueError: The smallest network has more parameters.

    >>> widths_for(1000, lambda dim, hidden: nn.Sequential(nn.Linear(dim, hidden), nn.Linear(hidden, dim)), step=4)
    (12, 39)
    """

    def count(dim: int, hidden: int) -> int:
        with torch.device("meta"):
            return parameters_of(make(dim, hidden))

    least = count(step, RATIO * step)
    if least > parameters:
        raise ValueError(f"{parameters} parameters are too few: the smallest network has {least}")
    dim = step
    while count(dim + step, RATIO * (dim + step)) <= parameters:
        dim += step
    first, second = (count(dim, RATIO * dim + more) for more in (0, 1))
    return dim, RATIO * dim + (parameters - first) // (second - first)
