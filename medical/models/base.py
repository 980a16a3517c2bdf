"""What every segmentation network shares: a card of its facts, any input size, float32 in and out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid import families
from hybrid.precision.check import Agreement, Trial
from hybrid.precision.trials import near_labels, sample
from medical.protocol import Protocol

TRIAL_SIDE = 64
"""Largest edge of the window that tells whether a lower precision does, in voxels."""


@dataclass(frozen=True)
class SegmentationCard:
    """Facts of one configured network that the code around it needs, so that no code asks for a model's name.

    Attributes:
        family: Registry name of the architecture, such as ``swin_unetr``.
        title: Its name in print.
        paper: Citation of the paper that defines it.
        code_licence: Licence of the reference implementation ("unknown" is a value).
        spatial_dims: 2 for slices, 3 for volumes.
        in_channels: Channels that it takes.
        out_channels: Logits a voxel that it gives.
        multiple: The network fills each side up to a multiple of this many voxels.
        activation_floats: Peak of live float32 values per input voxel during a forward pass, measured; without the logits.
        low_precision: Compute types, besides float32, in which its results are known to hold.
        task: What its logits are of: ``segmentation``, each voxel; ``classification``, the scan as a whole.
    """

    family: str
    title: str
    paper: str
    code_licence: str
    spatial_dims: int
    in_channels: int
    out_channels: int
    multiple: int
    activation_floats: int
    low_precision: tuple[str, ...] = ("bf16",)
    task: Literal["segmentation", "classification"] = "segmentation"


class SegmentationNetwork(families.Network):
    """Base of networks from a scan to logits.

    A subclass gives `card` and `segment`, which may ask for sides that are multiples of `card.multiple`.

    Attributes:
        card: Its facts.
        protocol: What it asks of a scan and what its outputs mean; None where nobody said.
        deep_supervision: Whether `forward` returns the logits of all scales, the full one first; for training.
        not_exported: Why there is no graph of it (`medical.exporting`); None where there is.
    """

    card: SegmentationCard
    protocol: Protocol | None = None
    deep_supervision: bool = False
    not_exported: str | None = None

    def segment(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) with sides that are multiples of `card.multiple` to (B, classes, *spatial)."""
        raise NotImplementedError

    def trial(self) -> Trial | None:
        """A window of shapes; None of networks that give no labels a voxel. See `hybrid.precision.check`."""
        if self.card.task != "segmentation":
            return None
        sides = self.protocol.patch if self.protocol is not None else (TRIAL_SIDE,) * self.card.spatial_dims
        x = 4 * sample(tuple(min(n, TRIAL_SIDE) for n in sides), self.card.in_channels) - 2  # deviations from the mean
        regions = self.protocol is not None and bool(self.protocol.regions)

        def agree(exact: Tensor, other: Tensor) -> Agreement:
            return near_labels(exact, other, regions=regions)

        return Trial(x.to(next(self.parameters()).device), self, agree)

    def options(self) -> dict[str, Any]:
        """What `FAMILY.build` needs beside the weights to make this network again; kept in files that this package writes."""
        return {}

    def padded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sides to which an input of these sides is filled up."""
        return tuple(-(-n // self.card.multiple) * self.card.multiple for n in shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of scans of any size, which are filled up with zeros at their far ends for the network.

        Args:
            x: (B, C, *spatial) float32, scaled as the network's protocol says.

        Returns:
            (B, classes, *spatial) float32.

        Raises:
            ValueError: The input is no batch of scans, or has another number of channels than the network.
        """
        shape = self._check(x)
        missing = [m - n for m, n in zip(self.padded(shape), shape, strict=True)]
        if any(missing):
            x = F.pad(x, [n for m in reversed(missing) for n in (0, m)])
        with self._computing(x):
            y = self.segment(x)
        return y[(slice(None), slice(None), *map(slice, shape))].float()

    def _check(self, x: Tensor) -> tuple[int, ...]:
        """The sides of a batch of scans that suits the network."""
        card = self.card
        if x.ndim != card.spatial_dims + 2 or x.shape[1] != card.in_channels or 0 in x.shape:
            axes = ", ".join("DHW"[-card.spatial_dims :])
            raise ValueError(f"{card.title} takes (B, {card.in_channels}, {axes}), not {tuple(x.shape)}")
        return tuple(x.shape[2:])

    def _computing(self, x: Tensor) -> AbstractContextManager[Any]:
        """Computes in `precision`; in float32 a surrounding autocast, as in training, stays in force."""
        low = self.precision != "float32"
        return torch.autocast(x.device.type, dtype=families.COMPUTE_TYPES[self.precision]) if low else nullcontext()


class ClassificationNetwork(SegmentationNetwork):
    """Base of networks from a scan to the logits of what it shows as a whole; its card's `task` says so.

    They are kept, named and loaded as the others are. Where a label map is wanted they are refused by their task.
    A subclass gives `card` and `classify`.
    """

    def classify(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) of any size to (B, classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) float32 of scans (B, C, *spatial) float32 of any size, which are not filled up.

        Raises:
            ValueError: The input is no batch of scans, or has another number of channels than the network.
        """
        self._check(x)
        with self._computing(x):
            return self.classify(x).float()


Family = families.Family[SegmentationNetwork]
"""A family of segmentation networks."""
