"""Benchmark files of MATLAB: SIDD's blocks, DND's boxes, and the files that DND's server takes."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from hybrid.errors import InputError, ResourceError
from hybrid.records import write_bytes


def read_block(path: Path, place: tuple[int, int]) -> NDArray[np.uint8]:
    """One block (H, W, 3) of an array (scenes, blocks, H, W, 3) uint8 that has the name of its file.

    Raises:
        InputError: It cannot be read, or holds another type.
    """
    blocks = _array(path)
    if blocks.dtype != np.uint8:
        raise InputError(f"{path} holds {blocks.dtype}; 8 bits are needed.", hint="Download it again.")
    block: NDArray[np.uint8] = blocks[place]
    return block


def read_box(path: Path, variable: str, boxes: Path, photograph: int, box: int) -> NDArray[np.float32]:
    """One box of a noisy photograph, (h, w, 3) float32 in [0, 1].

    Args:
        path: The photograph, HDF5 of MATLAB (-v7.3), where arrays lie with their axes turned round.
        variable: Its array.
        boxes: The file with ``info.boundingboxes``.
        photograph, box: Counted from 0.

    Raises:
        InputError: A file cannot be read, or the box is not in it.
        ResourceError: h5py is not installed.
    """
    h5py = _h5py()
    try:
        with h5py.File(boxes, "r") as file:
            reference = file["info"]["boundingboxes"][0][photograph]
            rows = np.array(file[reference]).T
        # Row, column, last row, last column, counted from 1, the last ones included.
        top, left, bottom, right = (int(each) for each in rows[box])
        with h5py.File(path, "r") as file:
            picture = file[variable][:, left - 1 : right, top - 1 : bottom]
    except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"{path.name} or {boxes.name} is not as DND has it: {error}.", hint="Download it again.") from error
    if picture.shape != (3, right - left + 1, bottom - top + 1) or not picture.size:
        raise InputError(f"Box {box + 1} of {path} lies outside the picture.", hint="Download it again.")
    return np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 1, 0))


def add_to_submission(folder: Path, names: tuple[str, ...], index: int, result: NDArray[np.float32]) -> None:
    """Keep one result, and write the file of a photograph once all its boxes are there.

    The files are those of the authors' script: ``0001.mat`` and so on, each with the cells ``Idenoised`` (1, boxes) of
    float32 (h, w, 3), ``israw`` false and ``eval_version`` 1.0.

    Args:
        folder: For the files.
        names: All boxes, such as ``0001_01``, sorted.
        index: Place of this one.
        result: (h, w, 3) in [0, 1].
    """
    photograph = names[index].rpartition("_")[0]
    boxes = [name for name in names if name.rpartition("_")[0] == photograph]
    pending = folder / "boxes"
    data = io.BytesIO()
    np.save(data, result)
    write_bytes(pending / f"{names[index]}.npy", data.getvalue())
    if names[index] != boxes[-1] or not all((pending / f"{name}.npy").exists() for name in boxes):
        return
    cells = np.empty((1, len(boxes)), dtype=object)
    for place, name in enumerate(boxes):
        cells[0, place] = np.load(pending / f"{name}.npy")
    content = io.BytesIO()
    scipy.io.savemat(content, {"Idenoised": cells, "israw": False, "eval_version": "1.0"})
    write_bytes(folder / f"{photograph}.mat", content.getvalue())
    for name in boxes:
        (pending / f"{name}.npy").unlink()
    if not any(pending.iterdir()):
        pending.rmdir()


@lru_cache(maxsize=2)
def _array(path: Path) -> np.ndarray:
    try:
        held: np.ndarray = scipy.io.loadmat(path, variable_names=[path.stem])[path.stem]
    except (OSError, ValueError, KeyError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
        raise InputError(f"{path} cannot be read: {error}.", hint="Download it again.") from error
    held.setflags(write=False)
    return held


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ResourceError("DND's files are HDF5 and need h5py.", hint="Install it: pip install h5py") from error
    return h5py
