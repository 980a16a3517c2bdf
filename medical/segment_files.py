"""Segmentation of scan files: read, segment, check, and write the label map with all that goes with it, or nothing.

`medical.segment_outputs` says what the files are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.memory import release_memory
from hybrid.records import Record, timestamp, write_bytes, write_record
from medical.inputs import Job, read_scan
from medical.label_maps import write_labels, write_probabilities
from medical.loading import catalogue
from medical.models.base import SegmentationNetwork
from medical.notice import RESEARCH_USE
from medical.protocol import Protocol
from medical.segment_outputs import FileSettings, already_done, check_targets, orphans, possible_outputs, sources_sha256
from medical.segmentation import Segmentation, protocol_of, segment
from medical.sliding import OnProgress, device_of
from medical.staging import staged
from medical.statistics import StructureFigures, structure_statistics, write_statistics
from medical.volumes import Volume, stem

if TYPE_CHECKING:
    from medical.report import ModelFacts


@dataclass(frozen=True)
class SegmentationRecord(Record):
    """The record of a segmentation, with what makes it repeatable.

    Attributes:
        protocol: What the network asked of the scan.
        windows: `medical.sliding.WindowPlan` as plain values.
        settings: `FileSettings.facts`.
        options: What the network was built with beside its weights.
        way: The geometric steps in one line.
        shape, affine: The grid of scan and label map; the affine maps voxels to RAS+ mm.
        outputs: Names of the files that were written.
        research_use: What the result is for.
    """

    protocol: Mapping[str, Any] = field(default_factory=dict)
    windows: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    way: str = ""
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    outputs: tuple[str, ...] = ()
    research_use: str = RESEARCH_USE


@dataclass(frozen=True)
class Outcome:
    """What one run made.

    Attributes:
        input: The scan.
        outputs: The files, the label map first and the record last.
        figures: Of each structure.
        windows: The window plan in one line.
        way: The geometric steps in one line.
        seconds: Time from reading to the last written file.
        notes: What a user should be told, one sentence each.
    """

    input: Path
    outputs: tuple[Path, ...]
    figures: tuple[StructureFigures, ...]
    windows: str
    way: str
    seconds: float
    notes: tuple[str, ...]


def is_done(job: Job, network: SegmentationNetwork, settings: FileSettings) -> bool:
    """Whether a run before this one wrote the same: of the same scan, by the same weights, protocol and settings.

    Raises:
        OutputError: Files are there that come of something else; they are not taken for this run's.
    """
    wanted = {
        "weights_sha256": network.source.sha256 if network.source else "",
        "options": network.options(),
        "protocol": protocol_of(network, settings.protocol).model_dump(mode="json"),
        "settings": settings.facts(),
    }
    return already_done(job, settings, wanted)


def segment_file(
    network: SegmentationNetwork,
    job: Job,
    settings: FileSettings | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Segment one scan; its files are written into an existing folder, all or none.

    Args:
        network: From `medical.load_model`.
        job: The scan and its label map.
        settings: How.
        on_progress: Called with windows done and windows in all.

    Raises:
        InputError: The scan cannot be read or segmented.
        OutputError: The results cannot be written, or were read back otherwise than written.
        RequestError: The request does not go with the scan or the network.
        ResourceError: It does not fit the memory.
    """
    settings = settings or FileSettings()
    started, clock = timestamp(), time.perf_counter()
    outputs = check_targets(job, settings)
    protocol = protocol_of(network, settings.protocol)
    volume = read_scan(job.sources, channels=len(protocol.channels), volume=settings.volume, series=settings.series)
    digest = sources_sha256(job.sources)
    outputs, notes = possible_outputs(outputs, volume, settings)
    with staged(outputs, overwrite=settings.overwrite, orphans=orphans(job, outputs)) as folder:
        result = segment(volume, network, settings.run, protocol=protocol, scratch=folder, on_progress=on_progress)
        result = replace(result, notes=(*result.notes, *notes))
        release_memory()
        figures = tuple(structure_statistics(result.labels, volume.grid, volume.values[0], result.structures))
        names = tuple(path.name for path in outputs)
        done = _Run(network, job, settings, protocol, volume, result, figures, names, digest, started)
        done.write_maps(folder)
        record = done.record(time.perf_counter() - clock)
        if settings.report:
            done.write_report(folder, record)
        write_record(record, folder / names[0])
    seconds = time.perf_counter() - clock
    return Outcome(job.source, outputs, figures, result.plan.describe(), result.way, seconds, result.notes)


@dataclass(frozen=True, eq=False)
class _Run:
    """All that is known of a run once the label map is there."""

    network: SegmentationNetwork
    job: Job
    settings: FileSettings
    protocol: Protocol
    volume: Volume
    result: Segmentation
    figures: tuple[StructureFigures, ...]
    names: tuple[str, ...]
    digest: str
    started: str

    def write_maps(self, folder: Path) -> None:
        """Label map, SEG and probabilities, as far as they are among the outputs."""
        result, volume, weights = self.result, self.volume, self.network.source
        for name in self.names:
            if name == self.job.target.name and not name.endswith(".dcm"):
                write_labels(folder / name, result.labels, volume, result.structures)
            elif name.endswith(".dcm"):
                from medical.dicom_seg import write_seg

                algorithm = weights.name if weights else self.network.card.title
                version = weights.sha256[:12] if weights else "unknown"
                write_seg(folder / name, result.labels, volume, result.structures, algorithm=algorithm, version=version)
            elif name.endswith("_probabilities.nii.gz") and result.probabilities is not None:
                write_probabilities(folder / name, result.probabilities, volume)

    def record(self, seconds: float) -> SegmentationRecord:
        """The record, but for the seconds that it takes to write the report."""
        weights, source, grid = self.network.source, self.job.source, self.volume.grid
        return SegmentationRecord(
            task="segment",
            input=source.name or source.resolve().name,
            input_sha256=self.digest,
            output=self.names[0],
            weights=weights.file if weights else "none",
            weights_sha256=weights.sha256 if weights else "",
            weights_origin=weights.origin if weights else "none",
            family=self.network.card.family,
            title=weights.name if weights else self.network.card.title,
            device=str(device_of(self.network)),
            precision=self.network.precision,
            started=self.started,
            seconds=round(seconds, 3),
            tiles=self.result.plan.describe(),
            notes=self.result.notes,
            protocol=self.protocol.model_dump(mode="json"),
            windows=self.result.plan.to_dict(),
            settings=self.settings.facts(),
            options=self.network.options(),
            way=self.result.way,
            shape=grid.shape,
            affine=tuple(tuple(row) for row in grid.affine.tolist()),
            outputs=self.names,
        )

    def write_report(self, folder: Path, record: SegmentationRecord) -> None:
        """Statistics, preview and report."""
        from medical.preview import preview_png
        from medical.report import RunFacts, ScanFacts, write_report

        volume, result, name = self.volume, self.result, stem(self.job.target)
        inputs = [(record.input, self.digest)]
        write_statistics(folder / f"{name}_statistics.csv", self.figures, inputs=inputs, notes=record.notes)
        picture = preview_png(
            volume.values[0], result.labels, volume.grid, result.structures, figures=self.figures, title=volume.name
        )
        write_bytes(folder / f"{name}_preview.png", picture)
        settings: dict[str, object] = {
            "Windows": record.tiles, "Geometry": record.way, "Computed": f"on {record.device} in {record.precision}",
        }  # fmt: skip
        settings |= {key: value for key, value in record.settings.items() if value not in (None, False)}
        facts = RunFacts(
            model=_model_facts(self.network, self.protocol),
            settings=settings,
            notes=tuple(note for note in result.notes if note not in volume.warnings),
            started=record.started,
            seconds=record.seconds,
        )
        scan = ScanFacts.of(volume, self.digest)
        write_report(folder / f"{name}_report.html", scan=scan, figures=self.figures, preview=picture, facts=facts)


def _model_facts(network: SegmentationNetwork, protocol: Protocol) -> ModelFacts:
    from medical.report import ModelFacts

    source, card = network.source, network.card
    if source is None:
        return ModelFacts(card.title, card.title, card.paper, protocol=protocol)
    known = catalogue().entry(source.name) if source.origin != "file" else None
    return ModelFacts(
        source.name, card.title, card.paper, source.file, source.sha256,
        known.weights_licence if known else "unknown", known.training_data if known else "unknown", protocol,
    )  # fmt: skip
