"""Picture networks as ONNX files: which sizes they take, what the file says, what it is compared on.

    import restore
    from restore.exporting import export_network

    made = export_network(restore.load_model("denoise-compact"), Path("denoise.onnx"))

Sides are padded and cropped within the graph. A face network has the size of its faces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from hybrid.onnx_export import MOST, Exported, Sides, Subject, export
from hybrid.weights.catalogue import Entry
from restore.models.base import RestorationNetwork

NAMES = ("height", "width")
LEAST_STEP = 16
"""Pixels by which the compared sizes differ, where the network's windows are smaller."""


def export_network(
    network: RestorationNetwork,
    target: Path,
    *,
    size: tuple[int, int] | None = None,
    entry: Entry | None = None,
    more: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a network as an ONNX file that takes (1, C, height, width) float32 and gives what the network gives.

    Args:
        network: From `restore.load_model`, on the CPU in float32.
        target: The file; its record is put beside it.
        size: Height and width of a graph of fixed size; None for open sides, or a face network's own size.
        entry: What the catalogue says of the network.
        more: Further metadata.
        overwrite: Whether files that are there may be replaced.

    Raises:
        RequestError: The network cannot be exported, or not with open sides; the message says why.
        OutputError: The file cannot be written, or gives other values than the network.
    """
    card = network.card
    subject = Subject(
        network=network,
        run=network.result,
        channels=card.channels,
        scale=card.scale,
        metadata=_facts(card, entry) | dict(more or {}),
        inputs=lambda sides: _picture(card, sides),
        title=network.source.name if network.source else card.title,
        family=card.family,
        source=network.source,
    )
    sides = sides_of(network, size)
    return export(subject, sides, sizes_to_check(card, sides), target, overwrite=overwrite)


def sides_of(network: RestorationNetwork, size: tuple[int, int] | None) -> Sides:
    """The sides that a network's graph takes.

    Raises:
        RequestError: The network cannot be exported, or a fixed size has to be given.
    """
    card = network.card
    if network.not_exported is not None:
        raise RequestError(f"{card.title} cannot be exported: {network.not_exported}", hint="Choose another network.")
    if size is None and (edge := card.face_size or card.fixed_size):
        size = (edge,) * 2
    if size is not None:
        if not all(1 <= n <= MOST for n in size):
            raise RequestError(f"A graph for {size[1]} x {size[0]} pixels is not possible.", hint=f"Sides are 1 to {MOST}.")
        return Sides(NAMES, size)
    if not network.open_sides:
        raise RequestError(f"{card.title} is exported for one size alone.", hint="Give it: --size WIDTHxHEIGHT.")
    return Sides(NAMES, None, card.multiple + 1)


def sizes_to_check(card: ModelCard, sides: Sides) -> list[tuple[int, ...]]:
    """Sizes at which an open graph is compared: the least, odd ones, whole windows, and a long strip."""
    if sides.fixed is not None:
        return [sides.fixed]
    step = max(card.multiple, LEAST_STEP)
    return [(sides.least,) * 2, (2 * step + 3, 4 * step + 1), (5 * step, 3 * step), (2 * step + 5, 25 * step + 3)]


def _facts(card: ModelCard, entry: Entry | None) -> dict[str, str]:
    """What the file says, as text; lists as JSON."""
    several = {} if card.outputs == 1 else {"outputs": str(card.outputs), "heads": json.dumps(card.pure_outputs)}
    return {
        "task": ", ".join(card.tasks) if entry is None or entry.task is None else entry.task,
        "paper": card.paper,
        "layout": "NCHW, a batch of one, float32" + (", outputs before channels in the result" if several else ""),
        "colours": _colours(card),
        "value_range": json.dumps(card.value_range),
        "scale": str(card.scale),
        "multiple": str(card.multiple),
        "overlap": str(card.overlap),
        "tiles_exact": json.dumps(card.exact),
        "weights_licence": entry.weights_licence if entry else "unknown",
        "code_licence": card.code_licence,
        **several,
    }


def _colours(card: ModelCard) -> str:
    if card.luma:
        return "BT.601 luma, 16 to 235 of 255"
    return {1: "gray", 3: "RGB", 6: "RGB of the left view, RGB of the right view"}.get(card.channels, f"{card.channels} planes")


def _picture(card: ModelCard, sides: tuple[int, ...]) -> Tensor:
    low, high = card.value_range
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, card.channels, *(n // 8 + 2 for n in sides), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, sides, mode="bilinear", align_corners=True)
    noise = torch.rand(1, card.channels, *sides, generator=generator)
    return low + (high - low) * (0.9 * smooth + 0.1 * noise)
