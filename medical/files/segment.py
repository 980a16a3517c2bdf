"""Segmentation of scan files: read, segment, check, and write the label map with all that goes with it, or nothing.

`medical.files.outputs` says what the files are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.batch.work import Listener, Stages, Stopwatch, Tell, finish
from hybrid.memory import release_memory
from hybrid.precision.check import verdict_facts
from hybrid.records import Record, timestamp, write_bytes, write_record
from medical.files.inputs import Job, read_scan
from medical.files.outputs import (
    BESIDE,
    DEIDENTIFIED,
    FileSettings,
    already_done,
    check_targets,
    orphans,
    possible_outputs,
    sources_bytes,
    sources_sha256,
)
from medical.files.picture_outputs import write_picture_outputs
from medical.loading import catalogue
from medical.models.base import SegmentationNetwork
from medical.notice import RESEARCH_USE
from medical.pictures.reading import PictureOrigin
from medical.pictures.statistics import PictureFigures, picture_statistics
from medical.protocol import Protocol
from medical.results.statistics import StructureFigures, structure_statistics, write_statistics
from medical.segmentation.preparation import Preparation, doubts
from medical.segmentation.run import Segmentation, plan_volume, protocol_of, segment
from medical.segmentation.sliding import OnProgress, WindowPlan, check_memory, device_of
from medical.uncertainty import files as uncertainty_files
from medical.uncertainty.ensemble import Member, UncertainSegmentation, check_ensemble, plan_members, segment_with_uncertainty
from medical.uncertainty.figures import UncertaintyFigures, uncertainty_figures
from medical.volumes.label_maps import write_labels, write_probabilities
from medical.volumes.staging import staged
from medical.volumes.volume import Volume, stem

if TYPE_CHECKING:
    from medical.results.report import ModelFacts

OnStart = Callable[[Preparation, WindowPlan, tuple[str, ...]], None]
"""Receives the way of a scan to the network, the windows over it, and what makes its result doubtful, one sentence each."""


@dataclass(frozen=True)
class SegmentationRecord(Record):
    """The record of a segmentation, with what makes it repeatable.

    Attributes:
        protocol: What the network asked of the scan.
        windows: `medical.segmentation.sliding.WindowPlan` as plain values.
        settings: `FileSettings.facts`.
        options: What the network was built with beside its weights.
        way: The geometric steps in one line.
        shape, affine: The grid of scan and label map; the affine maps voxels to RAS+ mm. Pictures have rows and columns, and
            no affine.
        outputs: Names of the files that were written.
        members: Of an uncertain segmentation: the weights of each, and how its scan was mirrored.
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
    members: tuple[Mapping[str, Any], ...] = ()
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
        uncertainty: Figures of an uncertain segmentation.
    """

    input: Path
    outputs: tuple[Path, ...]
    figures: tuple[StructureFigures, ...] | tuple[PictureFigures, ...]
    windows: str
    way: str
    seconds: float
    notes: tuple[str, ...]
    uncertainty: UncertaintyFigures | None = None


def is_done(
    job: Job, network: SegmentationNetwork, settings: FileSettings, *, ensemble: Sequence[SegmentationNetwork] = ()
) -> bool:
    """Whether a run before this one wrote the same: of the same scan, by the same weights, protocol and settings.

    Raises:
        OutputError: Files are there that come of something else; they are not taken for this run's.
    """
    wanted: dict[str, Any] = {
        "weights_sha256": network.source.sha256 if network.source else "",
        "options": network.options(),
        "protocol": protocol_of(network, settings.protocol).model_dump(mode="json"),
        "settings": settings.facts(),
    }
    if settings.uncertainty:
        wanted["members"] = [member.to_dict() for member in members_of((network, *ensemble), settings)]
    return already_done(job, settings, wanted)


def segment_file(
    network: SegmentationNetwork,
    job: Job,
    settings: FileSettings | None = None,
    *,
    ensemble: Sequence[SegmentationNetwork] = (),
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Segment one scan; its files are written into an existing folder, all or none.

    Args:
        network: From `medical.load_model`.
        job: The scan and its label map.
        settings: How.
        ensemble: Further networks, of an uncertain segmentation.
        on_start: Called once the scan is read and planned, before the network runs.
        on_progress: Called with windows done and windows in all.

    Raises:
        InputError: The scan cannot be read or segmented.
        OutputError: The results cannot be written, or were read back otherwise than written.
        RequestError: The request does not go with the scan or the network.
        ResourceError: It does not fit the memory.
    """

    def start(tell: Tell, way: Preparation, plan: WindowPlan, doubtful: tuple[str, ...]) -> None:
        if on_start is not None:
            on_start(way, plan, doubtful)

    stages = segment_stages(network, job, settings or FileSettings(), ensemble=ensemble, on_start=start)
    return finish(stages, Listener(on_progress))


def segment_stages(
    network: SegmentationNetwork,
    job: Job,
    settings: FileSettings,
    *,
    on_start: Callable[[Tell, Preparation, WindowPlan, tuple[str, ...]], None],
    ensemble: Sequence[SegmentationNetwork] = (),
) -> Stages[Outcome]:
    """What `segment_file` does, with pauses before and after the network runs, where files and memory allow it.

    Args:
        network, job, settings, ensemble: As of `segment_file`.
        on_start: As of `segment_file`; also receives where to tell.

    Raises:
        HybridError: As `segment_file`.
    """
    started, clock = timestamp(), Stopwatch()
    outputs = check_targets(job, settings)
    protocol = protocol_of(network, settings.protocol)

    def read() -> tuple[Volume, str]:
        volume = read_scan(job.sources, channels=len(protocol.channels), volume=settings.volume, series=settings.series)
        return volume, sources_sha256(job.sources)

    apart = settings.run.memory is None and sources_bytes(job.sources) <= BESIDE
    if apart:
        volume, digest = read()
    with clock.stopped():
        tell = yield
    if not apart:
        volume, digest = read()
    outputs, notes = possible_outputs(outputs, volume, settings)
    if settings.pseudonyms is not None and any(path.suffix == ".dcm" for path in outputs):
        notes = (*notes, DEIDENTIFIED)
    with staged(outputs, overwrite=settings.overwrite, orphans=orphans(job, outputs)) as folder:
        way, plan = plan_volume(volume, network, settings.run, protocol)
        check_memory(plan, device_of(network), settings.run.memory, reserve=way.prepared_bytes(len(volume.values)))
        on_start(tell, way, plan, (*volume.warnings, *doubts(volume, protocol, way)))
        result = _segmented(volume, (network, *ensemble), settings, folder, tell.progress)
        result = replace(result, notes=(*result.notes, *notes))
        release_memory()
        if apart:
            with clock.stopped():
                yield
        figures = _figures(volume, result)
        names = tuple(path.name for path in outputs)
        done = _Run(network, job, settings, protocol, volume, result, figures, names, digest, started)
        done.write_maps(folder)
        record = done.record(clock.seconds)
        if settings.report and not done.of_picture:
            done.write_report(folder, record)
        write_record(record, folder / names[0])
    return Outcome(
        job.source, outputs, figures, result.plan.describe(), result.way, clock.seconds, result.notes, done.uncertainty
    )


def members_of(networks: Sequence[SegmentationNetwork], settings: FileSettings) -> tuple[Member, ...]:
    """The members of an uncertain segmentation.

    Raises:
        RequestError: There are less than two, or they were not trained for one task.
    """
    return plan_members(networks, check_ensemble(networks, settings.protocol), mirror=settings.run.mirror)


def _segmented(
    volume: Volume,
    networks: Sequence[SegmentationNetwork],
    settings: FileSettings,
    scratch: Path,
    on_progress: OnProgress | None,
) -> Segmentation:
    if settings.uncertainty:
        return segment_with_uncertainty(
            volume, networks, settings.run, protocol=settings.protocol, scratch=scratch, on_progress=on_progress
        )
    return segment(volume, networks[0], settings.run, protocol=settings.protocol, scratch=scratch, on_progress=on_progress)


@dataclass(frozen=True, eq=False)
class _Run:
    """All that is known of a run once the label map is there."""

    network: SegmentationNetwork
    job: Job
    settings: FileSettings
    protocol: Protocol
    volume: Volume
    result: Segmentation
    figures: tuple[StructureFigures, ...] | tuple[PictureFigures, ...]
    names: tuple[str, ...]
    digest: str
    started: str

    @cached_property
    def uncertainty(self) -> UncertaintyFigures | None:
        if not isinstance(self.result, UncertainSegmentation):
            return None
        return uncertainty_figures(self.result, self.volume.grid)

    @property
    def of_picture(self) -> bool:
        return isinstance(self.volume.origin, PictureOrigin)

    def write_maps(self, folder: Path) -> None:
        """Label map, SEG and probabilities, as far as they are among the outputs; all that goes with a picture."""
        result, volume, weights = self.result, self.volume, self.network.source
        if self.of_picture:
            figures = [row for row in self.figures if isinstance(row, PictureFigures)]
            write_picture_outputs(folder, self.names, volume, self.protocol, result, figures)
            return
        for name in self.names:
            if name == self.job.target.name and not name.endswith(".dcm"):
                write_labels(folder / name, result.labels, volume, result.structures)
            elif name.endswith(".dcm"):
                from medical.dicom.deidentification import deidentified
                from medical.dicom.seg import write_seg

                algorithm = weights.name if weights else self.network.card.title
                version = weights.sha256[:12] if weights else "unknown"
                named = deidentified(volume, self.settings.pseudonyms) if self.settings.pseudonyms else volume
                write_seg(folder / name, result.labels, named, result.structures, algorithm=algorithm, version=version)
            elif name.endswith("_probabilities.nii.gz") and result.probabilities is not None:
                write_probabilities(folder / name, result.probabilities, volume)
        if isinstance(result, UncertainSegmentation):
            uncertainty_files.write_maps(folder, stem(self.job.target), result, volume)

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
            shape=grid.shape[:2] if self.of_picture else grid.shape,
            affine=() if self.of_picture else tuple(tuple(row) for row in grid.affine.tolist()),
            outputs=self.names,
            members=tuple(member.to_dict() for member in getattr(self.result, "members", ())),
            precision_check=verdict_facts(self.network),
        )

    def write_report(self, folder: Path, record: SegmentationRecord) -> None:
        """Statistics, preview and report."""
        from medical.results.preview import preview_png
        from medical.results.report import RunFacts, ScanFacts, write_report

        volume, result, name = self.volume, self.result, stem(self.job.target)
        inputs = [(record.input, self.digest)]
        figures = [row for row in self.figures if isinstance(row, StructureFigures)]
        write_statistics(folder / f"{name}_statistics.csv", figures, inputs=inputs, notes=record.notes)
        picture = preview_png(volume.values[0], result.labels, volume.grid, result.structures, figures=figures, title=volume.name)
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
        more = ""
        if isinstance(result, UncertainSegmentation) and self.uncertainty is not None:
            more = uncertainty_files.write_figures(folder, name, result, volume, self.uncertainty, inputs)
        scan = ScanFacts.of(volume, self.digest)
        write_report(folder / f"{name}_report.html", scan=scan, figures=figures, preview=picture, facts=facts, more=more)


def _figures(volume: Volume, result: Segmentation) -> tuple[StructureFigures, ...] | tuple[PictureFigures, ...]:
    if isinstance(volume.origin, PictureOrigin):
        return tuple(picture_statistics(result.labels, result.structures, volume.origin.pixel_mm))
    return tuple(structure_statistics(result.labels, volume.grid, volume.values[0], result.structures))


def _model_facts(network: SegmentationNetwork, protocol: Protocol) -> ModelFacts:
    from medical.results.report import ModelFacts

    source, card = network.source, network.card
    if source is None:
        return ModelFacts(card.title, card.title, card.paper, protocol=protocol)
    known = catalogue().entry(source.name) if source.origin != "file" else None
    return ModelFacts(
        source.name, card.title, card.paper, source.file, source.sha256,
        known.weights_licence if known else "unknown", known.training_data if known else "unknown", protocol,
    )  # fmt: skip
