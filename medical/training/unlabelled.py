"""Scans without labels as pre-training takes them: found in a folder, made ready, kept in memory as far as it goes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid.errors import InputError, RequestError
from medical.protocol import Protocol
from medical.segmentation.preparation import check_scan, prepare
from medical.training.cases import Folder
from medical.volumes.label_maps import names_path
from medical.volumes.volume import is_nifti, read_volume, stem

log = logging.getLogger(__name__)

LABEL_FOLDERS = ("labelsTr", "labelsTs")
"""Where the Medical Segmentation Decathlon and nnU-Net keep label maps."""


def find_scans(folder: Path) -> tuple[list[Path], str]:
    """The scans of a folder, and the licence of the data ("unknown" where nothing says it).

    A folder with `dataset.json` gives the scans of its split `train`, and no others. Any other folder is searched with all
    below it for NIfTI files; hidden ones, label maps of this package and folders named as those of label maps are left out.

    Raises:
        InputError: There is no such folder, it holds no scan, or its dataset.json lists no splits.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", hint="Give --data with a folder of NIfTI files.")
    if (folder / "dataset.json").is_file():
        described = Folder.read(folder)
        return [folder / "imagesTr" / f"{name}.nii.gz" for name in described.train], described.licence
    found = [path for path in sorted(folder.rglob("*")) if is_nifti(path) and _is_scan(path.relative_to(folder), path)]
    if not found:
        raise InputError(f"The folder {folder} holds no NIfTI file.", hint="Give --data with a folder of .nii or .nii.gz files.")
    return found, "unknown"


def _is_scan(inside: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    labels = any(part in LABEL_FOLDERS for part in inside.parts) or names_path(path).is_file()
    pair = path.name.lower().endswith((".img", ".img.gz"))  # its .hdr stands for both
    return path.is_file() and not (hidden or labels or pair)


class Scans:
    """Scans made ready for a network, as a sequence of (C, i, j, k) float32.

    All are read once, so that a file that cannot be used is known before the training begins; it is left out. Those for
    which there is no room are read again each time.

    Args:
        paths: The files.
        protocol: What the network asks of a scan.
        room: Bytes for scans that are kept.

    Attributes:
        names: Of the scans that can be used.
        left_out: Those that cannot, with the reason.

    Raises:
        InputError: None can be used.
    """

    def __init__(self, paths: Sequence[Path], protocol: Protocol, room: int) -> None:
        self.protocol = protocol
        self._paths: list[Path] = []
        self._kept: dict[int, np.ndarray] = {}
        self.left_out: dict[str, str] = {}
        for path in paths:
            try:
                values = self._read(path)
            except (InputError, RequestError) as error:
                self.left_out[stem(path)] = str(error)
                log.warning("%s is left out: %s", stem(path), error)
                continue
            if (room := room - values.nbytes) >= 0:
                self._kept[len(self._paths)] = values
            self._paths.append(path)
        if not self._paths:
            first = next(iter(self.left_out.values()))
            raise InputError(f"None of {len(paths)} scans can be used. {first}", hint="Check the folder and the protocol.")
        if again := len(self._paths) - len(self._kept):
            log.warning("%d of %d scans do not fit into memory and are read each time they are drawn", again, len(self._paths))
        self.names = [stem(path) for path in self._paths]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> np.ndarray:
        return self._kept[number] if number in self._kept else self._read(self._paths[number])

    def _read(self, path: Path) -> np.ndarray:
        volume = read_volume(path, channels=len(self.protocol.channels))
        check_scan(volume, self.protocol)
        return np.ascontiguousarray(prepare(volume, self.protocol).apply(volume, self.protocol))
