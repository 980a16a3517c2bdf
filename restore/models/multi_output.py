"""Several pictures of one: the heads of a network's last convolution, their pairwise averages, and what they are given with.

S. Liu, P. Qiao, Y. Dou, "Multi-Outputs Is All You Need For Deblur", arXiv 2208.13029. A blurred picture has many sharp ones;
only the last convolution grows, and averages of two heads are further outputs at no parameter. Axis letters: B batch, n heads,
m outputs, C image channels, H and W rows and columns.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.blocks.chunks import accumulate, modulate
from hybrid.cards import ModelCard
from restore.models.base import RestorationNetwork

PAPER = "Liu et al., Multi-Outputs Is All You Need For Deblur, arXiv 2208.13029"


@dataclass(frozen=True)
class Heads:
    """The outputs that n heads of C channels make, in the order of the paper's code.

    With averages: (0, 0), (1, 0), (1, 1), (2, 0) and so on, n (n + 1) / 2 in all, head i itself at i (i + 3) / 2. One head is
    the ordinary network: its picture has no axis of outputs.

    >>> Heads(3, 3).pairs
    ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))
    >>> Heads(3, 3).pure, Heads(3, 3, combined=False).pure
    ((0, 2, 5), (0, 1, 2))

    Attributes:
        count: Heads n.
        channels: Image channels C.
        combined: Whether averages of two heads are outputs too.
        chosen: The outputs that are made, by their places among all; None for all.
    """

    count: int
    channels: int
    combined: bool = True
    chosen: tuple[int, ...] | None = None

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The two heads of each output, equal ones for a head itself."""
        every = tuple((i, j) for i in range(self.count) for j in range(i + 1) if self.combined or i == j)
        return every if self.chosen is None else tuple(every[place] for place in self.chosen)

    @property
    def outputs(self) -> int:
        """How many outputs there are, m."""
        return len(self.pairs)

    @property
    def pure(self) -> tuple[int, ...]:
        """Places of the outputs that are one head."""
        return tuple(place for place, (i, j) in enumerate(self.pairs) if i == j)

    def mix(self, y: Tensor, image: Tensor | None = None) -> Tensor:
        """Heads (B, n C, H, W), plus the image (B, C, H, W) where there is one, to all outputs as channels, (B, m C, H, W).

        `y` belongs to the caller and may be overwritten.
        """
        heads = y.unflatten(1, (self.count, self.channels))
        if image is not None:
            heads = accumulate(heads, image[:, None])
        if self.outputs > self.count or self.chosen is not None:
            heads = torch.stack([heads[:, i] if i == j else (heads[:, i] + heads[:, j]) / 2 for i, j in self.pairs], 1)
        flat: Tensor = heads.flatten(1, 2)
        return flat

    def apart(self, y: Tensor) -> Tensor:
        """Outputs as channels (B, m C, H, W) to (B, m, C, H, W); (B, C, H, W) of one head stay."""
        return y if self.count == 1 else y.unflatten(1, (self.outputs, self.channels))

    def on_card(self, card: ModelCard) -> ModelCard:
        """The card of the backbone as that of the network with these heads."""
        if self.count == 1:
            return card
        return replace(
            card,
            title=f"MH{card.title}",
            paper=f"{PAPER}; backbone: {card.paper}",
            code_licence="unknown",
            activation_floats=card.activation_floats + (self.outputs + self.count) * self.channels,
            tasks=("deblurring",),
            outputs=self.outputs,
            pure_outputs=self.pure,
        )


class SeveralOutputs(RestorationNetwork):
    """Base of networks that may have several outputs. A subclass sets `heads`, and `card` by `Heads.on_card`."""

    heads: Heads

    def choose(self, outputs: Sequence[int] | None) -> None:
        """From now on make these outputs alone, in this order; None makes all. The axis of outputs stays.

        Raises:
            ValueError: There is no such output, or the network has only one.
        """
        every = replace(self.heads, chosen=None)
        if self.heads.count == 1:
            raise ValueError(f"{self.card.title} has one output")
        if outputs is not None and (not outputs or not set(outputs) <= set(range(every.outputs))):
            raise ValueError(f"{self.card.title} has the outputs 0 to {every.outputs - 1}, not {list(outputs)}")
        self.heads = replace(every, chosen=None if outputs is None else tuple(outputs))
        self.card = replace(self.card, outputs=self.heads.outputs, pure_outputs=self.heads.pure)


def training_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """The option `tlc_train_size`: an edge, or rows and columns, of the training crops; 0 and None stand for none.

    Whole numbers of NumPy are taken too; text, truth values and fractions are not.

    Raises:
        ValueError: It is neither.

    >>> training_size(256), training_size([24, 40]), training_size(0)
    ((256, 256), (24, 40), None)
    """
    if size is None:
        return None
    try:
        given: tuple[Any, ...] = tuple(size) if isinstance(size, Iterable) and not isinstance(size, bytes) else (size,) * 2
        rows, columns = (-1 if isinstance(side, bool) else operator.index(side) for side in given)
    except (TypeError, ValueError):  # a side that is no whole number, or not two of them
        rows = columns = -1
    if rows == columns == 0 and not isinstance(size, Iterable):
        return None
    if min(rows, columns) < 1:
        raise ValueError(f"a training crop has an edge, or rows and columns, of whole pixels, not {size!r}")
    return rows, columns


def count_heads(rows: int, channels: int) -> int:
    """Heads of a last convolution by the rows of its weight; 0 where they are no multiple of the image's channels.

    >>> count_heads(12, 3), count_heads(3, 3), count_heads(4, 3)
    (4, 1, 0)
    """
    return 0 if rows % channels else rows // channels


class SupervisedAttention(nn.Module):
    """Pictures in the middle of a network, which are trained like its result, and features gated by what they show.

    Zamir et al., MPRNet, CVPR 2021, section 3.3 (SAM); with heads there is a picture for each.

    Args:
        dim: Channels of the features.
        heads: The pictures.
        kernel: Edge of the convolutions. bias: Whether they have biases.
    """

    def __init__(self, dim: int, heads: Heads, kernel: int, bias: bool) -> None:
        super().__init__()
        pictures = heads.count * heads.channels
        self.heads = heads
        self.conv1 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, bias=bias)
        self.conv2 = nn.Conv2d(dim, pictures, kernel, padding=kernel // 2, bias=bias)
        self.conv3 = nn.Conv2d(pictures, dim, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D, H, W) and the image (B, C, H, W) to features (B, D, H, W) and pictures (B, n C, H, W), one a head."""
        pictures = accumulate(self.conv2(x), image.repeat(1, self.heads.count, 1, 1))
        gate = torch.sigmoid(self.conv3(pictures))
        return accumulate(modulate(self.conv1(x), gate), x), pictures
