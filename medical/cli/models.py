"""The commands `medical models ...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore.cli.models_app import ModelsOf, models_app

if TYPE_CHECKING:
    from hybrid.families import Family
    from hybrid.weights.catalogue import Catalogue, Entry
    from hybrid.weights.checkpoints import Checkpoint
    from hybrid.weights.find import Resolved
    from medical.models.base import SegmentationNetwork
    from medical.protocol import Protocol
    from medical.restoration.loading import Restorer


class Scans(ModelsOf):
    """The models of `medical`: one file each."""

    command, scales = "medical", False

    def catalogue(self) -> Catalogue:
        from medical.loading import catalogue

        return catalogue()

    def find(self, source: str, scale: int | None) -> Resolved:
        from medical.loading import find_weights

        return find_weights(source)

    def build(self, found: Resolved) -> Any:
        from hybrid.weights.checkpoints import read_checkpoint
        from medical.loading import build
        from medical.restoration.loading import build_restorer, is_restorer

        restores = is_restorer(read_checkpoint(found.path).metadata)
        return build_restorer(found, device="cpu") if restores else build(found, device="cpu")

    def family(self, name: str) -> Family[Any]:
        from medical.models import MODULES, family
        from restore import models as pictures

        return family(name) if name in MODULES else pictures.family(name)

    def told(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        from hybrid.weights.header import saved_options

        return saved_options(checkpoint.path.name, checkpoint.metadata)

    def check_fits(self, file: Path, entry: Entry, scale: int) -> None:
        """As for all models; of one that is for training alone, and is no network whose parameters were counted, an encoder."""
        if entry.protocol is not None or entry.shipped or entry.files[scale].parameters is not None:
            super().check_fits(file, entry, scale)
            return
        from hybrid.errors import WeightsError
        from hybrid.weights.checkpoints import read_checkpoint
        from medical.models.swin_unetr_encoder import FIRST, encoder_name

        if FIRST not in map(encoder_name, read_checkpoint(file).state):
            raise WeightsError(f"{file.name} holds no encoder, and {entry.name} is one.", hint="Check --as.")

    def facts(self, network: SegmentationNetwork | Restorer, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        from medical.models.base import SegmentationNetwork

        if not isinstance(network, SegmentationNetwork):
            yield from _restoration(network)
            return
        card, protocol = network.card, network.protocol
        regions = protocol is not None and protocol.regions
        outputs = f"{card.out_channels} overlapping regions" if regions else f"{card.out_channels} classes"
        yield "input", f"{card.spatial_dims}-D, {card.in_channels} channel{'s' * (card.in_channels > 1)}"
        yield "output", outputs + (", the first of them the background" if protocol is not None and not regions else "")
        for name, value in network.options().items():
            yield name, f"{value}, " + ("as the file says" if name in told else f"assumed: another is set by --option {name}=...")
        if card.task != "segmentation":
            yield "protocol", f"none: it is made for {card.task}, and segments nothing"
        elif protocol is None:
            yield "protocol", "none in the file: segment with --protocol FILE"
        else:
            yield from _protocol(protocol)


def _restoration(restorer: Restorer) -> Iterator[tuple[str, str]]:
    protocol = restorer.protocol
    others = f", restored with {2 * protocol.neighbours} neighbours beside them" if protocol.neighbours else ""
    across = "the longest edge of their voxels" if protocol.axis == "thickest" else f"axis {'ijk'[protocol.axis]}"
    yield "restores", f"slices across {across}{others}"
    yield (
        "scans",
        f"{protocol.modality}; {protocol.orientation}"
        + (f", trained on pixels of {protocol.spacing[0]:g} to {protocol.spacing[1]:g} mm" if protocol.spacing else ""),
    )
    yield "intensity", protocol.intensity.words
    for name, value in restorer.options.items():
        yield name, f"{value}, as the file says"


def _protocol(protocol: Protocol) -> Iterator[tuple[str, str]]:
    spacing = " x ".join(f"{step:g}" for step in protocol.spacing) + " mm" if protocol.spacing else "any voxel size"
    yield "scans", f"{protocol.modality}: {', '.join(protocol.channels)}; {protocol.orientation}, {spacing}"
    yield "intensity", protocol.intensity.words
    mirrored = ", ".join(str(axis) for axis in protocol.mirror) or "none"
    patch = " x ".join(map(str, protocol.patch))
    yield "windows", f"{patch} voxels, overlap {protocol.overlap:g}; may be mirrored along axis: {mirrored}"
    yield "structures", ", ".join(f"{each.value} {each.name}" for each in protocol.structures)


models = models_app(Scans())
