"""Networks for scans as ONNX files: one window of fixed size, or slices of any size, with the protocol in the file.

    import medical
    from medical.exporting import export_network

    made = export_network(medical.load_model("hippocampus"), Path("hippocampus.onnx"))

What comes before and after a window - orientation, spacing, intensities, overlap, labels - the protocol says; the file has it as
JSON. Research use, not a medical device.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hybrid.errors import RequestError
from hybrid.onnx_export import Exported, Sides, Subject, export
from hybrid.weights.catalogue import Entry
from medical.models.base import SegmentationCard, SegmentationNetwork
from medical.notice import RESEARCH_USE
from medical.restoration.loading import Restorer
from restore import exporting as pictures

NAMES = {2: ("height", "width"), 3: ("i", "j", "k")}
MOST_VOXELS = 2**24


def export_network(
    network: SegmentationNetwork,
    target: Path,
    *,
    size: tuple[int, ...] | None = None,
    entry: Entry | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a network as an ONNX file that takes a window (1, C, *spatial) float32 and gives its logits (1, classes, *spatial).

    Args:
        network: From `medical.load_model`, on the CPU in float32.
        target: The file; its record is put beside it.
        size: Of the window; None for that of the network's protocol.
        entry: What the catalogue says of the network.
        overwrite: Whether files that are there may be replaced.

    Raises:
        RequestError: The network cannot be exported, or the size is not known or not possible.
        OutputError: The file cannot be written, or gives other values than the network.
    """
    card, protocol = network.card, network.protocol
    window = size or (protocol.patch if protocol is not None else None)
    if window is None:
        raise RequestError(
            f"{card.title} is exported for windows of one size, and these weights do not say which.",
            hint=f"Give it: --size {'x'.join(['96'] * card.spatial_dims)}.",
        )
    if len(window) != card.spatial_dims or not all(1 <= n <= MOST_VOXELS for n in window):
        raise RequestError(f"{card.title} sees windows of {card.spatial_dims} sides.", hint="Give --size as many numbers.")
    if network.not_exported is not None:
        raise RequestError(f"{card.title} cannot be exported: {network.not_exported}", hint="Choose another network.")
    subject = Subject(
        network=network,
        run=network,
        channels=card.in_channels,
        scale=1,
        metadata=_facts(network, entry),
        inputs=lambda sides: _window(card, sides),
        title=network.source.name if network.source else card.title,
        family=card.family,
        source=network.source,
    )
    sides = Sides(NAMES[card.spatial_dims], tuple(window))
    return export(subject, sides, [tuple(window)], target, overwrite=overwrite)


def export_restorer(
    restorer: Restorer, target: Path, *, size: tuple[int, int] | None = None, entry: Entry | None = None, overwrite: bool = False
) -> Exported:
    """Write a restorer's network as an ONNX file that takes slices; arguments as of `restore.exporting.export_network`."""
    more = {"protocol": restorer.protocol.model_dump_json(), "research_use": RESEARCH_USE, "colours": "neighbouring slices"}
    return pictures.export_network(restorer.network, target, size=size, entry=entry, more=more, overwrite=overwrite)


def _facts(network: SegmentationNetwork, entry: Entry | None) -> dict[str, str]:
    """What the file says, as text."""
    card, protocol = network.card, network.protocol
    facts = {
        "task": card.task,
        "paper": card.paper,
        "layout": "a batch of one, channels, then the array's axes; float32",
        "result": "logits of the outputs",
        "outputs": str(card.out_channels),
        "multiple": str(card.multiple),
        "weights_licence": entry.weights_licence if entry else "unknown",
        "code_licence": card.code_licence,
        "research_use": RESEARCH_USE,
    }
    if protocol is not None:
        facts |= {"protocol": protocol.model_dump_json(), "overlap": str(protocol.overlap)}
    return facts


def _window(card: SegmentationCard, sides: tuple[int, ...]) -> Tensor:
    """Smooth shapes and a little noise, of mean 0 and deviation 1, as protocols scale scans."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, card.in_channels, *(n // 8 + 2 for n in sides), generator=generator)
    mode = "trilinear" if len(sides) == 3 else "bilinear"
    smooth = torch.nn.functional.interpolate(coarse, sides, mode=mode, align_corners=True)
    return smooth + 0.1 * torch.randn(1, card.in_channels, *sides, generator=generator)
