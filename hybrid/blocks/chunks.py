"""Bounding what lives beside a grid while no gradient has to be kept for it.

With gradients enabled these functions do the plain thing, so that a block reads the same in training and in inference.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK_TOKENS = 4096
"""Tokens that are worked on at a time in inference: few enough to stay near the cache, enough to fill the matrix units."""


def chunk_length(total: int, tokens_each: int = 1) -> int:
    """How many of `total` things of `tokens_each` tokens to take at a time."""
    return total if torch.is_grad_enabled() else max(1, CHUNK_TOKENS // tokens_each)


def join(chunks: Iterable[Tensor], length: int) -> Tensor:
    """Concatenate (n, ...) along the first axis to (`length`, ...); without a gradient each is put in its place as it comes."""
    if torch.is_grad_enabled():
        return torch.cat(list(chunks))
    whole, start = None, 0
    for chunk in chunks:
        if len(chunk) == length:
            return chunk
        whole = chunk.new_empty(length, *chunk.shape[1:]) if whole is None else whole
        whole[start : start + len(chunk)] = chunk
        start += len(chunk)
    assert whole is not None
    return whole


def accumulate(total: Tensor, term: Tensor) -> Tensor:
    """total + term, of one shape, in place where no gradient needs the old value. `total` must belong to the caller."""
    if torch.is_grad_enabled() or total.dtype != torch.result_type(total, term):
        return total + term
    return total.add_(term)


def modulate(total: Tensor, factor: Tensor) -> Tensor:
    """total * factor, of shapes that broadcast to `total`'s, in place where no gradient needs it. It must be the caller's."""
    if torch.is_grad_enabled() or total.dtype != torch.result_type(total, factor):
        return total * factor
    return total.mul_(factor)


def computed_type(x: Tensor) -> torch.dtype:
    """The type in which layers compute that are given `x`, of any shape: autocast's, or without autocast its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def as_computed(x: Tensor) -> Tensor:
    """`x`, of any shape, in the type in which layers compute, for several that would each cast it."""
    return x.to(computed_type(x))
