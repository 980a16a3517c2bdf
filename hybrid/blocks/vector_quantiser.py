"""Vector quantisation: each vector of a grid is replaced by the nearest of a dictionary's entries.

A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017, arXiv 1711.00937.
Axis letters: B batch, C channels, N vectors of the whole batch, K entries. Grids are channels-last, of any number of axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import CHUNK_TOKENS


@dataclass(frozen=True, eq=False)
class Quantised:
    """What the dictionary makes of a grid.

    Attributes:
        values: (B, *spatial, C), the entries. With gradients they are passed on to the vectors as if nothing had been replaced.
        indices: (B, *spatial) int64, the places of the entries.
        loss: What draws vectors to their entries and, more gently, entries to their vectors; None in inference.
    """

    values: Tensor
    indices: Tensor
    loss: Tensor | None


class VectorQuantiser(nn.Module):
    """A dictionary of K vectors, learnt beside the network that uses it.

    Args:
        entries: K. dim: C.
        pull: Weight of the loss that moves the entries; the one that moves the vectors has weight 1. In the paper's loss it is
            the other way round; this is the form of the first public VQGANs, in which dictionaries of faces were learnt.
    """

    def __init__(self, entries: int, dim: int, pull: float = 0.25) -> None:
        super().__init__()
        self.pull = pull
        self.embedding = nn.Embedding(entries, dim)
        nn.init.uniform_(self.embedding.weight, -1 / entries, 1 / entries)

    def forward(self, x: Tensor) -> Quantised:
        """Quantise (B, *spatial, C)."""
        indices = self.nearest(x)
        values = self.entries(indices)
        if not torch.is_grad_enabled():
            return Quantised(values, indices, None)
        loss = F.mse_loss(x, values.detach()) + self.pull * F.mse_loss(values, x.detach())
        return Quantised(x + (values - x).detach(), indices, loss)

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """Indices (B, *spatial) of the entries nearest to the vectors (B, *spatial, C), the first of several equally near.

        A vector's own square is the same for all entries: |e|^2 - 2 x.e is compared, a matrix product a few thousand vectors at
        a time, always in float32, because another entry is another texture.
        """
        with torch.autocast(x.device.type, enabled=False):
            table = self.embedding.weight.float()
            squares, chunks = table.square().sum(1), x.float().flatten(0, -2).split(CHUNK_TOKENS)
            found = [torch.addmm(squares, chunk, table.t(), alpha=-2).argmin(1) for chunk in chunks]
        return torch.cat(found).view(x.shape[:-1])

    def entries(self, indices: Tensor) -> Tensor:
        """The entries (..., C) at `indices` (...)."""
        values: Tensor = self.embedding(indices)
        return values


def perplexity(indices: Tensor, entries: int) -> Tensor:
    """How many entries are in use: exp of the entropy of their frequencies, from 1 to `entries`.

    >>> perplexity(torch.tensor([0, 1, 1, 0]), 8).round().item()
    2.0
    """
    share = torch.bincount(indices.flatten(), minlength=entries).float() / indices.numel()
    return torch.exp(-(share * torch.log(share + 1e-10)).sum())
