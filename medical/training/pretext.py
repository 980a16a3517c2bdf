"""The pretext tasks of self-supervised pre-training: what is done to a crop, and what a network is to say of it.

Y. Tang et al., "Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022, arXiv 2111.14791.
Published are two views of each crop, rotated by quarter turns, with boxes cut out of them that are filled with noise and then
with another sample; to tell the turn, to tell which two views belong together, and to restore what was cut out. Ours, where
nothing is published or our loop asks for it: the other sample is one more random crop and not one of the batch; noise covers
the range of the crop where scans are z-scored; crops of one value alone are drawn again.
Axis letters: C channels; arrays are (C, i, j, k) in the protocol's orientation.
"""

from __future__ import annotations

from typing import Annotated, Literal
from typing import Protocol as Interface

import numpy as np
from pydantic import Field, model_validator

from hybrid.training.loop import Sample
from hybrid.training.recipes import Part
from medical.protocol import Protocol, Window
from medical.training.cases import cut

Axis = Literal[0, 1, 2]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
REDRAWN = 10
"""How often a crop of one value alone, such as air, is drawn again."""


class Numbered(Interface):
    """Scans (C, i, j, k), by their numbers from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> np.ndarray: ...


class Weights(Part):
    """How much each task counts; 1 each as published."""

    rotation: Weight = 1.0
    contrastive: Weight = 1.0
    reconstruction: Weight = 1.0


class PretextPart(Part):
    """The tasks. Defaults are as published.

    Attributes:
        plane: Two axes between which views are turned; the patch must be as long along both, and voxels should be. None
            for the last two.
        cut_out: Largest share of a view that boxes of one kind (noise, another sample) cover.
        box: Smallest and largest side of a box, in shares of the patch.
        embedding: Numbers by which views are told from one another.
        temperature: Of the contrastive loss.
        weights: Of the losses; or ``learned``, by the uncertainty of each (A. Kendall et al., CVPR 2018, in the form of
            L. Liebel and M. Koerner, arXiv 1805.06334), as published for CSWin UNet.
    """

    plane: tuple[Axis, Axis] | None = None
    cut_out: Share = 0.3
    box: tuple[Share, Share] = (0.05, 0.25)
    embedding: int = Field(512, gt=0)
    temperature: float = Field(0.5, gt=0)
    weights: Weights | Literal["learned"] = Weights()

    @model_validator(mode="after")
    def _sound(self) -> PretextPart:
        if self.plane is not None and self.plane[0] == self.plane[1]:
            raise ValueError(f"a plane has two axes, not {self.plane[0]} twice")
        if self.box[0] > self.box[1]:
            raise ValueError(f"boxes cannot have sides from {self.box[0]:g} to {self.box[1]:g}")
        return self

    def turning(self, protocol: Protocol) -> tuple[int, int]:
        """The plane of the turns in a patch.

        Raises:
            ValueError: The patch is not as long along both axes.
        """
        dims = protocol.spatial_dims
        first, second = self.plane or (dims - 2, dims - 1)
        if max(first, second) >= dims:
            raise ValueError(f"a patch of {dims} axes has no plane of the axes {first} and {second}")
        if protocol.patch[first] != protocol.patch[second]:
            raise ValueError(
                f"the patch is {protocol.patch[first]} and {protocol.patch[second]} voxels long along the axes {first} and "
                f"{second}, between which quarter turns need equal lengths; choose another pretext.plane or patch"
            )
        return first, second


class Views:
    """Pairs of views of random crops of random scans, and what they were made of: the samples of a pre-training.

    Args:
        scans: Values (C, i, j, k) of each.
        protocol: Of the network.
        pretext: The tasks.
    """

    def __init__(self, scans: Numbered, protocol: Protocol, pretext: PretextPart) -> None:
        self.scans, self.protocol, self.pretext = scans, protocol, pretext
        self.plane = pretext.turning(protocol)

    def __call__(self, rng: np.random.Generator) -> Sample:
        """Draw two views.

        Returns:
            (2, C, *patch) float32, the views; (2, C + 1, *patch) float32, what each would be with nothing cut out, and in the
            last channel, everywhere, the quarter turns that it was rotated by.
        """
        crop, other = self._crop(rng), self._crop(rng)
        views, wholes = [], []
        for turns in rng.integers(4, size=2):
            whole = turned(crop, int(turns), self.plane)
            views.append(self._drop(whole, other, rng))
            wholes.append(np.concatenate([whole, np.full((1, *self.protocol.window), turns, np.float32)]))
        shape = (2, -1, *self.protocol.patch)
        return np.stack(views).reshape(shape), np.stack(wholes).reshape(shape)

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        patch = self.protocol.window
        for _ in range(REDRAWN):
            scan = self.scans[int(rng.integers(len(self.scans)))]
            spare = [size - edge for size, edge in zip(scan.shape[1:], patch, strict=True)]
            start = rng.integers([min(0, n) for n in spare], [max(0, n) for n in spare], endpoint=True)
            crop = cut(scan, start, patch)
            if crop.min() < crop.max():
                break
        return crop

    def _drop(self, view: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Fill boxes with noise, then others from another crop."""
        low, high = (0.0, 1.0) if isinstance(self.protocol.intensity, Window) else (float(view.min()), float(view.max()))
        noise = rng.standard_normal(view.shape, np.float32)
        noise = low + (high - low) * (noise - noise.min()) / (noise.max() - noise.min())
        for filling in (noise, other):
            view = np.where(boxes(self.protocol.window, self.pretext, rng), filling, view)
        return view


def turned(values: np.ndarray, turns: int, plane: tuple[int, int]) -> np.ndarray:
    """(C, i, j, k) rotated by quarter turns, from the first axis of the plane to the second.

    >>> turned(np.array([[[[1, 2], [3, 4]]]]), 1, (1, 2))[0, 0]
    array([[2, 4],
           [1, 3]])
    """
    return np.rot90(values, turns, (1 + plane[0], 1 + plane[1]))


def boxes(shape: tuple[int, ...], pretext: PretextPart, rng: np.random.Generator) -> np.ndarray:
    """A mask of random boxes, as many as it takes to cover a random share, from 0 to `pretext.cut_out`, of its voxels."""
    mask = np.zeros(shape, bool)
    wanted, covered = rng.uniform(0, pretext.cut_out) * mask.size, 0
    while covered < wanted:
        sides = [max(1, round(size * rng.uniform(*pretext.box))) for size in shape]
        starts = [int(rng.integers(size - side + 1)) for size, side in zip(shape, sides, strict=True)]
        box = mask[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))]
        covered += box.size - int(np.count_nonzero(box))
        box[...] = True
    return mask
