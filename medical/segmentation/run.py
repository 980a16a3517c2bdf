"""Segmentation of scans in memory: check, prepare, plan, run over windows, bring back, tidy, check.

    network = medical.load_model("hippocampus", precision="auto")
    result = segment(read_volume("scan.nii.gz"), network)
    result.labels  # (i, j, k) on the scan's own grid

Files are read and written by `medical.files.segment`.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike

from hybrid.errors import InputError, OutputError, RequestError, ResourceError
from hybrid.memory import available_bytes, format_size
from medical.models.base import SegmentationNetwork
from medical.protocol import Protocol
from medical.segmentation.postprocess import fill_holes, keep_largest
from medical.segmentation.preparation import Box, Preparation, check_scan, doubts, prepare
from medical.segmentation.roi import roi_box
from medical.segmentation.slabs import LabelPainter, RowInterpolator
from medical.segmentation.sliding import (
    OnProgress,
    WindowPlan,
    WriteSlab,
    check_memory,
    device_of,
    plan_scan,
    segment_windows,
    stream_order,
    window_logits,
)
from medical.structures import Structure
from medical.volumes.geometry import resample, resample_labels
from medical.volumes.modality import check_modality
from medical.volumes.volume import Volume


@dataclass(frozen=True)
class SegmentSettings:
    """How scans are segmented; the same for every scan of a batch.

    Attributes:
        overlap: Share of the window that neighbouring windows have in common; None takes the protocol's.
        mirror: Average over mirror images, along the axes that the protocol allows.
        memory: Bytes that the process may take at its peak; None is bounded by what the machine has.
        roi: The part to segment, as `medical.segmentation.roi` says; the scan outside it is not looked at, as if it were cut off.
        largest_component: Keep the largest piece of each structure alone.
        fill_holes: Give each structure the background that it encloses.
        probabilities: Keep the probability of each output channel.
        any_modality: Take scans whose headers name another modality than the network's; they are doubted then, not refused.
    """

    overlap: float | None = None
    mirror: bool = False
    memory: int | None = None
    roi: str | None = None
    largest_component: bool = False
    fill_holes: bool = False
    probabilities: bool = False
    any_modality: bool = False


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a network found in a scan.

    Attributes:
        labels: (i, j, k) uint8, or uint16 for structures beyond 255, on the scan's own grid; 0 is the background.
        structures: What its numbers mean.
        probabilities: (outputs, i, j, k) float32 on that grid, background first unless the outputs are regions; in a
            temporary file that goes with the array. None where they were not asked for.
        plan: The windows.
        way: The geometric steps in one line.
        notes: What a user should be told, one sentence each.
    """

    labels: np.ndarray
    structures: tuple[Structure, ...]
    probabilities: np.ndarray | None
    plan: WindowPlan
    way: str
    notes: tuple[str, ...]


def segment(
    volume: Volume,
    network: SegmentationNetwork,
    settings: SegmentSettings | None = None,
    *,
    protocol: Protocol | None = None,
    scratch: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Segmentation:
    """Segment a scan.

    Args:
        volume: From `medical.volumes.volume.read_volume` or `medical.dicom.volume.read_dicom`; not changed.
        network: From `medical.load_model`.
        settings: Windows, memory, tidying.
        protocol: What the network asks of a scan, where its file does not say it or says it wrongly.
        scratch: Folder for the temporary file of probabilities; None for the system's.
        on_progress: Called as (windows done, windows in all).

    Raises:
        InputError: The scan cannot be segmented: another modality, other channels, values that are not finite, nothing in it.
        RequestError: No protocol, or mirror images of a network that was not trained on them.
        ResourceError: It does not fit the memory.
        OutputError: What the network returned is no segmentation.
    """
    settings = settings or SegmentSettings()
    protocol = protocol_of(network, protocol)
    way, plan = plan_volume(volume, network, settings, protocol)
    labels, probabilities = _run(volume, network, settings, protocol, (way, plan), scratch, on_progress)
    labels, notes = finished(labels, volume, way, protocol, settings)
    return Segmentation(labels, protocol.structures, probabilities, plan, way.describe(), notes)


def finished(
    labels: np.ndarray, volume: Volume, way: Preparation, protocol: Protocol, settings: SegmentSettings
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels in the protocol's orientation, which are changed, as the checked label map on the scan's grid; and the notes.

    Raises:
        OutputError: They are no segmentation of the scan.
    """
    tidied = _tidy(labels, protocol.structures, settings)
    labels = np.ascontiguousarray(way.undo(labels))
    _check(labels, volume, protocol)
    notes = (*volume.warnings, *doubts(volume, protocol, way), *tidied)
    if not labels.any():
        notes = (*notes, "No structure was found: the whole label map is background.")
    return labels, notes


def plan_volume(
    volume: Volume, network: SegmentationNetwork, settings: SegmentSettings, protocol: Protocol
) -> tuple[Preparation, WindowPlan]:
    """The way of a scan to the network's grid, and the windows over it; the scan is checked first.

    Raises:
        InputError, RequestError: As `segment`.
        ResourceError: The network's grid alone does not fit the memory.
    """
    check_scan(volume, protocol)
    if not settings.any_modality:
        check_modality(volume.origin, protocol.modality, volume.file_name)
    box = roi_box(settings.roi, volume.grid) if settings.roi is not None else None
    if box is not None:
        _check_part(volume, box, protocol)
    way = prepare(volume, protocol, box)
    _check_size(volume, way, protocol)
    return way, plan_scan(way.model.shape, network.card, protocol, overlap=settings.overlap, mirror=settings.mirror)


def _check_part(volume: Volume, box: Box, protocol: Protocol) -> None:
    part = volume.values[(slice(None), *box)]
    thinnest = sorted(part.shape[1:])[3 - protocol.spatial_dims]
    if thinnest < 2 or any(channel.min() == channel.max() for channel in part):
        raise InputError(
            f"The part {' x '.join(map(str, part.shape[1:]))} of {volume.name} holds nothing to segment.",
            hint="Choose a larger --roi.",
        )


def _check_size(volume: Volume, way: Preparation, protocol: Protocol) -> None:
    """Refuse a grid that is out of all proportion before anything is planned over it: a wrong unit in a header, mostly."""
    if way.resampled and sorted(way.model.shape)[0 if protocol.spatial_dims == 3 else 1] < 2:
        raise InputError(
            f"For the network {volume.name} would have {' x '.join(map(str, way.model.shape))} voxels ({way.describe()}): "
            "too few to segment.",
            hint="Check the size of its voxels.",
        )
    needed, left = way.prepared_bytes(len(volume.values)), available_bytes()
    if way.resampled and needed > left:
        raise ResourceError(
            f"For the network {volume.name} would have {' x '.join(map(str, way.model.shape))} voxels ({way.describe()}): "
            f"{format_size(needed, up=True)} of memory needed, {format_size(left)} left.",
            hint="Check the size of its voxels, or segment a part with --roi.",
        )


def protocol_of(network: SegmentationNetwork, given: Protocol | None = None) -> Protocol:
    """The protocol that was given, or the network's own.

    Raises:
        RequestError: There is none, or it speaks of another network; or the network segments nothing.
    """
    card, protocol = network.card, given or network.protocol
    if card.task != "segmentation":
        raise RequestError(
            f"{card.title} is made for {card.task}: it says what a scan shows as a whole and outlines nothing.",
            hint="Choose a segmentation network, or begin the training of one with these weights.",
        )
    if protocol is None:
        raise RequestError(
            "These weights do not say what scans they were trained on, nor what their outputs mean.",
            hint="Give --protocol FILE, a YAML file with modality, channels, spacing, intensity, patch and structures.",
        )
    if (len(protocol.channels), protocol.outputs) != (card.in_channels, card.out_channels):
        raise RequestError(
            f"The protocol speaks of {len(protocol.channels)} channels in and {protocol.outputs} out; the network has "
            f"{card.in_channels} and {card.out_channels}.",
            hint="Correct the channels, structures or regions of the protocol.",
        )
    if protocol.spatial_dims != card.spatial_dims:
        kinds = {2: "slices", 3: "volumes"}
        raise RequestError(
            f"{card.title} is a network for {kinds[card.spatial_dims]} here, and the patch of its protocol has "
            f"{protocol.spatial_dims} axes.",
            hint=f"Give the protocol a patch of {card.spatial_dims} edges.",
        )
    return protocol


def seconds_per_window(network: SegmentationNetwork, plan: WindowPlan) -> float:
    """Time the network on one empty window, mirror images counted."""
    x = torch.zeros(1, network.card.in_channels, *plan.patch, device=device_of(network))
    with torch.inference_mode():
        started = time.perf_counter()
        window_logits(network, x).cpu()
    return (time.perf_counter() - started) * plan.views


def _run(
    volume: Volume,
    network: SegmentationNetwork,
    settings: SegmentSettings,
    protocol: Protocol,
    planned: tuple[Preparation, WindowPlan],
    scratch: Path | None,
    on_progress: OnProgress | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Label map in the protocol's orientation, and probabilities on the scan's grid."""
    way, plan = planned
    direct = way.parallel  # else finished labels are brought back, not logits
    grid = way.oriented if direct else way.model
    labels = np.zeros(grid.shape, label_type(protocol))
    shares = room((protocol.outputs, *grid.shape), scratch) if settings.probabilities else None
    painter = LabelPainter(
        np.moveaxis(labels, plan.axis, 0), protocol, np.moveaxis(shares, 1 + plan.axis, 1) if shares is not None else None
    )
    device = device_of(network)
    check_memory(plan, device, settings.memory, reserve=way.prepared_bytes(len(volume.values)) + labels.nbytes)
    segment_windows(
        network,
        way.apply(volume, protocol),
        protocol,
        write=onto_scan(way, plan.axis, painter),
        plan=plan,
        memory=settings.memory,
        device=device,
        on_progress=on_progress,
    )
    if not direct:
        labels = resample_labels(labels, way.model, way.oriented).astype(labels.dtype, copy=False)
        shares = resample(shares, way.model, way.oriented, order=1) if shares is not None else None
    return labels, on_whole_scan(shares, way, protocol, scratch) if shares is not None else None


def onto_scan(way: Preparation, axis: int, write: WriteSlab) -> WriteSlab:
    """What takes slabs of logits along an axis of the network's grid and hands them to `write` on the scan's, in its
    orientation; those of sheared scans are handed on as they are."""
    if not (way.resampled and way.parallel):
        return write
    return RowInterpolator(_ordered(way.positions, axis), stream_order(way.model.shape, axis), write)


def on_whole_scan(shares: np.ndarray, way: Preparation, protocol: Protocol, scratch: Path | None) -> np.ndarray:
    """Probabilities on the scan's grid; outside the part that was segmented all is background."""
    part = way.reorientation.undo(shares)
    if part.shape[1:] == way.scan.shape:
        return part
    whole = room((len(shares), *way.scan.shape), scratch)
    if not protocol.regions:
        whole[0] = 1
    whole[(slice(None), *way.box)] = part
    return whole


def room(shape: tuple[int, ...], scratch: Path | None, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Zeros in a nameless file, since all classes of a large scan would not fit into memory.

    Raises:
        ResourceError: The disk has no room: asked for here, as a mapped file that finds none ends the process.
    """
    needed, free = np.dtype(dtype).itemsize * math.prod(shape), shutil.disk_usage(scratch or tempfile.gettempdir()).free
    hint = "Free some, choose another --output, or leave --save-probabilities and --uncertainty out."
    if needed > free:
        raise ResourceError(
            f"The probabilities need {format_size(needed, up=True)} of disk for a while, and {format_size(free)} are free.",
            hint=hint,
        )
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise ResourceError(
            f"The probabilities need {format_size(needed, up=True)} of disk for a while: {error.strerror}.", hint=hint
        ) from error


def _tidy(labels: np.ndarray, structures: Sequence[Structure], settings: SegmentSettings) -> tuple[str, ...]:
    notes = []
    values = [structure.value for structure in structures]
    if settings.largest_component and (removed := keep_largest(labels, values)):
        notes.append(f"{removed} voxels off the largest piece of their structure were made background.")
    if settings.fill_holes and (filled := fill_holes(labels, values)):
        notes.append(f"{filled} voxels of background inside a structure were given to it.")
    return tuple(notes)


def _check(labels: np.ndarray, volume: Volume, protocol: Protocol) -> None:
    known = np.zeros(int(np.iinfo(labels.dtype).max) + 1, bool)
    known[[0, *(structure.value for structure in protocol.structures)]] = True
    if labels.shape != volume.grid.shape or not all(known[row].all() for row in labels):
        raise OutputError(
            f"The label map ({labels.shape}) does not fit the scan ({volume.grid.shape}) or holds unknown labels.",
            hint="Report this with the record of the run.",
        )


def label_type(protocol: Protocol) -> type[np.unsignedinteger]:
    """What holds the labels of a protocol."""
    return np.uint8 if max((structure.value for structure in protocol.structures), default=0) < 256 else np.uint16


def _ordered(positions: Sequence[np.ndarray], axis: int) -> list[np.ndarray]:
    return [positions[axis], *(where for other, where in enumerate(positions) if other != axis)]
