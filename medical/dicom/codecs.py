"""Compressed pixels of DICOM files, decoded in a process of their own.

The codecs are C++ libraries that a damaged or hostile stream can bring down, and a server or a batch with them. So one child
decodes, within bounds of time and memory; where it ends, the stream was damaged, and the next one gets a new child. It is
started with the first compressed frame (about half a second) and kept.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import UID, JPEGExtended12Bit

SECONDS = 60
"""Of computing that one frame may take; a slice takes milliseconds."""
MEMORY = 2 << 30
"""Bytes that decoding may take, beside 16 for each sample of the frame."""

_HEAD = struct.Struct("<II")  # bytes of a JSON header, and of the data behind it
_UNDECODABLE = (Exception,)  # in the child: whatever a codec says of a stream, it could not be decoded


def decode_frame(dataset: Dataset, index: int, *, raw: bool = True) -> np.ndarray:
    """One compressed frame.

    Args:
        dataset: The file with its pixels.
        index: Of the frame, from 0.
        raw: The stored numbers; else colours are made RGB.

    Returns:
        (rows, columns) or (rows, columns, samples).

    Raises:
        ValueError: It could not be decoded.
        Those of `medical.dicom.files.UNREADABLE_VALUE`: What the file says of its pixels is damaged.
    """
    options = as_pixel_options(dataset)
    offsets, frames = options.pop("extended_offsets", None), int(options.get("number_of_frames") or 1)
    stream = get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets)
    known = {key: value for key, value in options.items() if isinstance(value, int | str)}
    known |= {"number_of_frames": 1, "pixel_keyword": "PixelData"}
    size = math.prod(int(known[key]) for key in ("rows", "columns", "samples_per_pixel")) * 8
    with _LOCK:
        request = {"syntax": str(dataset.file_meta.TransferSyntaxUID), "options": known, "raw": raw, "size": size}
        return _child().decode(request, stream, size)


class _Child:
    """The process that decodes."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        # By the path of this package, and never from the working folder, which may hold anything.
        paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medical.dicom.codecs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def decode(self, request: dict[str, Any], stream: bytes, most: int) -> np.ndarray:
        try:
            assert self.process.stdin is not None and self.process.stdout is not None
            _send(self.process.stdin, request, stream)
            told, data = _receive(self.process.stdout, most)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise ValueError("the codec failed") from error
        except BaseException:  # an interrupted exchange must not be taken up by the next frame
            self.close()
            raise
        if "dtype" not in told:
            raise ValueError("the stream cannot be decoded")
        return np.frombuffer(data, np.dtype(told["dtype"])).reshape(told["shape"])

    def close(self) -> None:
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()


_LOCK = threading.Lock()
_CHILDREN: list[_Child] = []


def _child() -> _Child:
    if not (_CHILDREN and _CHILDREN[-1].usable):
        _CHILDREN[:] = [_Child()]
    return _CHILDREN[-1]


@atexit.register
def _close() -> None:
    for child in _CHILDREN:
        child.close()


def _send(pipe: IO[bytes], told: dict[str, Any], data: bytes) -> None:
    header = json.dumps(told).encode()
    pipe.write(_HEAD.pack(len(header), len(data)) + header)
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes], most: int | None = None) -> tuple[dict[str, Any], bytes]:
    header, data = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    if most is not None and (data > most or header > 1 << 16):
        raise ValueError("more than was asked for")
    return json.loads(_exactly(pipe, header)), _exactly(pipe, data)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


# In the child ----------------------------------------------------------------------------------------------------


def _serve() -> None:
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # some codecs print
    while True:
        try:
            told, stream = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _limit(told["size"])
        try:
            found = np.ascontiguousarray(_decode(UID(told["syntax"]), told["options"], stream, told["raw"]))
        except _UNDECODABLE:
            _send(pipe, {}, b"")
            continue
        _send(pipe, {"dtype": found.dtype.str, "shape": found.shape}, found.tobytes())


def _decode(syntax: UID, options: dict[str, Any], stream: bytes, raw: bool) -> np.ndarray:
    if syntax == JPEGExtended12Bit and options["bits_stored"] != 8:
        return _decode_12_bit_jpeg(options, stream)
    return get_decoder(syntax).as_array(encapsulate([stream]), index=0, raw=raw, **options)[0]


def _decode_12_bit_jpeg(options: dict[str, Any], stream: bytes) -> np.ndarray:
    """Lossy JPEG of more than 8 bits, which pydicom's use of GDCM leaves out and GDCM itself can decode."""
    import gdcm

    rows, columns, signed = options["rows"], options["columns"], options["pixel_representation"]
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(stream)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, int(signed)))
    image.SetDataElement(element)
    buffer = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(buffer, "<i2" if signed else "<u2").reshape(rows, columns)


def _limit(size: int) -> None:
    """Bound the time and memory of the next frame; what goes beyond ends the process. Not on Windows."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    bounds = {resource.RLIMIT_CPU: math.ceil(used.ru_utime + used.ru_stime) + SECONDS}
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        bounds[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + 2 * size + MEMORY
    for kind, bound in bounds.items():
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))


if __name__ == "__main__":
    _serve()
