"""Attention between channels instead of pixels, and the gated feed-forward that goes with it, in any number of dimensions.

Axis letters: B batch, C channels, P pixels of one grid, h heads, d channels a head, M hidden channels. Grids are
channels-last, (B, *spatial, C).

S. W. Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022, arXiv 2111.09881.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate, as_computed, computed_type, modulate
from hybrid.blocks.convolution import added_over_row_strips, depthwise, in_row_strips

STRIP_PIXELS = 2**13
"""Pixels of a strip in inference: the hidden maps are many times as deep as the grid, and would be the peak of memory."""
STRIP_VALUES = 2**19
"""Values of one hidden map of a strip, in float32: near the cache, and below the size from which memory is mapped afresh."""
PIECE_PIXELS = 2**10
"""Pixels of a piece of a product of bfloat16."""
LEAST_PIECES = 4
"""Of fewer the product is made in float32, which costs little there: roundings would not even out."""
LEAST_ROWS = 16
"""Rows of a strip: each is computed with one row of context on either side."""
LANES = 16
"""Channels that vector instructions take at a time."""
LEAST_GROUP = 64
"""Hidden channels below which matrix products are slow."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_ALL = slice(None)


class BiasFreeLayerNorm(nn.Module):
    """x / sqrt(variance + 1e-5) * weight over the last axis: the mean is taken off in the variance alone (Restormer's code)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same."""
        # The whole norm and the mean times the inverse deviation, which it took off.
        normed, mean, inverse = torch.native_layer_norm(x, self.weight.shape, self.weight, None, self.eps)
        return accumulate(normed, mean * inverse * self.weight)


class TransposedCrossAttention(nn.Module):
    """Attention of the channels of one grid to the channels of another, whose maps over all pixels are the vectors compared.

    softmax(temperature * q k^T) v with q and k normalised along the pixels, each head a (d, d) matrix
    (Restormer, equation 1; with queries from another grid, Li et al., CRAFT, ICCV 2023).

    The pixels enter q k^T only by sums, so they are summed strip by strip; and since the attention is one matrix an image,
    it is multiplied into the last projection instead of being applied by itself.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.q, self.q_dwconv = _pair(dim, dim)
        self.kv, self.kv_dwconv = _pair(dim, 2 * dim)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Grids (B, H, W, C) to the same: what the channels of `queries` find in `keys`."""
        dim = queries.shape[-1]
        attention = channel_attention(self._pairs(queries, keys), self.temperature)
        matrix = _projection(self.project_out, attention)

        def apply(strip: Tensor) -> Tensor:
            return _project(_convolved(strip, self.kv, self.kv_dwconv, slice(dim, None)), matrix)

        return in_row_strips(apply, keys, halo=1, pixels=STRIP_PIXELS)

    def _pairs(self, queries: Tensor, keys: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for window, core, _ in _strips(queries, STRIP_PIXELS):
            yield (
                _convolved(queries[:, window], self.q, self.q_dwconv)[:, core],
                _convolved(keys[:, window], self.kv, self.kv_dwconv, slice(0, keys.shape[-1]))[:, core],
            )


class TransposedAttention(nn.Module):
    """Attention of the channels of a grid to each other, with its skip: x + project_out(attention(norm(x))) (MDTA, Restormer).

    Queries and keys are summed up strip by strip and forgotten; only the values stay until the attention is known.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = False, spatial_dims: int = 2) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv, self.qkv_dwconv = _pair(dim, 3 * dim, bias, spatial_dims)
        self.project_out = _convolution(spatial_dims)(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, *spatial, C) to the same. Without gradients the result takes the place of `x`, which must belong to the caller."""
        values: list[Tensor] = []
        attention = channel_attention(self._pairs(x, norm, values), self.temperature)
        matrix = _projection(self.project_out, attention)
        if torch.is_grad_enabled():
            return x + _project(torch.cat(values, 1), matrix, self.project_out.bias)
        for (_, _, place), strip in zip(_strips(x, _strip_pixels(x, _strip_values(x) // x.shape[-1])), values, strict=True):
            _add_projected(x[:, place], strip, matrix, self.project_out.bias)
        return x

    def _pairs(self, x: Tensor, norm: Callable[[Tensor], Tensor], values: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        dim = x.shape[-1]
        for window, core, _ in _strips(x, _strip_pixels(x, _strip_values(x) // dim)):
            normed = as_computed(norm(x[:, window]))
            q, k, v = (_convolved(normed, self.qkv, self.qkv_dwconv, slice(n * dim, (n + 1) * dim))[:, core] for n in range(3))
            values.append(v)
            yield q, k


class GatedFeedForward(nn.Module):
    """project_out(GELU(u) * w) with u, w the halves of DW(project_in(x)), DW a depthwise 3^n (GDFN, Restormer, section 3.2)."""

    halo = 1

    def __init__(self, dim: int, width: int, bias: bool = False, spatial_dims: int = 2) -> None:
        super().__init__()
        self.project_in, self.dwconv = _pair(dim, 2 * width, bias, spatial_dims)
        self.project_out = _convolution(spatial_dims)(width, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same."""
        x, weight, out = as_computed(x), self.project_out.weight.flatten(1), None
        for part in _groups(weight.shape[1], x):
            hidden = self._hidden(x, part)
            if out is None:
                out = F.linear(hidden, weight[:, part], self.project_out.bias)
            else:
                out.view(-1, out.shape[-1]).addmm_(hidden.flatten(0, -2), weight[:, part].to(hidden.dtype).mT)
        assert out is not None
        return out

    def _hidden(self, x: Tensor, part: slice) -> Tensor:
        """The channels `part` of the gated map. Halves are made one by one: those of one map would lie in short pieces."""
        width = self.project_out.weight.shape[1]
        gate = F.gelu(_convolved(x, self.project_in, self.dwconv, part))
        return modulate(gate, _convolved(x, self.project_in, self.dwconv, slice(width + part.start, width + part.stop)))


class TransposedBlock(nn.Module):
    """Attention between channels, then the gated feed-forward, each after a norm and with a skip (Restormer, figure 2).

    Args:
        dim: Channels C.
        num_heads: Heads h.
        width: Hidden channels M of the feed-forward.
        bias: Whether convolutions have biases.
        centred: Plain layer norm; otherwise `BiasFreeLayerNorm`.
    """

    def __init__(
        self, dim: int, num_heads: int, width: int, bias: bool = False, centred: bool = True, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        norm = nn.LayerNorm if centred else BiasFreeLayerNorm
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attention = TransposedAttention(dim, num_heads, bias, spatial_dims)
        self.feedforward = GatedFeedForward(dim, width, bias, spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same. Without gradients `x` is overwritten, and must belong to the caller."""
        x = self.attention(x, self.norm1)
        return added_over_row_strips(self._feed, x, halo=self.feedforward.halo, pixels=_strip_pixels(x, STRIP_PIXELS))

    def _feed(self, x: Tensor) -> Tensor:
        fed: Tensor = self.feedforward(self.norm2(x))
        return fed


def channel_attention(pairs: Iterable[tuple[Tensor, Tensor]], temperature: Tensor) -> Tensor:
    """softmax(temperature * q k^T) of q and k normalised along the pixels, summed up in float32 at least.

    Args:
        pairs: Queries and keys of one strip after another, each (B, *spatial, C).
        temperature: (h, 1, 1)

    Returns:
        (B, h, d, d)
    """
    heads = len(temperature)
    products: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    for strips in pairs:
        with torch.autocast(strips[0].device.type, enabled=False):
            q, k = (t.flatten(1, -2) for t in strips)  # (B, P, C)
            products = products + _inner(q, k)  # of all channels: faster than head by head
            squares = squares + torch.stack([_squares(t).sum(1) for t in (q, k)])  # (2, B, C)
    assert isinstance(products, Tensor) and isinstance(squares, Tensor)
    q_norm, k_norm = squares.sqrt().clamp_min(1e-12).unflatten(-1, (heads, -1))  # each (B, h, d)
    blocks = products.unflatten(1, (heads, -1)).unflatten(3, (heads, -1)).diagonal(dim1=1, dim2=3)
    cosines = blocks.permute(0, 3, 1, 2) / (q_norm[..., :, None] * k_norm[..., None, :])
    return torch.softmax(cosines * temperature, -1)


def _inner(q: Tensor, k: Tensor) -> Tensor:
    """q^T k, (B, C, C) in float32 at least, of (B, P, C) each.

    Of many pixels of bfloat16 in pieces, each of which is summed in float32 and rounded once. float16 would overflow.
    """
    pieces = q.shape[1] // PIECE_PIXELS
    if q.dtype != torch.bfloat16 or torch.is_grad_enabled() or pieces < LEAST_PIECES:
        return torch.matmul(_exact(q).transpose(1, 2), _exact(k))
    whole = pieces * PIECE_PIXELS
    rows, columns = (t[:, :whole].reshape(-1, PIECE_PIXELS, t.shape[-1]) for t in (q, k))
    products = torch.bmm(rows.mT, columns).view(-1, pieces, q.shape[-1], k.shape[-1]).sum(1, dtype=torch.float32)
    rest = (_exact(t[:, whole:]) for t in (q, k))
    return torch.baddbmm(products, next(rest).transpose(1, 2), next(rest)) if whole < q.shape[1] else products


def _squares(x: Tensor) -> Tensor:
    exact = _exact(x)
    return exact.square() if exact is x else modulate(exact, exact)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")


def _convolution(spatial_dims: int) -> type[Convolution]:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]


def _pair(inputs: int, outputs: int, bias: bool = False, spatial_dims: int = 2) -> tuple[Convolution, Convolution]:
    """A 1^n and a depthwise 3^n convolution; the modules hold the weights, `_convolved` computes."""
    kind = _convolution(spatial_dims)
    return kind(inputs, outputs, 1, bias=bias), kind(outputs, outputs, 3, padding=1, groups=outputs, bias=bias)


def _convolved(x: Tensor, pointwise: Convolution, deep: Convolution, part: slice = _ALL) -> Tensor:
    """A 1^n and a depthwise 3^n convolution, (B, *spatial, C) to the channels `part` of (B, *spatial, M)."""
    bias, offset = (None if convolution.bias is None else convolution.bias[part] for convolution in (pointwise, deep))
    return depthwise(F.linear(x, pointwise.weight[part].flatten(1), bias), deep.weight[part], offset)


def _projection(project_out: Convolution, attention: Tensor) -> Tensor:
    """The attention (B, h, d, d) and the projection after it as one matrix (B, C, C), for rows of values from the left."""
    heads = project_out.weight.flatten(1).unflatten(1, (attention.shape[1], -1))
    return torch.einsum("ohi,bhij->bhjo", heads.to(attention.dtype), attention).flatten(1, 2)


def _project(values: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, *spatial, C) times (B, C, C)."""
    result = torch.matmul(values.flatten(1, -2), matrix.to(values.dtype)).view(values.shape)
    return result if bias is None else accumulate(result, bias)


def _add_projected(x: Tensor, values: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
    """x += `_project`, in one step where the types allow."""
    if values.dtype == x.dtype:
        x.view(len(x), -1, x.shape[-1]).baddbmm_(values.flatten(1, -2), matrix)
        if bias is not None:
            x += bias
    else:
        x += _project(values, matrix, bias)


def _strip_values(x: Tensor) -> int:
    """Values of one hidden map of a strip, of as many bytes in any type."""
    return STRIP_VALUES * torch.float32.itemsize // computed_type(x).itemsize


def _strip_pixels(x: Tensor, pixels: int) -> int:
    """Pixels of a strip, or as many as make up the least number of rows."""
    return pixels if torch.is_grad_enabled() else max(pixels, LEAST_ROWS * prod(x.shape[2:-1]))


def _groups(width: int, x: Tensor) -> Iterator[slice]:
    """Hidden channels that are worked on at a time: the sum over them is taken by groups, so that each stays in the cache."""
    learning = torch.is_grad_enabled()
    step = width if learning else max(LEAST_GROUP, _strip_values(x) // x.shape[:-1].numel() // LANES * LANES)
    for start in range(0, width, step):
        yield slice(start, min(width, start + step))


def _strips(x: Tensor, pixels: int) -> Iterator[tuple[slice, slice, slice]]:
    """Rows of a strip with one row of context, the place of its own rows in these, and in the grid."""
    if torch.is_grad_enabled():
        yield _ALL, _ALL, _ALL
        return
    height = x.shape[1]
    rows = max(8, pixels // prod(x.shape[2:-1]))
    for top in range(0, height, rows):
        first, bottom = max(0, top - 1), min(height, top + rows)
        yield slice(first, bottom + 1), slice(top - first, bottom - first), slice(top, bottom)
