"""What is trained when a face network is: the network itself, and what its losses and its dictionary need beside it.

Z. Wang et al., "RestoreFormer++", TPAMI 2023, arXiv 2308.07228, whose stages are a dictionary and then a restorer. For small
dictionaries that begin from nothing, entries that are not used begin anew at a vector of the batch: P. Dhariwal et al.,
"Jukebox: A Generative Model for Music", arXiv 2005.00341, section 3.1. The restorer's vectors are drawn to those entries that
the dictionary has for the sharp face: S. Zhou et al., "CodeFormer", NeurIPS 2022, arXiv 2206.11253, equation 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.vector_quantiser import Quantised
from hybrid.training.processes import summed, together
from hybrid.training.recipes import Part
from restore.faces import losses as face_losses
from restore.faces.losses_learned import (
    PARTS,
    PartDiscriminator,
    PatchDiscriminator,
    balanced_weight,
    hinge_losses,
    identity_loss,
    logistic_losses,
    parts_of,
    perceptual_loss,
)
from restore.models.base import RestorationNetwork
from restore.models.restoreformer import RestoreFormer

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
USAGE_DECAY = 0.98
DEAD_SHARE = 0.1
"""An entry used less often than this share of the mean, over the last fifty batches or so, begins anew."""


class LossPart(Part):
    """Weights of the losses; 0 leaves one out.

    Attributes:
        l1, gradient, fourier: See `restore.faces.losses`.
        codebook: What draws vectors and entries to each other, where there is a dictionary.
        perceptual, identity: LPIPS and ArcFace's features; see `restore.faces.losses_learned`, which says what weights they need.
        adversarial, parts: Discriminators of patches, and of eyes and mouth of whole faces. The first is balanced against the
            other losses and then weighted by this.
        begin: Share of the training at the beginning of which there is neither of these two.
        association: What draws a restorer's vectors to the entries of the sharp face, as the dictionary of `start_from` has them.
        free: Share of the training at the beginning of which an auto-encoder learns without its dictionary, which then begins
            with vectors that already mean something.
        restart: Share of the training after which entries that are not used no longer begin anew.
    """

    l1: Weight = 1.0
    gradient: Weight = 0.0
    fourier: Weight = 0.0
    codebook: Weight = 1.0
    association: Weight = 0.0
    perceptual: Weight = 0.0
    identity: Weight = 0.0
    adversarial: Weight = 0.0
    parts: Weight = 0.0
    begin: Share = 0.0
    free: Share = 0.0
    restart: Share = 0.0


class FaceLearner(nn.Module):
    """A network with its losses, from a batch of pairs to one number.

    Args:
        network: What is trained.
        losses: Their weights.
        steps: Of the whole training.
        guide: The auto-encoder whose dictionary the network has; for `losses.association`. It does not learn.
    """

    usage: Tensor
    step: Tensor

    def __init__(self, network: RestorationNetwork, losses: LossPart, *, steps: int, guide: RestoreFormer | None = None) -> None:
        super().__init__()
        self.network, self.losses = network, losses
        self.free, self.restarts = round(losses.free * steps), round(losses.restart * steps)
        self._guide = [] if guide is None else [guide.eval().requires_grad_(False)]  # a list hides it from checkpoints
        entries = network.config.entries if isinstance(network, RestoreFormer) else 0
        names = ("whole",) * (losses.adversarial > 0) + PARTS * (losses.parts > 0)
        kinds = {name: PatchDiscriminator() if name == "whole" else PartDiscriminator() for name in names}
        self.discriminators, self.begin = nn.ModuleDict(kinds), round(losses.begin * steps)
        self.register_buffer("usage", torch.zeros(entries))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, pairs: Tensor) -> Tensor:
        """(B, 6, H, W) in [0, 1], degraded faces above sharp ones, to the loss."""
        low, target = pairs.chunk(2, 1)
        bottom, top = self.network.card.value_range
        given = low * (top - bottom) + bottom
        terms: dict[str, Tensor] = {}
        if isinstance(self.network, RestoreFormer):
            image, terms = self._by_entries(self.network, given, target * (top - bottom) + bottom)
        else:
            image = self.network.result(given)
        output = (image - bottom) / (top - bottom)
        terms |= {
            "l1": face_losses.pixel_loss(output, target),
            "gradient": face_losses.gradient_loss(output, target),
            "fourier": face_losses.fourier_loss(output, target),
        }
        ours, theirs = output * 2 - 1, target * 2 - 1
        if self.losses.perceptual:
            terms["perceptual"] = perceptual_loss(ours, theirs)
        if self.losses.identity:
            terms["identity"] = identity_loss(ours, theirs)
        loss = self._sum(terms)
        if self.discriminators:
            loss = loss + self._adversarial(loss, ours, theirs)
        self.step += 1
        return loss

    def _adversarial(self, reconstruction: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        """What network and discriminators minimise beside the other losses, in one sum: their gradients do not mix."""
        if int(self.step) < self.begin:
            return 0 * torch.stack([parameter.sum() for parameter in self.discriminators.parameters()]).sum()
        loss = torch.zeros((), device=ours.device)
        if self.losses.adversarial:
            persuading, judging = hinge_losses(self.discriminators["whole"], ours, theirs)
            last = self.network.decoder.conv_out.weight if isinstance(self.network, RestoreFormer) else ours
            weight = self.losses.adversarial * balanced_weight(reconstruction, persuading, last)
            loss = loss + weight * persuading + judging
        if self.losses.parts:
            parts = zip(PARTS, parts_of(ours).values(), parts_of(theirs).values(), strict=True)
            pairs = [logistic_losses(self.discriminators[name], fake, real) for name, fake, real in parts]
            loss = loss + sum(self.losses.parts * persuading + judging for persuading, judging in pairs)
        return loss

    def _by_entries(self, network: RestoreFormer, given: Tensor, sharp: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        encoded = network.encode(given)
        learns = not network.config.kind.asks
        if learns and int(self.step) < self.free:
            unused = 0 * network.quantiser.embedding.weight.sum()  # several processes want every parameter in the graph
            return network.decode(encoded.latent, encoded.contexts), {"codebook": unused}
        if learns and int(self.step) < self.restarts:
            self._restart(network, encoded.latent)
        quantised: Quantised = network.quantiser(encoded.latent.float())
        if learns:
            self._count(quantised.indices)
        assert quantised.loss is not None
        terms = {"codebook": quantised.loss}
        if self._guide and self.losses.association:
            guide = self._guide[0].to(given.device)
            with torch.no_grad():
                entries = network.quantiser.entries(guide.quantiser.nearest(guide.encode(sharp).latent))
            terms["association"] = F.mse_loss(encoded.latent.float(), entries)
        return network.decode(quantised.values, encoded.contexts), terms

    @torch.no_grad()
    def _restart(self, network: RestoreFormer, latent: Tensor) -> None:
        """Move unused entries, at the first step all of them, to vectors of the batch."""
        table, vectors = network.quantiser.embedding.weight, together(latent.detach().float()).flatten(0, -2)
        dead = self.usage < DEAD_SHARE * len(vectors) / len(table)
        chosen = vectors[torch.randint(len(vectors), (len(table),), device=vectors.device)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(chosen, 0)  # the processes draw others, and share one dictionary
        table.copy_(torch.where(dead[:, None], chosen, table))
        self.usage.masked_fill_(dead, len(vectors) / len(table))

    @torch.no_grad()
    def _count(self, indices: Tensor) -> None:
        found = summed(torch.bincount(indices.flatten(), minlength=len(self.usage)).to(self.usage))
        self.usage.lerp_(found, 1 - USAGE_DECAY)

    def _sum(self, terms: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.losses, name) * value.float() for name, value in terms.items()]).sum()
