"""Restoration of scan files: read, restore, check, and write the scan with all that goes with it, or nothing.

What one scan gives, named after the restored scan NAME.nii.gz:

    NAME.nii.gz         the restored scan, on the grid and in the units of the scan
    NAME_preview.png    before, after, and what was taken away
    NAME.nii.gz.json    record: input, weights, protocol, slices, device, versions
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.batch.work import Listener, Stages, Stopwatch, Tell, finish
from hybrid.errors import OutputError, RequestError
from hybrid.memory import release_memory
from hybrid.precision.check import verdict_facts
from hybrid.records import Record, record_path, timestamp, write_bytes, write_record
from medical.files.inputs import Job, Naming, read_scan
from medical.files.outputs import (
    BESIDE,
    check_writable,
    keep_inputs,
    real_places,
    recorded_facts,
    sources_bytes,
    sources_sha256,
    written_names,
)
from medical.notice import RESEARCH_USE
from medical.restoration.loading import Restorer
from medical.restoration.preview import DETAILS, preview_png
from medical.restoration.run import Restoration, RestoreSettings, SlicePlan, check_scan, device_of, doubts, plan_slices, restore
from medical.segmentation.sliding import OnProgress
from medical.volumes.nifti_writing import Storage, write_scan
from medical.volumes.staging import staged
from medical.volumes.volume import Volume, stem

OnStart = Callable[[SlicePlan, tuple[str, ...]], None]
"""Receives how a scan is cut, and what makes its result doubtful, one sentence each."""

RESTORED = Naming(
    "restored scan",
    "_restored",
    (".nii.gz", ".nii"),
    "Name a file .nii.gz or .nii, or give a folder. DICOM is read, and not written.",
)
TASK = "restore"
_PREVIEW = "_preview.png"


@dataclass(frozen=True)
class FileSettings:
    """How scan files are restored; the same for every scan of a batch.

    Attributes:
        run: How the scan in them is.
        preview: Whether the preview is written.
        overwrite: Whether files that are there may be replaced.
        volume: Which volume of 4-D NIfTI files, from 0.
        series: Which series of DICOM folders that hold several.
    """

    run: RestoreSettings = field(default_factory=RestoreSettings)
    preview: bool = True
    overwrite: bool = False
    volume: int | None = None
    series: str | None = None

    def facts(self) -> dict[str, Any]:
        """What changes a result, as plain values."""
        return {"dtype": self.run.dtype, "tile": self.run.tile, "volume": self.volume, "series": self.series}


@dataclass(frozen=True)
class RestorationRecord(Record):
    """The record of a restoration, with what makes it repeatable.

    Attributes:
        protocol: What the network asked of the scan.
        slices: `SlicePlan` as plain values.
        settings: `FileSettings.facts`.
        options: What the network was built with beside its weights.
        bounds: The values that were 0 and 1 to the network.
        removed: Root mean square of what was taken away, in the scan's units.
        storage: Type and scaling of the written numbers.
        shape, affine: The grid of both scans; the affine maps voxels to RAS+ mm.
        outputs: Names of the files that were written.
        research_use, details: What the result is for, and what it may be wrong in.
    """

    protocol: Mapping[str, Any] = field(default_factory=dict)
    slices: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] = (0.0, 1.0)
    removed: float = 0.0
    storage: str = ""
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    outputs: tuple[str, ...] = ()
    research_use: str = RESEARCH_USE
    details: str = DETAILS


@dataclass(frozen=True)
class Outcome:
    """What one run made.

    Attributes:
        input: The scan.
        outputs: The files, the restored scan first and the record last.
        slices: The plan in one line.
        storage: Type and scaling of the written numbers.
        removed: Root mean square of what was taken away, in the scan's units.
        share: The same as a share of the range that the network saw.
        seconds: Time from reading to the last written file.
        notes: What a user should be told, one sentence each.
    """

    input: Path
    outputs: tuple[Path, ...]
    slices: str
    storage: str
    removed: float
    share: float
    seconds: float
    notes: tuple[str, ...]


def planned_outputs(job: Job, settings: FileSettings) -> tuple[Path, ...]:
    """The files that a scan gives, the restored scan first and the record last."""
    preview = [job.target.with_name(stem(job.target) + _PREVIEW)] if settings.preview else []
    return (job.target, *preview, record_path(job.target))


def check_targets(job: Job, settings: FileSettings) -> tuple[Path, ...]:
    """The files that a scan gives, once it is sure that they may be written.

    Raises:
        OutputError: One is there and may not be replaced.
        RequestError: One would take the place of the scan.
    """
    outputs = planned_outputs(job, settings)
    check_writable(outputs, job.sources, overwrite=settings.overwrite)
    return outputs


def check_jobs(jobs: Sequence[Job], settings: FileSettings) -> None:
    """Refuse scans of which one's files would take the place of another scan, or of another's files.

    Raises:
        RequestError: They would.
    """
    places = real_places([source for job in jobs for source in job.sources])
    seen: dict[str, Job] = {}
    for job in jobs:
        outputs = planned_outputs(job, settings)
        keep_inputs(outputs, places)
        for path in outputs:
            if (other := seen.setdefault(os.path.realpath(path), job)) is not job:
                raise RequestError(
                    f"{other.source} and {job.source} would both be written to {path}.", hint="Run them separately."
                )


def is_restored(path: Path) -> bool:
    """Whether a file is a result of a restoration, as its record says: what is in a folder is not restored twice."""
    return recorded_facts(record_path(path)).get("task") == TASK


def is_done(job: Job, restorer: Restorer, settings: FileSettings) -> bool:
    """Whether a run before this one wrote the same: of the same scan, by the same weights, protocol and settings.

    Raises:
        OutputError: Files are there that come of something else; they are not taken for this run's.
    """
    outputs = planned_outputs(job, settings)
    there = [path for path in outputs if path.exists()]
    if settings.overwrite or not there:
        return False
    found, source = recorded_facts(outputs[-1]), restorer.network.source
    wanted = {
        "task": TASK,
        "weights_sha256": source.sha256 if source else "",
        "options": dict(restorer.options),
        "protocol": restorer.protocol.model_dump(mode="json"),
        "settings": settings.facts(),
    }
    same = all(found.get(key) == value for key, value in json.loads(json.dumps(wanted)).items())
    complete = {path.name for path in outputs} <= written_names(found) and len(there) == len(outputs)
    if not (same and complete and found.get("input_sha256") == sources_sha256(job.sources)):
        raise OutputError(
            f"{there[0]} is there already, and not of this scan, network and settings.",
            hint="Pass --overwrite or choose another --output.",
        )
    return True


def plan_file(restorer: Restorer, job: Job, settings: FileSettings) -> tuple[Volume, SlicePlan, tuple[str, ...]]:
    """Read a scan, check that it can be restored, and cut it; and what makes its result doubtful.

    Raises:
        InputError, ResourceError: As `medical.restoration.run.restore`.
        RequestError: The request does not go with the scan.
    """
    volume = _read(restorer, job, settings)
    return volume, *_plan(restorer, volume, settings)


def _read(restorer: Restorer, job: Job, settings: FileSettings) -> Volume:
    volume = read_scan(job.sources, volume=settings.volume, series=settings.series)
    check_scan(volume, restorer.protocol, any_modality=settings.run.any_modality)
    return volume


def _plan(restorer: Restorer, volume: Volume, settings: FileSettings) -> tuple[SlicePlan, tuple[str, ...]]:
    plan = plan_slices(volume, restorer, settings.run)
    return plan, (*volume.warnings, *doubts(volume, restorer.protocol, plan))


def restore_file(
    restorer: Restorer,
    job: Job,
    settings: FileSettings | None = None,
    *,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Restore one scan; its files are written into an existing folder, all or none.

    Args:
        restorer: From `medical.restoration.loading.load_restorer`.
        job: The scan and the restored scan.
        settings: How.
        on_start: Called once the scan is read and planned, before the network runs.
        on_progress: Called with tiles done and tiles in all.

    Raises:
        InputError: The scan cannot be read, or does not suit the network.
        OutputError: The results cannot be written, or were read back otherwise than written.
        RequestError: The request does not go with the scan.
        ResourceError: It does not fit the memory.
    """

    def start(tell: Tell, plan: SlicePlan, doubtful: tuple[str, ...]) -> None:
        if on_start is not None:
            on_start(plan, doubtful)

    return finish(restore_stages(restorer, job, settings or FileSettings(), on_start=start), Listener(on_progress))


def restore_stages(
    restorer: Restorer,
    job: Job,
    settings: FileSettings,
    *,
    on_start: Callable[[Tell, SlicePlan, tuple[str, ...]], None],
) -> Stages[Outcome]:
    """What `restore_file` does, with pauses before and after the network runs, where files and memory allow it.

    Args:
        restorer, job, settings: As of `restore_file`.
        on_start: As of `restore_file`; also receives where to tell.

    Raises:
        HybridError: As `restore_file`.
    """
    started, clock = timestamp(), Stopwatch()
    outputs = check_targets(job, settings)
    apart = settings.run.memory is None and sources_bytes(job.sources) <= BESIDE

    def read() -> tuple[Volume, str, Storage]:
        volume = _read(restorer, job, settings)
        storage = Storage.of(volume) if settings.run.dtype == "source" else Storage(np.dtype(np.float32))
        return volume, sources_sha256(job.sources), storage

    if apart:
        volume, digest, storage = read()
    with clock.stopped():
        tell = yield
    if not apart:
        volume, digest, storage = read()
    plan, doubtful = _plan(restorer, volume, settings)
    with staged(outputs, overwrite=settings.overwrite) as folder:
        on_start(tell, plan, doubtful)
        result = restore(volume, restorer, settings.run, on_progress=tell.progress)
        release_memory()
        if apart:
            with clock.stopped():
                yield
        write_scan(folder / job.target.name, result.values, volume, storage)
        if settings.preview:
            picture = preview_png(volume.values[0], result.values, volume.grid, title=volume.name)
            write_bytes(folder / outputs[1].name, picture)
        seconds = clock.seconds
        record = _record(restorer, job, volume, result, settings.facts(), storage.describe(), started)
        names = tuple(path.name for path in outputs)
        record = replace(record, input_sha256=digest, outputs=names, seconds=round(seconds, 3))
        write_record(record, folder / job.target.name)
    return Outcome(job.source, outputs, plan.describe(), storage.describe(), result.removed, result.share, seconds, result.notes)


def _record(
    restorer: Restorer,
    job: Job,
    volume: Volume,
    result: Restoration,
    settings: Mapping[str, Any],
    storage: str,
    started: str,
) -> RestorationRecord:
    """The record but for what is known once the files are written."""
    network, source, grid = restorer.network, job.source, volume.grid
    weights = network.source
    return RestorationRecord(
        task=TASK,
        input=source.name or source.resolve().name,
        input_sha256="",
        output=job.target.name,
        weights=weights.file if weights else "none",
        weights_sha256=weights.sha256 if weights else "",
        weights_origin=weights.origin if weights else "none",
        family=network.card.family,
        title=weights.name if weights else network.card.title,
        device=str(device_of(restorer)),
        precision=network.precision,
        precision_check=verdict_facts(network),
        started=started,
        seconds=0.0,
        tiles=result.plan.describe(),
        notes=result.notes,
        protocol=restorer.protocol.model_dump(mode="json"),
        slices=result.plan.to_dict(),
        settings=settings,
        options=dict(restorer.options),
        bounds=result.bounds,
        removed=result.removed,
        storage=storage,
        shape=grid.shape,
        affine=tuple(tuple(row) for row in grid.affine.tolist()),
    )
