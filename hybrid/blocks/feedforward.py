"""The feed-forward block of transformers, and stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import chunk_length, join


class FeedForward(nn.Module):
    """fc2(GELU(fc1(x))) on the last axis, with the exact (erf) GELU (Vaswani et al. 2017; Hendrycks & Gimpel 2016)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        if torch.is_grad_enabled():
            mixed: Tensor = self.fc2(F.gelu(self.fc1(x)))
            return mixed
        tokens = x.reshape(-1, x.shape[-1])
        chunks = tokens.split(chunk_length(len(tokens)))
        return join((self.fc2(F.gelu(self.fc1(chunk))) for chunk in chunks), len(tokens)).view(*x.shape[:-1], -1)


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole samples at `rate` in training, scaled to keep its mean (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)
