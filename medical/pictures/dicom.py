"""Single frames of DICOM as pictures: radiographs, ultrasound, photographs, or one slice of a series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from hybrid.errors import InputError
from medical.dicom.codecs import decode_frame
from medical.dicom.files import UNREADABLE_VALUE, contents, quiet, read_dataset
from medical.dicom.frames import Frame, number, text
from medical.dicom.pixels import read_frames
from medical.dicom.series import list_series
from medical.pictures.reading import PictureOrigin

_UNDECODABLE = (*UNREADABLE_VALUE, RuntimeError, IndexError)  # pydicom documents RuntimeError where no decoder could


@quiet()
def read_single_frame(path: Path) -> tuple[np.ndarray, PictureOrigin, tuple[str, ...]]:
    """(rows, columns, colours) of a DICOM file with one frame: real values of gray ones, 8 or 16 bits of RGB.

    Returns:
        The values, where they are from, and what a user should be told. The size of pixels is PixelSpacing.

    Raises:
        InputError: It holds no image, several frames, or pixels that are damaged or cannot be decoded.
        ResourceError: It does not fit the memory.
    """
    frames = [frame for series in list_series(path) for frame in series.frames]
    if len(frames) != 1:
        raise InputError(f"{path.name} holds {len(frames)} frames, and a picture is one.", hint="Give it as a volume.")
    (frame,) = frames
    header = frame.header
    inverted = text(header, "PhotometricInterpretation") == "MONOCHROME1"
    if (number(header, "SamplesPerPixel") or 1) == 1 and text(header, "PhotometricInterpretation") != "PALETTE COLOR":
        values, warnings = read_frames(frames)
        colours, white = np.ascontiguousarray(values[0, :, :, 0].T)[..., None], 1.0
    else:
        colours, warnings = _colours(frame), ()
        white = float(np.iinfo(colours.dtype).max)
    if inverted:
        warnings = (*warnings, "Low values are meant to be shown bright (MONOCHROME1): the network sees them as they are stored.")
    modality = text(header, "Modality") or None
    return colours, PictureOrigin(path, white, frame.pixel_spacing, modality, inverted), tuple(warnings)


def _colours(frame: Frame) -> np.ndarray:
    """(rows, columns, 3) RGB."""
    if text(frame.header, "PhotometricInterpretation") == "PALETTE COLOR":
        raise InputError(f"{frame.file.path.name} has a palette of colours.", hint="Export it as RGB, or as PNG.")
    for _, stream in contents([frame.file]):
        try:
            dataset = read_dataset(stream, pixels=True)
            syntax = UID(dataset.file_meta.TransferSyntaxUID)
            if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
                stored = decode_frame(dataset, 0, raw=False)
            else:
                stored, _ = get_decoder(syntax).as_array(dataset, index=0, raw=False)
        except _UNDECODABLE as error:
            raise InputError(
                f"The pixels of {frame.file.path.name} are damaged or cannot be decoded.", hint="Export it again."
            ) from error
        if stored.ndim == 3 and stored.shape[-1] == 3 and stored.dtype.name in ("uint8", "uint16"):
            return stored
    raise InputError(f"{frame.file.path.name} holds no RGB picture.", hint="Export it as PNG.")
