"""The Swin transformer block, on grids of any dimension."""

from __future__ import annotations

from torch import Tensor, nn

from hybrid.blocks.attention import WindowAttention
from hybrid.blocks.chunks import accumulate
from hybrid.blocks.feedforward import FeedForward, StochasticDepth


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward (Liu et al., "Swin Transformer", ICCV 2021, equation 3).

    Args:
        dim: Channels C.
        window: Window edge along each spatial axis.
        num_heads: Heads that share C.
        mlp_width: Hidden channels of the feed-forward.
        shift: Roll of the grid along each axis, in pixels; zeros for a plain block.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        drop_path: Rate of stochastic depth, in training.
        any_size: Take grids of any size; see WindowAttention.
    """

    def __init__(
        self,
        dim: int,
        window: tuple[int, ...],
        num_heads: int,
        mlp_width: int,
        shift: tuple[int, ...],
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        any_size: bool = False,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, window, num_heads, qkv_bias, any_size)
        self.mlp = FeedForward(dim, mlp_width)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same; unless it is of `any_size`, sides must be multiples of the window."""
        total = accumulate(self.drop_path(self.attention(self.norm1(x), self.shift)), x)
        return accumulate(self.drop_path(self.mlp(self.norm2(total))), total)

    def on_windows(self, windows: Tensor, bias: Tensor) -> Tensor:
        """The block, without stochastic depth, for windows (M, N, C) that share a bias (1, h, N, N).

        All of it is done window by window, so a caller that needs no grid between can take a few windows at a time.
        """
        total = accumulate(self.attention.attend_windows(self.norm1(windows), bias), windows)
        return accumulate(self.mlp(self.norm2(total)), total)
