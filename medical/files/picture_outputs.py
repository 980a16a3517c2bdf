"""The files that the segmentation of a picture leaves.

Named after its label map NAME.png:

    NAME.png, NAME.labels.json     label map with a palette, names of its structures
    NAME_probabilities.tif         where asked for: float32, a page for each output of the network
    NAME_statistics.csv            pixels, area, place of each structure
    NAME_overlay.png               the picture with the structures over it
    NAME.png.json                  record
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid.errors import OutputError, RequestError
from hybrid.records import replacing
from medical.pictures.label_maps import write_label_picture
from medical.pictures.reading import PictureOrigin
from medical.pictures.statistics import PictureFigures, write_picture_statistics
from medical.protocol import Protocol
from medical.results.overlay import overlay, write_overlay
from medical.segmentation.run import Segmentation
from medical.volumes.volume import Volume

LABELS = ".png"
PROBABILITIES, STATISTICS, OVERLAY = "_probabilities.tif", "_statistics.csv", "_overlay.png"
_PAGE_NAME = 285  # the TIFF tag


def picture_outputs(target: Path, *, probabilities: bool, report: bool) -> list[Path]:
    """The files but for the record, the label map first.

    Raises:
        RequestError: The label map is not named .png.
    """
    if target.suffix.lower() != LABELS:
        raise RequestError(f"The label map of a picture is PNG, and {target.name} is not.", hint="Name it .png.")
    name = target.name[: -len(LABELS)]
    endings = [".labels.json", *[PROBABILITIES] * probabilities, *[STATISTICS, OVERLAY] * report]
    return [target, *(target.with_name(name + ending) for ending in endings)]


def write_picture_outputs(
    folder: Path,
    names: Sequence[str],
    volume: Volume,
    protocol: Protocol,
    result: Segmentation,
    figures: Sequence[PictureFigures],
) -> None:
    """Write those of `picture_outputs` that are named; each is read back and compared.

    Raises:
        OutputError: The folder does not take a file, or it was read back otherwise than written.
    """
    assert isinstance(volume.origin, PictureOrigin)
    for name in names:
        path = folder / name
        if name.endswith(STATISTICS):
            write_picture_statistics(path, figures)
        elif name.endswith(OVERLAY):
            write_overlay(path, overlay(volume.values, result.labels, result.structures, volume.origin))
        elif name.endswith(PROBABILITIES) and result.probabilities is not None:
            write_page_probabilities(path, result.probabilities[..., 0], output_names(protocol))
        elif name == names[0]:
            write_label_picture(path, result.labels, result.structures)


def output_names(protocol: Protocol) -> list[str]:
    """What each output of the network is."""
    called = {structure.value: structure.name for structure in protocol.structures}
    if not protocol.regions:
        return ["background", *called.values()]
    regions = {each.channel: each.name or called.get(each.value, f"label {each.value}") for each in protocol.regions}
    return [regions.get(channel, "unused") for channel in range(protocol.outputs)]


def write_page_probabilities(path: Path, shares: np.ndarray, names: Sequence[str]) -> Path:
    """Write probabilities (outputs, rows, columns) as TIFF of float32, a named page for each output, whole or not at all.

    Raises:
        OutputError: The folder does not take the file, or what was read back is not what was written.
    """
    import tifffile

    try:
        with replacing(path) as part:
            with tifffile.TiffWriter(part, bigtiff=shares.nbytes > 2**31) as file:
                for page, name in zip(shares, names, strict=True):
                    named = [(_PAGE_NAME, "s", 0, name.encode("ascii", "replace").decode(), True)]
                    file.write(np.asarray(page, np.float32), compression="zlib", rowsperstrip=64, metadata=None, extratags=named)
            with tifffile.TiffFile(part) as read:
                same = len(read.pages) == len(shares) and all(
                    np.array_equal(found.asarray(), page) for found, page in zip(read.pages, shares, strict=True)
                )
            if not same:
                raise OutputError(f"{path.name} was read back otherwise than it was written.", hint="Check the disk.")
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror}.", hint="Choose another --output.") from error
    return path
