"""The files that a segmentation leaves: what they are called, and whether they may be written.

What one scan gives, named after its label map NAME.nii.gz:

    NAME.nii.gz, NAME.labels.json               label map, names of its structures
    NAME.dcm                                    DICOM SEG, of DICOM scans
    NAME_probabilities.nii.gz                   where asked for
    NAME_statistics.csv, NAME_statistics.json   volume, place, intensity of each structure
    NAME_preview.png, NAME_report.html
    NAME.nii.gz.json                            record: input, weights, protocol, windows, device, versions

What an uncertain segmentation gives beside these is in `medical.uncertainty.files`, what a picture gives in
`medical.files.picture_outputs`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hybrid.errors import InputError, OutputError, RequestError
from hybrid.records import record_path, sha256_file
from medical.files.inputs import Job
from medical.files.picture_outputs import LABELS, OVERLAY, PROBABILITIES, picture_outputs
from medical.pictures.reading import PictureOrigin, is_picture
from medical.protocol import Protocol
from medical.segmentation.run import SegmentSettings
from medical.uncertainty import files as uncertainty_files
from medical.volumes.staging import check_absent
from medical.volumes.volume import NiftiOrigin, Volume, is_nifti, stem

if TYPE_CHECKING:
    from medical.dicom.deidentification import Pseudonyms

Format = Literal["nifti", "seg", "both"]
DEIDENTIFIED = "The DICOM SEG is de-identified: it refers to images de-identified under the same key, and to no others."
BESIDE = 32 * 2**20
"""Bytes of a scan's files up to which it is read, and its results are written, beside the computing of others."""
_REPORTS = ("_statistics.csv", "_statistics.json", "_preview.png", "_report.html")


@dataclass(frozen=True)
class FileSettings:
    """How scan files are segmented; the same for every scan of a batch.

    Attributes:
        run: How the scan in them is.
        format: What label maps are written as; None for NIfTI, and DICOM SEG too for DICOM scans that it can refer to.
        report: Whether statistics, preview and report are written.
        overwrite: Whether files that are there may be replaced.
        volume: Which volume of 4-D NIfTI files, from 0.
        series: Which series of DICOM folders that hold several.
        protocol: In place of the network's own.
        uncertainty: Segment by several members, and write what they agree on.
        pseudonyms: What stands for UIDs and the patient in a DICOM SEG; None leaves it those of the scan.
    """

    run: SegmentSettings = field(default_factory=SegmentSettings)
    format: Format | None = None
    report: bool = True
    overwrite: bool = False
    volume: int | None = None
    series: str | None = None
    protocol: Protocol | None = None
    uncertainty: bool = False
    pseudonyms: Pseudonyms | None = None

    def facts(self) -> dict[str, Any]:
        """What changes a label map, as plain values."""
        facts = asdict(self.run) | {"volume": self.volume, "series": self.series}
        for name in ("memory", "probabilities", "any_modality"):  # change no label
            del facts[name]
        facts |= {"uncertainty": True} if self.uncertainty else {}  # left out else, as in records of runs without it
        facts |= {"deidentified": True} if self.pseudonyms is not None else {}
        return facts | {"roi": os.path.basename(self.run.roi) if self.run.roi else None}


def planned_outputs(job: Job, settings: FileSettings) -> tuple[Path, ...]:
    """The files that a scan gives, the label map first and the record last.

    Raises:
        RequestError: DICOM SEG of a scan that is no DICOM, or a name that does not go with the format.
    """
    if is_picture(job.source):
        return _of_picture(job, settings)
    folder, name = job.target.parent, stem(job.target)
    if job.target.suffix.lower() == LABELS:
        raise RequestError(f"{job.source.name} is no picture, so its label map is no PNG.", hint=f"Name it {name}.nii.gz.")
    ends_dicom = job.target.suffix.lower() == ".dcm"
    from_dicom = not is_nifti(job.source)
    format = settings.format or ("seg" if ends_dicom else "both" if from_dicom else "nifti")
    if format != "nifti" and not from_dicom:
        raise RequestError(
            f"{job.source.name} is no DICOM, so there is no DICOM SEG of it.", hint="Use --format nifti, or give the DICOM."
        )
    if ends_dicom != (format == "seg"):
        raise RequestError(
            f"{job.target.name} is no name for the format {format}.",
            hint=f"Name it {name}{'.dcm' if format == 'seg' else '.nii.gz'}.",
        )
    files = [] if format == "seg" else [job.target, folder / f"{name}.labels.json"]
    files += [] if format == "nifti" else [folder / f"{name}.dcm"]
    files += [folder / f"{name}_probabilities.nii.gz"] if settings.run.probabilities or settings.uncertainty else []
    endings = _REPORTS if settings.report else ()
    if settings.uncertainty:
        endings = (*uncertainty_files.MAPS, *endings, *(uncertainty_files.REPORTS if settings.report else ()))
    files += [folder / f"{name}{ending}" for ending in endings]
    return (*files, record_path(files[0]))


def _of_picture(job: Job, settings: FileSettings) -> tuple[Path, ...]:
    if settings.uncertainty:
        raise RequestError(
            f"{job.source.name} is a picture, and maps of uncertainty are of volumes.", hint="Leave --uncertainty out."
        )
    if settings.format is not None:
        raise RequestError(
            f"{job.source.name} is a picture, and label maps of pictures are PNG, not {settings.format}.",
            hint="Leave --format out.",
        )
    files = picture_outputs(job.target, probabilities=settings.run.probabilities, report=settings.report)
    return (*files, record_path(files[0]))


def check_targets(job: Job, settings: FileSettings) -> tuple[Path, ...]:
    """The files that a scan gives, once it is sure that they may be written.

    Raises:
        OutputError: One is there and may not be replaced.
        RequestError: One would take the place of the scan; or as `planned_outputs`.
    """
    outputs = planned_outputs(job, settings)
    check_writable(outputs, job.sources, overwrite=settings.overwrite)
    return outputs


def check_writable(outputs: tuple[Path, ...], sources: tuple[Path, ...], *, overwrite: bool) -> None:
    """Refuse outputs that would take the place of a scan or a folder, or, unless they may be replaced, of anything.

    Raises:
        OutputError: One is a folder, or is there and may not be replaced.
        RequestError: One would take the place of the scan.
    """
    keep_inputs(outputs, real_places(sources))
    if (folder := next((path for path in outputs if path.is_dir()), None)) is not None:
        raise OutputError(f"{folder} is a folder.", hint="Choose another --output.")
    if not overwrite:
        check_absent(outputs)


def check_jobs(jobs: Sequence[Job], settings: FileSettings, *, inputs: Sequence[Path] = ()) -> None:
    """Refuse scans of which one's files would take the place of another scan, of another's files, or of `inputs`.

    Raises:
        RequestError: They would.
    """
    places = real_places([*inputs, *(source for job in jobs for source in job.sources)])
    seen: dict[str, Job] = {}
    for job in jobs:
        try:
            outputs = planned_outputs(job, settings)
        except RequestError:  # told when its turn comes; the others go on
            continue
        keep_inputs(outputs, places)
        for path in outputs:
            if (other := seen.setdefault(os.path.realpath(path), job)) is not job:
                raise RequestError(
                    f"{other.source} and {job.source} would both be written to {path}.", hint="Run them separately."
                )


def possible_outputs(
    outputs: tuple[Path, ...], volume: Volume, settings: FileSettings
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The outputs without a DICOM SEG that nobody asked for by name and that cannot refer to its series; and a note of it.

    Raises:
        OutputError: It was asked for.
    """
    if isinstance(volume.origin, NiftiOrigin | PictureOrigin) or not any(path.suffix == ".dcm" for path in outputs):
        return outputs, ()
    from medical.dicom.seg import INSTEAD, obstacle

    if (fault := obstacle(volume)) is None:
        return outputs, ()
    if settings.format is not None or outputs[0].suffix == ".dcm":
        raise OutputError(fault, hint=INSTEAD)
    return tuple(path for path in outputs if path.suffix != ".dcm"), (f"No DICOM SEG was written. {fault}",)


def already_done(job: Job, settings: FileSettings, wanted: Mapping[str, Any]) -> bool:
    """Whether a run before this one wrote the same: of the same scan, and with the facts that are wanted in its record.

    Raises:
        OutputError: Files are there that come of something else; they are not taken for this run's.
    """
    outputs = planned_outputs(job, settings)
    if settings.overwrite or not any(path.exists() for path in outputs):
        return False
    found = recorded_facts(outputs[-1])
    plain = json.loads(json.dumps(wanted))  # tuples are lists in the record
    same = all(found.get(key) == value for key, value in plain.items())
    written = written_names(found) if same else set()
    asked = {path.name for path in outputs if settings.format is not None or path.suffix != ".dcm"}
    complete = asked <= written and all((outputs[0].parent / name).exists() for name in written)
    if not complete or found.get("input_sha256") != sources_sha256(job.sources):
        raise OutputError(
            f"{next(path for path in outputs if path.exists())} is there already, and not of this scan, network and settings.",
            hint="Pass --overwrite or choose another --output.",
        )
    return True


def sources_sha256(sources: tuple[Path, ...]) -> str:
    """The hash of a scan: of its file, or of the hashes of its files, in rising order.

    Raises:
        InputError: A file cannot be read, or is gone.
    """
    try:
        digests = [sha256_file(file) for file in _files_of(sources)]
    except OSError as error:
        raise InputError(f"{sources[0].name} could not be read: {error.strerror}.", hint="Check its files.") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def sources_bytes(sources: tuple[Path, ...]) -> int:
    """The size of a scan's files; 0 where they cannot be looked at, which reading them will tell."""
    try:
        return sum(file.stat().st_size for file in _files_of(sources))
    except OSError:
        return 0


def _files_of(sources: tuple[Path, ...]) -> list[Path]:
    return [file for source in sources for file in ([source] if source.is_file() else _visible(source))]


def orphans(job: Job, outputs: tuple[Path, ...]) -> tuple[Path, ...]:
    """What the record to be replaced says was written with it, and is not written now: it would seem to be of this run."""
    folder, name = outputs[0].parent, stem(job.target)
    endings = (".nii.gz", ".nii", ".labels.json", ".dcm", "_probabilities.nii.gz", *_REPORTS, LABELS, OVERLAY, PROBABILITIES)
    uncertain = (*uncertainty_files.MAPS, *uncertainty_files.REPORTS)
    ours = {f"{name}{ending}" for ending in (*endings, *uncertain)} & written_names(recorded_facts(outputs[-1]))
    found = [folder / each for each in sorted(ours - {path.name for path in outputs})]
    kept = real_places(job.sources)
    return tuple(path for path in found if os.path.realpath(path) not in kept)


def recorded_facts(record: Path) -> dict[str, Any]:
    """What a record says; nothing where there is none that can be read."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def written_names(recorded: Mapping[str, Any]) -> set[str]:
    """Names of the files that a record says were written."""
    names = recorded.get("outputs")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def real_places(sources: Iterable[Path]) -> dict[str, Path]:
    """Where inputs truly lie."""
    return {os.path.realpath(source): source for source in sources}


def keep_inputs(outputs: Sequence[Path], inputs: Mapping[str, Path]) -> None:
    """Refuse outputs that are an input, or that would lie among the files of one, where they could replace a slice.

    Raises:
        RequestError: One is or would.
    """
    for path in outputs:
        place = Path(os.path.realpath(path))
        if (source := inputs.get(str(place))) is not None:
            raise RequestError(
                f"The output {path} is the input {source}.", hint="Inputs are never changed: choose another --output."
            )
        if (folder := next((inputs[str(each)] for each in place.parents if str(each) in inputs), None)) is not None:
            raise RequestError(
                f"The output {path} would lie in {folder}, the folder of the scan.", hint="Choose an --output outside of it."
            )


def _visible(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
