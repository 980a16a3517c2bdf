"""The containers in which checkpoints come, read without running anything that they hold, and the one that is written.

Read are safetensors and the two formats of ``torch.save``: a zip archive since torch 1.6, a row of pickles before.
Written is safetensors.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybrid.errors import OutputError, WeightsError
from hybrid.records import replacing

_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
# Plain facts that training scripts store beside the weights (a best score, the command line); building them runs no code.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *[(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    *[type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")],
]
# What torch.load lets through from its own parsing of a damaged file, besides UnpicklingError.
_DAMAGE = (
    *(RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError),
    *(AssertionError, OverflowError, struct.error, MemoryError),  # the last where a length in the file is absurd
)
GET_AGAIN = "Download the file again and compare its size with the publisher's page."
_SAVE_PLAIN = "Ask its author for a state dict or a .safetensors file, which hold tensors and nothing else."


def read_container(path: Path) -> tuple[object, dict[str, str]]:
    """What a checkpoint file holds, and the text entries of its header. The format is told from the content.

    Files in torch's zip format are mapped, not copied.

    Raises:
        WeightsError: The file is empty, damaged, of another kind, compressed, or wants to run code.
        OSError: The file cannot be opened.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(512)
    if _is_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        return _read_torch(path, mmap=True), {}
    if head.startswith(_LEGACY_MAGIC):
        return _read_torch(path, mmap=False), {}
    raise _foreign(path.name, head)


def write_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, half: bool = False
) -> None:
    """Write tensors as safetensors, whole or not at all; the same tensors give the same bytes.

    Args:
        path: File to write.
        state: Name to tensor; tensors that share memory are written one by one.
        metadata: Text entries for the header.
        half: Store floating-point tensors as float16.

    Raises:
        OutputError: The folder does not take the file, or a value is too large for float16.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        narrow = half and tensor.is_floating_point()
        stored = tensor.detach().to("cpu", torch.float16 if narrow else tensor.dtype, copy=True).contiguous()
        if narrow and bool((stored.isinf() & tensor.detach().cpu().isfinite()).any()):
            raise OutputError(f"{name} holds values too large for float16.", hint="Write the weights with half=False.")
        tensors[name] = stored
    blob = _ordered_header(safetensors.torch.save(tensors, dict(metadata or {})))
    try:
        with replacing(path) as part:
            part.write_bytes(blob)
    except OSError as error:
        raise OutputError(f"{path.name} could not be written: {error.strerror}.", hint="Choose another folder.") from error


def few(names: list[str], count: int = 4) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, dict(stream.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path.name} is a damaged safetensors file ({error}).", hint=GET_AGAIN) from error


def _check_zip(path: Path, size: int) -> None:
    """Refuse archives that torch would misread or that unpack to more than they hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path.name} is damaged or not complete ({error}).", hint=GET_AGAIN) from error
    names = [entry.filename for entry in entries]
    if inside := [name for name in names if name.endswith((".pth", ".pt", ".ckpt", ".safetensors"))]:
        raise WeightsError(f"{path.name} is an archive of several files.", hint=f"Unpack it and give one: {few(inside)}.")
    if not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(f"{path.name} is a zip archive, but no checkpoint.", hint=GET_AGAIN)
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path.name} is refused: it is a TorchScript program, not weights.", hint=_SAVE_PLAIN)
    # torch stores its entries uncompressed, and maps them as they lie in the file: deflated ones would come out as noise.
    if sum(entry.file_size for entry in entries) > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(
            f"{path.name} is refused: it is compressed or claims more bytes than it holds, which torch.save never does.",
            hint=GET_AGAIN,
        )


def _read_torch(path: Path, *, mmap: bool) -> object:
    # torch takes a path that ends so for safetensors without looking into the file; from a stream it cannot map.
    misnamed = path.suffix == ".safetensors"
    try:
        with torch.serialization.safe_globals(_HARMLESS), path.open("rb") as stream:
            return torch.load(stream if misnamed else path, map_location="cpu", weights_only=True, mmap=mmap and not misnamed)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)|function (\S+)|class (\S+)", str(error))
        if not wanted:
            raise WeightsError(f"{path.name} is damaged; nothing in it was run.", hint=GET_AGAIN) from error
        what = next(group for group in wanted.groups() if group)
        raise WeightsError(
            f"{path.name} is refused: file wants to execute code when opened ({what}); nothing was run.", hint=_SAVE_PLAIN
        ) from error
    except _DAMAGE as error:
        raise WeightsError(f"{path.name} is damaged or not complete ({type(error).__name__}).", hint=GET_AGAIN) from error


def _foreign(name: str, head: bytes) -> WeightsError:
    """What a file is that is no checkpoint, as far as its first bytes tell."""
    text = head.lstrip().lower()
    if not head:
        what = "is empty: its download or copy failed"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "is a web page that was saved instead of the file"
    elif text.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the file that it stands for"
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        what = "is refused: it is a Python pickle that torch did not write, and such a file may execute code; nothing was run"
    else:
        what = "is no checkpoint: neither safetensors nor a file of torch.save"
    return WeightsError(f"{name} {what}.", hint=GET_AGAIN)


def _ordered_header(blob: bytes) -> bytes:
    """Sort the header of a safetensors file, whose metadata the library writes in random order."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data to 8 bytes
    return len(text).to_bytes(8, "little") + text + blob[8 + length :]
