"""Losses of face restoration that have networks of their own: adversarial ones, which learn beside it, and fixed judges.

Discriminators begin from nothing. What compares features of published networks (`perceptual`, `identity`) needs their weights
and says which where they are absent. Pictures are (B, 3, H, W) in [-1, 1], RGB.

P. Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (PatchGAN), CVPR 2017; the weight of the
adversarial loss: P. Esser et al., "Taming Transformers", CVPR 2021, equation 7; discriminators of eyes and mouth: X. Wang et al.,
"GFPGAN", CVPR 2021, section 3.4, with the layers of StyleGAN2 (T. Karras et al., CVPR 2020). The template gives their places.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hybrid.training.processes import processes, summed
from restore.faces.alignment import template
from restore.faces.metrics import as_identity_input
from restore.faces.metrics_weights import arcface, perceptual_distance

SLOPE = 0.2
ADVERSARIAL_SHARE = 0.8
EYE, MOUTH = 80 / 512, 120 / 512
"""Edges of the parts that are judged by themselves, as shares of the face."""
PARTS = ("left_eye", "right_eye", "mouth")


class PatchDiscriminator(nn.Module):
    """Whether each patch of about 70 pixels looks real: (B, 3, H, W) to (B, 1, h, w), above 0 for real."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for place, (inputs, outputs) in enumerate(pairwise(widths)):
            layers.append(nn.Conv2d(inputs, outputs, 4, 2 if place < 3 else 1, 1, bias=place == 0))
            layers += [nn.BatchNorm2d(outputs)] if place else []
            layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class EqualisedConvolution(nn.Module):
    """A convolution whose weights are drawn from N(0, 1) and scaled at run time; `down` blurs and halves the sides first."""

    def __init__(self, inputs: int, outputs: int, *, down: bool = False, activated: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs, 3, 3)), nn.Parameter(torch.zeros(outputs))
        self.scale, self.down, self.activated = 1 / math.sqrt(9 * inputs), down, activated

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            line = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
            kernel = torch.outer(line, line).expand(x.shape[1], 1, 4, 4)
            x = F.conv2d(F.pad(x, (2, 2, 2, 2)), kernel, groups=x.shape[1])
        y = F.conv2d(x, self.weight * self.scale, self.bias, stride=2 if self.down else 1, padding=0 if self.down else 1)
        return F.leaky_relu(y, SLOPE) * math.sqrt(2) if self.activated else y


class PartDiscriminator(nn.Sequential):
    """Whether an eye or a mouth looks real: (B, 3, h, w) to logits."""

    def __init__(self) -> None:
        super().__init__(
            EqualisedConvolution(3, 64),
            EqualisedConvolution(64, 128, down=True),
            EqualisedConvolution(128, 128),
            EqualisedConvolution(128, 256, down=True),
            EqualisedConvolution(256, 256),
            EqualisedConvolution(256, 1, activated=False),
        )


def hinge_losses(discriminator: nn.Module, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """What the generator and what the discriminator minimises. Neither leads a gradient into the other."""
    persuading = -_as_it_stands(discriminator, fake).mean()
    judging = 0.5 * (F.relu(1 - discriminator(real)).mean() + F.relu(1 + discriminator(fake.detach())).mean())
    return persuading, judging


def logistic_losses(discriminator: nn.Module, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The same with binary cross entropy, as parts are judged."""
    persuading = F.softplus(-_as_it_stands(discriminator, fake)).mean()
    judging = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
    return persuading, judging


def balanced_weight(reconstruction: Tensor, persuading: Tensor, where: Tensor) -> Tensor:
    """The weight that makes the adversarial gradient 0.8 times as long as the other at `where`.

    Args:
        reconstruction, persuading: The two losses.
        where: A weight near the output, or the output itself, of which several processes have a part each.
    """
    lengths = []
    for loss in (reconstruction, persuading):
        gradient = torch.autograd.grad(loss, where, retain_graph=True)[0].float() / processes()
        whole = summed(gradient).square().sum() if where.is_leaf else summed(gradient.square().sum())
        lengths.append(whole.sqrt())
    return ADVERSARIAL_SHARE * (lengths[0] / (lengths[1] + 1e-4)).clamp(0, 1e4).detach()


def parts_of(faces: Tensor) -> dict[str, Tensor]:
    """Eyes and mouth of aligned faces (B, 3, S, S), where the template has them."""
    size = faces.shape[-1]
    points = template(size)
    centres = (points[0], points[1], (points[3] + points[4]) / 2)
    parts = {}
    for name, (x, y), share in zip(PARTS, centres, (EYE, EYE, MOUTH), strict=True):
        edge = round(share * size)
        left, top = (min(max(0, round(float(centre) + 0.5 - edge / 2)), size - edge) for centre in (x, y))
        parts[name] = faces[..., top : top + edge, left : left + edge]
    return parts


def perceptual_loss(output: Tensor, target: Tensor) -> Tensor:
    """LPIPS with VGG16, mean over the batch.

    Raises:
        WeightsError: Its weights `vgg16` or `lpips-vgg16-heads` are absent.
    """
    loss: Tensor = perceptual_distance(str(output.device))(output, target).mean()
    return loss


def identity_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of ArcFace's features.

    Raises:
        WeightsError: Its weights `arcface-resnet18` are absent.
    """
    network = arcface(str(output.device))
    return F.l1_loss(network(as_identity_input(output)), network(as_identity_input(target)))


def _as_it_stands(discriminator: nn.Module, fake: Tensor) -> Tensor:
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    logits: Tensor = functional_call(discriminator, fixed, (fake,))
    return logits
