"""From what a user names (files, folders of scans or pictures, DICOM folders) to scans and the label maps to write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hybrid.batch.names import check_distinct
from hybrid.errors import InputError, RequestError
from medical.pictures.reading import is_picture, read_picture_file
from medical.volumes.label_maps import names_path
from medical.volumes.volume import PICTURE_ENDINGS, Volume, is_nifti, read_volume, stack, stem

ENDINGS = (".nii.gz", ".nii", ".dcm", ".png")
"""Of files that a label map can be written to: NIfTI, or DICOM SEG alone; PNG for pictures."""
_OTHER_FILES = (".gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".zip", ".tif", ".tiff", ".npy")
"""And of files that it cannot, though people may try; without them a folder of that name would be made."""
_BESIDE_LABELS = re.compile(r"_(probabilities|entropy|mutual_information|disagreement)\.nii")
_BESIDE_PICTURES = ("_overlay.png", "_probabilities.tif")
_NO_SCANS = (".json", ".csv", ".tsv", ".txt", ".yaml", ".yml", ".md", ".png", ".jpg", ".html", ".pdf", ".xml", ".py")


@dataclass(frozen=True)
class Naming:
    """What results of scans are called.

    Attributes:
        what: For people.
        tag: Put behind the name of one that lies beside its scan, and of the folder beside a folder of scans.
        endings: Of files that it can be written to.
        hint: How to name one.
    """

    what: str
    tag: str
    endings: tuple[str, ...]
    hint: str


LABEL_MAPS = Naming("label map", "_seg", ENDINGS, "Name a file .nii.gz, .nii or .dcm, or .png for pictures, or give a folder.")


@dataclass(frozen=True)
class Job:
    """One scan and its label map, or another result.

    Attributes:
        sources: The scan: a file, a DICOM folder or a zip; several files are its channels.
        target: The label map to write; what goes with it is named after it.
    """

    sources: tuple[Path, ...]
    target: Path

    @property
    def source(self) -> Path:
        """The scan, or its first channel."""
        return self.sources[0]


def plan_jobs(
    inputs: Sequence[str],
    output: Path | None,
    *,
    stacked: bool = False,
    studies: bool = False,
    ending: str = ".nii.gz",
    naming: Naming = LABEL_MAPS,
) -> list[Job]:
    """Pair scans with label maps, or with other results that `naming` describes.

    A scan beside which its label map is to lie gives NAME_seg; in a folder of results it keeps its name, as `medical
    evaluate` expects it. A folder with DICOM files in it, or with one such sub-folder alone, is a scan. Any other folder is
    searched: every NIfTI file, DICOM zip and folder with DICOM files in it is a scan, and sub-folders are mirrored into
    `output`, or into a folder beside it named FOLDER_seg. What lies in an `output` inside the folder is no scan, nor are
    label maps of this package, nor what is hidden. The pictures of a folder count where it holds no volume: beside volumes
    they are previews.

    Args:
        inputs: Files or folders.
        output: File or folder, or None.
        stacked: The inputs are the channels of one scan.
        studies: Folders are DICOM studies of several series, of which one was chosen, and none is searched for scans.
        ending: Of the label maps, unless `output` is a file; those of pictures end in .png.
        naming: What results are called.

    Raises:
        InputError: An input is missing, or a folder holds no scan.
        RequestError: Two scans would have one label map, several are to go into one file, or a label map would take the
            place of a scan.
    """
    if stacked:
        found: list[tuple[tuple[Path, ...], Path | None]] = [(tuple(Path(text) for text in inputs), None)]
    else:
        found = [pair for text in inputs for pair in _expand(text, output, studies)]
    for sources, _ in found:
        for path in sources:
            _check_there(path)
    if output is not None and _is_other_file(output, naming):
        raise RequestError(f"{output} is no name for a {naming.what}.", hint=naming.hint)
    several = len(found) > 1 or any(root is not None for _, root in found)
    if several and output is not None and output.name.lower().endswith(naming.endings) and not output.is_dir():
        raise RequestError(f"{output} names a file, but there are {len(found)} scans.", hint="Give --output a folder.")
    jobs = [Job(sources, _target(sources[0], root, output, several, ending, naming)) for sources, root in found]
    _check_distinct(jobs)
    return jobs


def read_scan(
    sources: str | Path | Sequence[Path], *, channels: int = 1, volume: int | None = None, series: str | None = None
) -> Volume:
    """Read a scan, NIfTI, DICOM or a picture by what the files are.

    Args:
        sources: A file, a DICOM folder or a zip; or a file for each channel.
        channels: How many channels the network takes.
        volume: Which volume of a 4-D NIfTI file to take, from 0.
        series: Which series of several to take, by its number or UID.

    Raises:
        InputError: It cannot be read; see `medical.volumes.volume.read_volume` and `medical.dicom.volume.read_dicom`.
        RequestError: It holds several scans and none, or one that is not there, was chosen.
    """
    sources = [Path(sources)] if isinstance(sources, str | Path) else sources
    if len(sources) > 1:
        return stack([read_scan(source, volume=volume, series=series) for source in sources])
    (source,) = sources
    if is_picture(source):
        if volume is not None or series is not None:
            raise RequestError(f"{source.name} is a picture.", hint="Leave --volume and --series out.")
        return read_picture_file(source, channels=channels)
    if is_nifti(source) and not source.is_dir():
        if series is not None:
            raise RequestError(f"{source.name} is NIfTI and has no series.", hint="Leave --series out.")
        return read_volume(source, volume=volume, channels=channels)
    from medical.dicom.volume import is_dicom, read_dicom

    if source.suffix.lower() != ".zip" and not is_dicom(source):
        raise InputError(
            f"{source.name} is neither NIfTI nor DICOM, nor a picture.",
            hint="Give a .nii.gz file, a DICOM file, a folder or zip of such, or a PNG, TIFF or JPEG file.",
        )
    if volume is not None:
        raise RequestError(f"--volume is for 4-D NIfTI, and {source.name} is DICOM.", hint="Choose a series with --series.")
    found = read_dicom(source, series=series)
    others = [path for path in source.rglob("*") if is_nifti(path) and not path.name.startswith(".")] if source.is_dir() else []
    if not others:
        return found
    left = f"{source.name} holds NIfTI files too, which were left out: {len(others)}. They can be given by their names."
    return replace(found, warnings=(*found.warnings, left))


def _expand(text: str, output: Path | None, studies: bool) -> Iterator[tuple[tuple[Path, ...], Path | None]]:
    """Scans that one argument means, each with the folder that was searched (None for a scan named by itself)."""
    path = Path(text)
    if not path.is_dir() or studies or _holds_dicom(path):
        yield (path,), None
        return
    found = [scan for scan in _scans(path) or _pictures(path) if output is None or not _lies_in(scan, output)]
    if not found and output is not None and path.resolve() == output.resolve():
        raise RequestError(f"The output folder {output} is the input folder.", hint="Choose another --output.")
    if not found:
        raise InputError(
            f"The folder {path} holds no scan: no NIfTI file, no DICOM, and no picture.",
            hint="Check the path; NIfTI, DICOM and pictures are read.",
        )
    if len(found) == 1 and found[0].is_dir():  # the one series of a study
        yield (path,), None
    else:
        yield from (((scan,), path) for scan in found)


def _lies_in(scan: Path, folder: Path) -> bool:
    return folder.resolve() in (scan.resolve(), *scan.resolve().parents)


def _pictures(folder: Path) -> list[Path]:
    """Pictures below a folder, in order of their names, without what this package has made of others."""
    found = [path for path in sorted(folder.rglob("*")) if path.name.lower().endswith(PICTURE_ENDINGS) and path.is_file()]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    made = {path for path in shown if path.suffix.lower() == ".png" and names_path(path).is_file()}
    overlays = {path.with_name(path.name[: -len(path.suffix)] + ending) for path in made for ending in _BESIDE_PICTURES}
    return [path for path in shown if path not in made | overlays]


def _scans(folder: Path) -> list[Path]:
    """Scans below a folder but for pictures, in order of their names."""
    return list(_volumes(folder))


def _volumes(folder: Path) -> Iterator[Path]:
    from medical.dicom.files import is_other_zip

    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if _holds_dicom(path):
                yield path
            yield from _volumes(path)
        elif is_nifti(path) and not _is_result(path):
            if not path.name.lower().endswith((".img", ".img.gz")):  # its .hdr stands for both
                yield path
        elif path.suffix.lower() == ".zip" and not is_other_zip(path):
            yield path


def _is_result(path: Path) -> bool:
    """Whether it is a label map of this package, or a map beside one: no scan to segment in its turn."""
    return names_path(path.with_name(_BESIDE_LABELS.sub(".nii", path.name))).is_file()


def _holds_dicom(folder: Path) -> bool:
    """Whether a file of the folder itself is DICOM."""
    from medical.dicom.volume import is_dicom

    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return any(is_dicom(path) for path in files if not is_nifti(path) and path.suffix.lower() not in (*_NO_SCANS, ".zip"))


def _is_other_file(output: Path, naming: Naming) -> bool:
    name = output.name.lower()
    return name.endswith((*_OTHER_FILES, *_NO_SCANS, *ENDINGS)) and not name.endswith(naming.endings) and not output.is_dir()


def _target(source: Path, root: Path | None, output: Path | None, several: bool, ending: str, naming: Naming) -> Path:
    name = stem(source if source.name else source.resolve())
    ending = ".png" if is_picture(source) else ending
    if root is not None:
        base = output if output is not None else root.resolve().with_name(root.resolve().name + naming.tag)
        return base / source.relative_to(root).parent / (name + ending)
    if output is None:
        return (source if source.name else source.resolve()).with_name(name + naming.tag + ending)
    if several or output.is_dir() or not output.name.lower().endswith(naming.endings):
        return output / (name + ending)
    return output


def _check_there(path: Path) -> None:
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.", hint="Check the path.")


def _check_distinct(jobs: Sequence[Job]) -> None:
    sources = {os.path.realpath(source): source for job in jobs for source in job.sources}
    seen: dict[str, Job] = {}
    for job in jobs:
        place = os.path.realpath(job.target)
        if place in sources:
            raise RequestError(
                f"The output {job.target} is the scan {sources[place]}.", hint="Scans are never changed: choose another --output."
            )
        if place in seen:
            raise RequestError(
                f"{seen[place].source} and {job.source} would both be written to {job.target}.", hint="Run them separately."
            )
        seen[place] = job
    check_distinct((job.source, job.target) for job in jobs)
