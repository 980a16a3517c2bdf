"""An encoder under the heads of self-supervised pre-training, and their losses.

Y. Tang et al., CVPR 2022, arXiv 2111.14791: all heads read the last grid of the encoder; the first token says how the view
was turned, the second tells it from others (T. Chen et al., SimCLR, ICML 2020, arXiv 2002.05709), and a small decoder without
skips restores what was cut out. They are published for the Swin transformer; over other encoders, of other strides or with fewer
stages, they are the same heads with as many steps up as the encoder has steps down, which is a choice of this package.
Axis letters: B pairs of views, C channels, E numbers of an embedding.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.normalisation import instance_norm
from hybrid.training.processes import together
from medical.models.unet_blocks import CONVOLUTIONS, SLOPE
from medical.training.pretext import PretextPart

UPSAMPLING = {2: "bilinear", 3: "trilinear"}
TURNS = 4


class Answers(NamedTuple):
    """What the network says of pairs of views.

    Attributes:
        rotation: (B, 2, 4) logits of the quarter turns.
        embedding: (B, 2, E).
        reconstruction: (B, 2, C, *patch).
        uncertainty: (3,) of the tasks, where their weights are learned; else ones.
    """

    rotation: Tensor
    embedding: Tensor
    reconstruction: Tensor
    uncertainty: Tensor


class Losses(NamedTuple):
    """The loss of each task."""

    rotation: Tensor
    contrastive: Tensor
    reconstruction: Tensor


class Reconstruction(nn.Module):
    """From the last grid back to the image: for each step down a convolution, a norm and a step up, then a projection.

    Args:
        widths: Channels of the encoder's grids, the finest first.
        strides: Step down from the image, or the grid before, to each.
        channels: Of the image.
    """

    def __init__(self, widths: list[int], strides: list[tuple[int, ...]], channels: int) -> None:
        super().__init__()
        self.strides = strides[::-1]
        convolution: type[nn.Module] = CONVOLUTIONS[len(strides[0])]
        steps = pairwise([*widths[::-1], widths[0]])
        # No bias: the norm takes it away again.
        self.steps = nn.ModuleList(convolution(given, made, 3, padding=1, bias=False) for given, made in steps)
        self.head = convolution(widths[0], channels, 1)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, C', *grid) to (B, C, *patch)."""
        for number, (step, stride) in enumerate(zip(self.steps, self.strides, strict=True), 1):
            grid = to_image(F.leaky_relu(instance_norm(to_tokens(step(grid))), SLOPE))
            if number == len(self.steps):
                grid = self.head(grid)  # before the last step up, with which it commutes: fewer voxels and channels
            sides = [size * factor for size, factor in zip(grid.shape[2:], stride, strict=True)]
            grid = F.interpolate(grid, sides, mode=UPSAMPLING[len(sides)], align_corners=False)
        return grid


class PretrainingNetwork(nn.Module):
    """An encoder with the three heads. Takes pairs of views (B, 2, C, *patch) and returns `Answers`.

    Parameters of the encoder that its last grid does not depend on, such as norms of skips, stay as they are: they get no
    gradient, for which several processes would wait.

    Args:
        encoder: From (B, C, *patch) to its grids (B, C', *grid), the finest first; the last has two tokens at least.
        channels: C.
        patch: Voxels of a view.
        pretext: The tasks.
    """

    uncertainty: nn.Parameter | None

    def __init__(self, encoder: nn.Module, channels: int, patch: tuple[int, ...], pretext: PretextPart) -> None:
        super().__init__()
        encoder.eval()  # for the trial: nothing random, nothing kept
        grids: list[Tensor] = encoder(torch.zeros(1, channels, *patch))
        parameters = list(encoder.parameters())
        gradients = torch.autograd.grad(grids[-1].sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        encoder.train()
        sides = [patch, *(tuple(grid.shape[2:]) for grid in grids)]
        strides = [tuple(a // b for a, b in zip(*step, strict=True)) for step in pairwise(sides)]
        widths = [grid.shape[1] for grid in grids]
        self.encoder = encoder
        self.rotation = nn.Linear(widths[-1], TURNS)
        self.embedding = nn.Linear(widths[-1], pretext.embedding)
        self.reconstruction = Reconstruction(widths, strides, channels)
        self.register_parameter("uncertainty", nn.Parameter(torch.ones(3)) if pretext.weights == "learned" else None)

    def forward(self, views: Tensor) -> Answers:
        pairs = views.shape[:2]
        grid = self.encoder(views.flatten(0, 1))[-1]
        tokens = grid.flatten(2)
        restored = self.reconstruction(grid).unflatten(0, pairs)
        rotation, embedding = self.rotation(tokens[..., 0]), self.embedding(tokens[..., 1])
        uncertainty = views.new_ones(3) if self.uncertainty is None else self.uncertainty
        return Answers(rotation.unflatten(0, pairs), embedding.unflatten(0, pairs), restored, uncertainty)


class PretextLoss:
    """The weighted sum of the three losses."""

    def __init__(self, pretext: PretextPart) -> None:
        self.pretext = pretext

    def __call__(self, answers: Answers, target: Tensor) -> Tensor:
        """The loss of answers to views, with the target (B, 2, C + 1, *patch) that `medical.training.pretext.Views` gives.

        Of several processes, which all must call it, each has its own views; they are told from those of all.
        """
        answers = answers._replace(embedding=together(answers.embedding))
        losses, weights = torch.stack(self.terms(answers, target)), self.pretext.weights
        if weights == "learned":
            variance = answers.uncertainty.square()
            return (0.5 / variance * losses + torch.log1p(variance)).sum()
        return (losses * losses.new_tensor([weights.rotation, weights.contrastive, weights.reconstruction])).sum()

    def terms(self, answers: Answers, target: Tensor) -> Losses:
        """Scalars: cross entropy of the turns, contrastive loss, mean absolute error of views before boxes were cut out."""
        whole, turns = parted(target)
        return Losses(
            rotation=F.cross_entropy(answers.rotation.flatten(0, 1).float(), turns.flatten()),
            contrastive=contrastive_loss(answers.embedding, self.pretext.temperature),
            reconstruction=F.l1_loss(answers.reconstruction.float(), whole),
        )


def parted(target: Tensor) -> tuple[Tensor, Tensor]:
    """The target of `medical.training.pretext.Views` as the whole views (B, 2, C, *patch) and their quarter turns (B, 2)."""
    return target[:, :, :-1], target[:, :, -1].flatten(2)[..., 0].long()


def likeness(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines (2B, 2B) between views, -inf of each with itself, and the place (2B,) of each view's partner."""
    each = F.normalize(embedding.flatten(0, 1).float(), dim=-1)
    places = torch.arange(len(each), device=each.device)
    cosines = (each @ each.T).masked_fill(torch.eye(len(each), dtype=torch.bool, device=each.device), -torch.inf)
    return cosines, places ^ 1  # the views of a pair are neighbours


def contrastive_loss(embedding: Tensor, temperature: float) -> Tensor:
    """NT-Xent of (B, 2, E): the cross entropy of each view's partner among all 2B - 1 others (SimCLR, equation 1)."""
    cosines, partners = likeness(embedding)
    return F.cross_entropy(cosines / temperature, partners)
