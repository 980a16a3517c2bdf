"""Attention between channels instead of pixels, and the gated feed-forward that goes with it.

Axis letters: B batch, H and W rows and columns, C channels, h heads, d channels a head, M hidden channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.convolution import in_row_strips
from hybrid.blocks.layout import to_image, to_tokens

STRIP_PIXELS = 2**13
"""Pixels of a strip in inference: the hidden maps are many times as deep as the grid, and would be the peak of memory."""


class TransposedCrossAttention(nn.Module):
    """Attention of the channels of one grid to the channels of another, whose maps over all pixels are the vectors compared.

    softmax(temperature * q k^T) v with q and k normalised along the pixels, each head a (d, d) matrix
    (Zamir et al., Restormer, CVPR 2022, equation 1; with queries from another grid, Li et al., CRAFT, ICCV 2023).

    The pixels enter q k^T only by sums, so they are summed strip by strip; and since the attention is one matrix an image,
    it is multiplied into the last projection instead of being applied by itself.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.q = nn.Conv2d(dim, dim, 1, bias=False)
        self.q_dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.kv = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.kv_dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Grids (B, H, W, C) to the same: what the channels of `queries` find in `keys`."""
        dim = self.q.weight.shape[0]
        attention = self._attention(queries, keys)  # (B, h, d, d)
        heads = self.project_out.weight.view(dim, self.num_heads, -1)
        matrix = torch.einsum("ohi,bhij->bohj", heads.to(attention.dtype), attention).flatten(2)  # (B, C, C)

        def apply(strip: Tensor) -> Tensor:
            values = _convolved(strip, self.kv.weight[dim:], self.kv_dwconv.weight[dim:])
            return torch.matmul(values.flatten(1, 2), matrix.transpose(1, 2).to(values.dtype)).view(values.shape)

        return in_row_strips(apply, keys, halo=1, pixels=STRIP_PIXELS)

    def _attention(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The weights (B, h, d, d), in float32 at least: sums over a whole picture are large."""
        dim, height = self.q.weight.shape[0], queries.shape[1]
        rows = height if torch.is_grad_enabled() else max(8, STRIP_PIXELS // queries.shape[2])
        products: Tensor | float = 0.0
        squares: Tensor | float = 0.0
        for top in range(0, height, rows):
            first, bottom = max(0, top - 1), min(height, top + rows)
            core = slice(top - first, bottom - first)
            q = _convolved(queries[:, first : bottom + 1], self.q.weight, self.q_dwconv.weight)[:, core]
            k = _convolved(keys[:, first : bottom + 1], self.kv.weight[:dim], self.kv_dwconv.weight[:dim])[:, core]
            with torch.autocast(q.device.type, enabled=False):
                q, k = (t.to(torch.promote_types(t.dtype, torch.float32)).flatten(1, 2) for t in (q, k))  # (B, pixels, C)
                products = products + torch.matmul(q.transpose(1, 2), k)  # of all channels: faster than head by head
                squares = squares + torch.stack([q.square().sum(1), k.square().sum(1)])  # (2, B, C)
        assert isinstance(products, Tensor) and isinstance(squares, Tensor)
        q_norm, k_norm = squares.sqrt().clamp_min(1e-12).unflatten(-1, (self.num_heads, -1))  # each (B, h, d)
        blocks = products.unflatten(1, (self.num_heads, -1)).unflatten(3, (self.num_heads, -1)).diagonal(dim1=1, dim2=3)
        cosines = blocks.permute(0, 3, 1, 2) / (q_norm[..., :, None] * k_norm[..., None, :])
        return torch.softmax(cosines * self.temperature, -1)


class GatedFeedForward(nn.Module):
    """project_out(GELU(u) * w) with u, w the halves of DW(project_in(x)), DW a depthwise 3x3 (Restormer, section 3.2)."""

    halo = 1

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(dim, 2 * width, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.project_out = nn.Conv2d(width, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        u, w = _convolved(x, self.project_in.weight, self.dwconv.weight).chunk(2, -1)
        return F.linear(F.gelu(u) * w, self.project_out.weight.flatten(1))


def _convolved(x: Tensor, pointwise: Tensor, depthwise: Tensor) -> Tensor:
    """A 1x1 and a depthwise 3x3 convolution without biases, (B, H, W, C) to (B, H, W, M)."""
    image = to_image(F.linear(x, pointwise.flatten(1)))
    return to_tokens(F.conv2d(image, depthwise, padding=1, groups=len(depthwise)))
