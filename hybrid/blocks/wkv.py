"""Bi-WKV, an average along a sequence whose weights decay with distance, at a cost that is linear in its tokens.

    y_t = sum_i W(t, i) v_i / sum_i W(t, i),   log W(t, i) = k_i - (|t - i| - 1) w / T,   log W(t, t) = k_t + u / T

for T tokens, key k, value v, and learned decay w and bonus u of each channel (Duan et al., Vision-RWKV, arXiv 2403.02308,
equation 3; Yang et al., Restore-RWKV, arXiv 2407.11087, equation 8, with u divided by T as in the published code).

Axis letters: B batch, C channels, T tokens, L tokens of a chunk, N chunks. Maps are (B, C, *spatial): each channel has
weights of its own, so that its tokens lie together and a chunk's weights are one matrix.

Within a chunk W is an (L, L) matrix, and the whole chunk is one product with it. What comes from other chunks decays from
one token to the next by one factor, so that a chunk passes on one sum and its scale: a running maximum of the logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_TOKENS = 64
"""Tokens of a chunk where the map allows: more cost more products, fewer cost more sums that are passed on."""
PIECE_VALUES = 2**17
"""Values of some channels that are worked on at a time in inference, so that what is made of them stays near the caches."""
LARGEST_DECAY = 12.0
"""Of the logarithms within a chunk: with it, what a float32 holds is enough on both sides of the maximum."""
LARGEST_SHIFT = 60.0
"""Of the logarithms of what comes from outside above those of the chunk, which then no longer count."""


def recurrent_wkv(key: Tensor, value: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """Re-WKV: Bi-WKV again and again with the same keys, each time along another axis (Restore-RWKV, section III-C).

    The first time row by row, the second column by column, and so on around through all axes.

    Args:
        key, value: (B, C, *spatial). Where no gradient needs the values, the result takes their place.
        decay, bonus: (recurrences, C).

    Returns:
        Like `value`.
    """
    for j, (w, u) in enumerate(zip(decay, bonus, strict=True)):
        axis = -1 - j % (key.ndim - 2)
        value = _wkv(key, value, w, u, axis, into=None if torch.is_grad_enabled() else value)
    return value


def bidirectional_wkv(key: Tensor, value: Tensor, decay: Tensor, bonus: Tensor, axis: int = -1) -> Tensor:
    """Bi-WKV along all tokens of a map, in float32 at least; with gradients to all four tensors.

    The tokens are in the order in which `axis` runs fastest, then the axis before it, and so on around: for a picture,
    axis -1 means row by row and -2 column by column.

    Args:
        key, value: (B, C, *spatial).
        decay, bonus: w and u, (C,), not divided by T; each of any sign.
        axis: One of the spatial axes, counted from the end.

    Returns:
        y like `value`.

    >>> k, v = torch.tensor([[[0.5, -1, 2, 0, 1]]]), torch.tensor([[[1, -2, 0.5, 3, -1]]])
    >>> bidirectional_wkv(k, v, torch.tensor([1.5]), torch.tensor([0.8]))
    tensor([[[0.4748, 0.4453, 0.4375, 0.3898, 0.2670]]])
    """
    if key.shape != value.shape or not 2 - key.ndim <= axis < 0:
        raise ValueError(f"keys {tuple(key.shape)} and values {tuple(value.shape)} are not maps of one size with axis {axis}")
    return _wkv(key, value, decay, bonus, axis, into=None)


def _wkv(key: Tensor, value: Tensor, decay: Tensor, bonus: Tensor, axis: int, into: Tensor | None) -> Tensor:
    """`bidirectional_wkv`; without gradients some channels at a time, and written to `into`, which may be `value`."""
    kind = torch.promote_types(key.dtype, torch.float32)
    tokens = prod(key.shape[2:])
    with torch.autocast(key.device.type, enabled=False):
        step, own = decay.to(kind) / tokens, bonus.to(kind) / tokens
        length = _chunk_length(key.shape[axis], tokens, float(step.detach().abs().max()))
        # (B, C, axes before, chunks, L, axes after)
        sizes = (*key.shape[:2], prod(key.shape[2:axis]), key.shape[axis] // length, length, prod(key.shape[axis:][1:]))
        keys, values = key.reshape(sizes), value.reshape(sizes)
        scale = keys.detach().amax(4, keepdim=True).to(kind)
        tables = _Tables.of(step, own, length, several=length < tokens)

        def parts(piece: slice) -> tuple[Tensor, Tensor]:
            """What is summed: weights times values, and weights."""
            weight = (keys[:, piece].to(kind) - scale[:, piece]).exp_()
            return weight * values[:, piece].to(kind), weight

        pieces = _pieces(key)
        once = parts(pieces[0]) if len(pieces) == 1 else None  # made again, rather than kept, where there are several
        outside = None
        if length < tokens:
            sums = [tables.at(piece).passed_on(once or parts(piece)) for piece in pieces]
            outside = _from_outside(torch.cat(sums, 1), scale, step * length)
        result = None if once else torch.empty_like(value) if into is None else into
        for piece in pieces:
            around = (None, None) if outside is None else (outside[0][:, piece], outside[1][:, piece])
            made = zip(once or parts(piece), around, strict=True)
            numerator, denominator = (tables.at(piece).within(part, other) for part, other in made)
            y = numerator.div_(denominator).view(value[:, piece].shape).to(value.dtype)
            if result is None:
                return y if into is None else into.copy_(y)
            result[:, piece] = y
    assert result is not None
    return result


@dataclass(frozen=True)
class _Tables:
    """Weights by place within a chunk: exp of logarithms of which a constant of the channel is taken.

    Attributes:
        within_chunk: (C, L, L), from token to token.
        out: (C, 2, L), of each token in what is passed on to the next chunk, and to the one before.
        back: (C, L, 2), of what came from the chunks before, and from those after, at each token.
    """

    within_chunk: Tensor
    out: Tensor
    back: Tensor

    @staticmethod
    def of(step: Tensor, own: Tensor, length: int, several: bool) -> _Tables:
        place = torch.arange(length, device=step.device, dtype=step.dtype)
        near = torch.cat([own[:, None], step[:, None] * (1 - place[1:])], 1)  # by distance
        ends = torch.stack([place.flip(0), place])  # distances to the chunk's last and first token
        away = -step[:, None, None] * ends
        top = (torch.cat([near, away.flatten(1)], 1) if several else near).detach().amax(1)[:, None]
        weight = (near - top).exp()
        # Row t holds the distances t ... 0 ... L - 1 - t: a window that slides along those from L - 1 down to 0 and up again.
        within = torch.cat([weight.flip(1), weight[:, 1:]], 1).unfold(1, length, 1).flip(1)
        return _Tables(within, away.exp(), (away.flip(1) - top[:, None]).exp().transpose(1, 2))

    def at(self, channels: slice) -> _Tables:
        """Those of some channels."""
        return _Tables(self.within_chunk[channels], self.out[channels], self.back[channels])

    def within(self, x: Tensor, outside: Tensor | None) -> Tensor:
        """Sums over the tokens of the same chunk, and what comes from the others, (B, C, before, chunks, 2, after)."""
        batch, channels, before, chunks, length, after = x.shape
        if after == 1:  # the matrix is symmetric; one product a channel
            total = torch.matmul(x.reshape(batch, channels, -1, length), self.within_chunk).flatten(0, 1)
            if outside is not None:
                total.baddbmm_(outside.reshape(len(total), -1, 2), self.back.transpose(1, 2).repeat(batch, 1, 1))
        else:
            total = torch.matmul(self.within_chunk[:, None, None], x).flatten(0, 3)
            if outside is not None:
                back = self.back[:, None].expand(batch, channels, before * chunks, length, 2)
                total.baddbmm_(back.reshape(-1, length, 2), outside.reshape(-1, 2, after))
        return total.view(x.shape)

    def passed_on(self, parts: tuple[Tensor, Tensor]) -> Tensor:
        """(B, C, 2, parts, N): the sums that each chunk passes on and back; chunks in the order of their tokens."""
        sums = []
        for x in parts:
            if x.shape[-1] == 1:
                sums.append(torch.matmul(x.reshape(*x.shape[:2], -1, x.shape[4]), self.out.transpose(1, 2)).transpose(2, 3))
            else:  # the axes after the one of the tokens vary slowest
                sums.append(torch.matmul(self.out[:, None, None], x).permute(0, 1, 4, 5, 2, 3).flatten(3))
        return torch.stack(sums, 3)


def _from_outside(sums: Tensor, scale: Tensor, step: Tensor) -> list[Tensor]:
    """What each chunk receives from those before and after it, in units of its scale: twice (B, C, before, chunks, 2, after)."""
    # Roundings add up along the sequence, and these are few.
    exact = torch.float32 if scale.device.type == "mps" else torch.float64
    places = (scale.shape[5], *scale.shape[2:4])
    sums = sums.to(exact)  # (B, C, directions, parts, N)
    peaks = scale.squeeze(4).permute(0, 1, 4, 2, 3).flatten(2).to(exact)
    both = torch.stack([sums[:, :, 0], sums[:, :, 1].flip(-1)], 2)
    carried, carried_scale = _carry(both, torch.stack([peaks, peaks.flip(-1)], 2), step.to(exact))
    scales = torch.stack([carried_scale[:, :, 0], carried_scale[:, :, 1].flip(-1)], 2)
    top = scales.amax(2, keepdim=True)
    shift = (top - peaks[:, :, None]).clamp_(max=LARGEST_SHIFT)
    factors = (scales - top + shift).exp_()[:, :, :, None]
    received = torch.stack([carried[:, :, 0], carried[:, :, 1].flip(-1)], 2) * factors
    return list(received.to(scale.dtype).unflatten(4, places).permute(0, 1, 3, 5, 6, 2, 4).unbind(2))


def _carry(sums: Tensor, scale: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """What the chunks before each chunk amount to at its first token.

    Args:
        sums: (B, C, directions, parts, N), what each chunk passes on, as multiples of exp(scale).
        scale: (B, C, directions, N).
        step: (C,), decay over one chunk.

    Returns:
        Such sums and their scale, the largest logarithm among what they sum up: -inf before the first chunk.
    """
    count = scale.shape[-1]
    step = step[:, None, None]
    far = step.detach() * torch.arange(count, device=scale.device, dtype=scale.dtype)
    running = (scale + far).cummax(-1).values - far
    # total_n = keep_n * total_(n-1) + gain_n, by doubling the number of chunks that a total spans.
    gain = sums * (scale - running).exp_()[:, :, :, None]
    keep = (running[..., :-1] - step - running[..., 1:]).exp()[:, :, :, None]  # from n to n + 1
    span = 1
    while span < count:
        gain = torch.cat([gain[..., :span], torch.addcmul(gain[..., span:], keep, gain[..., :-span])], -1)
        keep = keep[..., span:] * keep[..., :-span]
        span *= 2
    return F.pad(gain[..., :-1], (1, 0)), F.pad(running[..., :-1], (1, 0), value=-torch.inf)


def _pieces(key: Tensor) -> list[slice]:
    """Channels to be worked on together."""
    channels = key.shape[1]
    some = channels if torch.is_grad_enabled() else max(1, PIECE_VALUES * channels // key.numel())
    return [slice(first, first + some) for first in range(0, channels, some)]


def _chunk_length(line: int, tokens: int, step: float) -> int:
    """The divisor of a line that is nearest to the wanted number of tokens and not too long for the decay."""
    fits = [n for n in range(1, line + 1) if line % n == 0 and (n == 1 or step * n <= LARGEST_DECAY)]
    return min(fits, key=lambda n: (abs(log(n / CHUNK_TOKENS)), n))
