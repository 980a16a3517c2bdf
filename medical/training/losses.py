"""Losses of segmentation networks, as recipes name them.

Logits are (B, outputs, *spatial). Targets are labels, (B, 1, *spatial), or the shares of background and structures,
(B, 1 + structures, *spatial), where samples were mixed; slices and volumes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.training.processes import together
from hybrid.training.recipes import Part
from medical.protocol import Protocol, Region

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits and a target of one size to a scalar."""


class LossPart(Part):
    """Dice loss plus cross entropy (Isensee et al., nnU-Net, Nature Methods 2021), in equal parts.

    Attributes:
        batch: Whether Dice is of all samples of a batch together, those of other processes too, not the mean of theirs.
        background: Whether Dice has the background among its classes; regions have none.
    """

    batch: bool = False
    background: bool = False

    def function(self, protocol: Protocol) -> AllScales:
        """The loss of the logits, or of those of all scales where a network is supervised deeply."""
        values = [structure.value for structure in protocol.structures]
        if protocol.regions:
            return AllScales(RegionLoss(protocol.regions, values, batch=self.batch))
        return AllScales(ClassLoss(values, batch=self.batch, background=self.background))


class ClassLoss:
    """Dice plus cross entropy of classes that exclude each other: the soft-max of the logits.

    Dice is in the form that is right for shares too and equal for labels (Wang et al., Dice Semimetric Losses, MICCAI
    2023); the common form would be least where the network claims more than the shares.

    Args:
        values: Labels of the structures, in the order of their channels, which follow the background's.
        batch, background: As in a recipe.
    """

    def __init__(self, values: Sequence[int], *, batch: bool, background: bool) -> None:
        from monai.losses import DiceLoss

        self.values, self.batch = values, batch
        self.dice = DiceLoss(softmax=True, include_background=background, batch=batch, soft_label=True)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        wanted = shares(target, self.values)
        judged = (together(logits), together(wanted)) if self.batch else (logits, wanted)
        loss: Tensor = self.dice(*judged) + F.cross_entropy(logits, wanted)
        return loss


class RegionLoss:
    """Dice plus binary cross entropy of regions that overlap: the sigmoid of each output by itself.

    Args:
        regions: With the labels of which they consist.
        values: Labels of the structures.
        batch: As in a recipe.
    """

    def __init__(self, regions: Sequence[Region], values: Sequence[int], *, batch: bool) -> None:
        from monai.losses import DiceLoss

        self.values, self.batch = values, batch
        ordered = sorted(regions, key=lambda region: region.channel)
        self.members = torch.tensor([[float(value in region.values) for value in (0, *values)] for region in ordered])
        self.dice = DiceLoss(sigmoid=True, batch=batch, soft_label=True)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        # A voxel's share of a region is the sum of its shares of the labels in it.
        wanted = torch.einsum("rv,bv...->br...", self.members.to(logits.device), shares(target, self.values))
        judged = (together(logits), together(wanted)) if self.batch else (logits, wanted)
        loss: Tensor = self.dice(*judged) + F.binary_cross_entropy_with_logits(logits, wanted)
        return loss


def shares(target: Tensor, values: Sequence[int]) -> Tensor:
    """Labels (B, 1, *spatial) as shares (B, 1 + structures, *spatial) float32, background first; shares as they are.

    >>> shares(torch.tensor([[[0, 4, 1]]]), [1, 4])
    tensor([[[1., 0., 0.],
             [0., 0., 1.],
             [0., 1., 0.]]])
    """
    if target.shape[1] > 1:
        return target
    return torch.cat([target == value for value in (0, *values)], 1).float()


class AllScales:
    """A loss of the logits of one scale or of several, weighted as nnU-Net does: halved from scale to scale, the last left out.

    Args:
        loss: Of one scale.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss.

        Args:
            logits: (B, outputs, *spatial), or a sequence of such, the full scale first.
            target: Of the full scale; brought to the others by nearest neighbours.
        """
        if isinstance(logits, Tensor):
            return self.loss(logits, target)
        total = torch.zeros((), device=target.device)
        for scale, weight in zip(logits, scale_weights(len(logits)), strict=True):
            if weight:
                total = total + weight * self.loss(scale, F.interpolate(target, scale.shape[2:], mode="nearest-exact"))
            else:  # a gradient of zero for its head: training on several processes waits for one of each
                total = total + 0 * scale.sum()
        return total


def scale_weights(scales: int) -> list[float]:
    """Of the losses of all scales, from the full one on; they sum up to 1.

    >>> scale_weights(1), scale_weights(3)
    ([1.0], [0.6666666666666666, 0.3333333333333333, 0.0])
    """
    halved = [0.5**i for i in range(max(1, scales - 1))]
    return [weight / sum(halved) for weight in halved] + [0.0] * (scales - len(halved))
