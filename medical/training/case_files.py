"""Where the scans and label maps of a training lie: NIfTI or pictures, by a data set's description or in plain folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_specs import SegmentationSpec, find_volumes
from data_specs.files import PICTURE_SUFFIXES
from hybrid.errors import InputError
from medical.files.inputs import read_scan
from medical.pictures.label_maps import read_label_picture
from medical.pictures.reading import PictureOrigin, of_picture
from medical.volumes.geometry import Grid
from medical.volumes.volume import Volume, read_volume

FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
"""Of scans and label maps: as in the Medical Segmentation Decathlon, and as pictures mostly lie."""
ENDINGS = (".nii.gz", ".nii", *PICTURE_SUFFIXES)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        images: The scan; several files are its channels.
        labels: Its label map.
        meanings: What the values of label pictures stand for, where they are not the labels themselves.
    """

    images: tuple[Path, ...]
    labels: Path
    meanings: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path, name: str, meanings: Mapping[int, int]) -> CaseFiles:
        """The files of a case in `FOLDERS`, NIfTI before pictures.

        Raises:
            InputError: There are none; or one of the two is missing.
        """
        for images, labels in FOLDERS:
            scan, painted = _file(folder / images, name), _file(folder / labels, name)
            if scan is not None and painted is not None:
                return cls((scan,), painted, meanings)
        looked = " and ".join(f"{images}/{name} with {labels}/{name}" for images, labels in FOLDERS)
        raise InputError(f"{folder.name} has no scan and label map of {name}: looked for {looked}.", hint="Complete the folder.")

    def read(self, channels: int) -> tuple[Volume, Volume]:
        """The scan and its label map, as a scan with the labels as values.

        Raises:
            InputError: A file is damaged, or a picture and its label map differ in size.
        """
        scan = read_scan(self.images, channels=channels)
        if not of_picture(scan):
            return scan, read_volume(self.labels)
        found = read_label_picture(self.labels, self.meanings)
        if found.labels.shape != scan.grid.shape:
            sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (scan.grid.shape, found.labels.shape))
            raise InputError(f"{self.images[0].name} and its label map differ in size: {sizes} pixels.", hint="Correct the case.")
        grid = Grid(scan.grid.shape, scan.grid.affine)
        return scan, Volume(found.labels[None], grid, scan.name, PictureOrigin(self.labels))


def spec_files(spec: SegmentationSpec, data: Path, split: str) -> dict[str, CaseFiles]:
    """The files of a split of a described data set, by the names of its cases.

    Raises:
        RequestError, InputError: As `data_specs.find_volumes`.
    """
    return {case.name: CaseFiles(case.images, case.labels, spec.label_values) for case in find_volumes(spec, data, split).cases}


def _file(folder: Path, name: str) -> Path | None:
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)
