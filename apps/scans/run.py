"""Scans segmented and corrected label maps written: the files that `medical segment` writes, by the same functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from apps.scans.reading import ALL_VOLUMES
from apps.scans.session import Result, Session
from hybrid.errors import RequestError
from hybrid.records import Record, sha256_file, timestamp, write_record
from medical.files.inputs import Job
from medical.files.outputs import FileSettings
from medical.files.segment import Outcome, segment_file
from medical.models.base import SegmentationNetwork
from medical.notice import RESEARCH_USE
from medical.results.statistics import structure_statistics, write_statistics
from medical.segmentation.run import SegmentSettings
from medical.uncertainty import files as uncertainty_files
from medical.volumes.label_maps import read_label_map, write_labels
from medical.volumes.volume import NiftiOrigin, Volume, read_volume, stem

Report = Callable[[int, int], None]
_KEPT_NETWORKS = 2


@lru_cache(maxsize=_KEPT_NETWORKS)
def network_of(name: str, device: str) -> SegmentationNetwork:
    """A network of the catalogue, kept for the next scan. Runs take turns, so that none is used by two at once.

    Raises:
        WeightsError: Its weights are not on this machine. A server fetches nothing that its users ask for.
    """
    from hybrid.weights.find import Store, resolve
    from medical.loading import build, catalogue

    store = Store.from_environment(command="medical")
    found = resolve(name, None, catalogue(), store, allow_download=False)
    return build(found, device=device, precision="auto")


def settings_of(session: Session, *, uncertainty: bool, any_modality: bool = False) -> FileSettings:
    """What `medical segment` would be asked for."""
    scan = session.opened
    key = scan.key if scan.key != ALL_VOLUMES else None
    run = SegmentSettings(mirror=uncertainty, any_modality=any_modality)
    if scan.received.dicom:
        return FileSettings(run, series=key, uncertainty=uncertainty)
    return FileSettings(run, volume=int(key) if key is not None else None, uncertainty=uncertainty)


def run(session: Session, model: str, folder: Path, *, settings: FileSettings, device: str, report: Report) -> Result:
    """Segment the open scan; its files are written into an empty folder.

    Args:
        session: Its scan must be open; it is not changed.
        model: Name of the network.
        folder: For the results, outside of the scan's.
        settings: From `settings_of`.
        device: Such as ``auto``.
        report: Called with windows done and windows in all; what it raises ends the run.

    Raises:
        HybridError: As `medical.files.segment.segment_file`.
    """
    report(0, 0)
    network = network_of(model, device)
    source = session.opened.received.source
    job = Job((source,), folder / f"{stem(source)}_seg.nii.gz")
    outcome = segment_file(network, job, settings, on_progress=report)
    return _result(model, job, outcome)


def _result(model: str, job: Job, outcome: Outcome) -> Result:
    found = read_label_map(job.target)
    entropy: np.ndarray | None = None
    if outcome.uncertainty is not None:
        entropy = read_volume(job.target.with_name(stem(job.target) + uncertainty_files.MAPS[0])).values[0]
    return Result(
        model, outcome.outputs, found.labels, found.structures, outcome.notes, outcome.seconds, entropy, outcome.uncertainty
    )


def write_corrected(session: Session, folder: Path) -> tuple[Path, ...]:
    """Write the label map as it stands, with its statistics and a record that says by whom it was made: network and hand.

    Args:
        session: Its label map.
        folder: An existing folder; files of a correction before this one are replaced.

    Returns:
        The label map, its names, its DICOM SEG where the scan was DICOM, statistics, and the record last.

    Raises:
        RequestError: Nothing was corrected.
        OutputError: The folder does not take the files.
    """
    with session.lock:
        result, correction, volume = session.result, session.corrected, session.opened.volume
        labels, strokes = correction.labels.copy(), correction.strokes
    if result is None or not strokes:
        raise RequestError("Nothing was corrected.", hint="The files of the segmentation are as they are.")
    name = f"{stem(result.outputs[0])}_corrected"
    target = folder / f"{name}.nii.gz"
    note = _note(result, labels, strokes)
    write_labels(target, labels, volume, result.structures)
    files = [target, folder / f"{name}.labels.json", *_seg(folder / f"{name}.dcm", labels, volume, result)]
    figures = structure_statistics(labels, volume.grid, volume.values[0], result.structures)
    inputs = [(result.outputs[0].name, sha256_file(result.outputs[0]))]
    files += write_statistics(folder / f"{name}_statistics.csv", figures, inputs=inputs, notes=(note,))
    record = _record(result, target.name, note)
    return (*files, write_record(replace(record, figures=_changes(result, labels, strokes)), target))


def _note(result: Result, labels: np.ndarray, strokes: int) -> str:
    changed = int(np.count_nonzero(labels != result.labels))
    voxels, often = f"{changed:,} voxel{'s' * (changed != 1)}", f"{strokes} stroke{'s' * (strokes != 1)}"
    return f"Corrected by hand: {voxels} differ from the label map of {result.model}, after {often} of the brush."


def _changes(result: Result, labels: np.ndarray, strokes: int) -> dict[str, object]:
    each = {
        structure.name: {
            "added": int(np.count_nonzero((labels == structure.value) & (result.labels != structure.value))),
            "removed": int(np.count_nonzero((labels != structure.value) & (result.labels == structure.value))),
        }
        for structure in result.structures
    }
    return {"corrected_by_hand": True, "strokes": strokes, "voxels": each, "research_use": RESEARCH_USE}


def _record(result: Result, output: str, note: str) -> Record:
    """The record of the network's run, of which the corrected label map is made, turned into one of this file."""
    ours = result.outputs[0]
    made = Record.from_json(result.outputs[-1].read_text(encoding="utf-8"))
    source = f"Made from {ours.name}, which was made from {made.input} (SHA-256 {made.input_sha256})."
    return replace(
        made, task="segment, then correct by hand", input=ours.name, input_sha256=sha256_file(ours), output=output,
        started=timestamp(), seconds=0.0, notes=(note, source, *made.notes),
    )  # fmt: skip


def _seg(path: Path, labels: np.ndarray, volume: Volume, result: Result) -> list[Path]:
    """A DICOM SEG, of scans that one can refer to."""
    if isinstance(volume.origin, NiftiOrigin) or not any(output.suffix == ".dcm" for output in result.outputs):
        return []
    from medical.dicom.seg import write_seg

    made = json.loads(result.outputs[-1].read_text(encoding="utf-8"))
    algorithm, version = f"{result.model}, corrected by hand", str(made["weights_sha256"])[:12]
    return [write_seg(path, labels, volume, result.structures, algorithm=algorithm, version=version, by_hand=True)]
