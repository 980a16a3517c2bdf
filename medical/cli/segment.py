"""What `medical segment` does with its request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError
from rich.console import Console

from hybrid.batch.engine import Batch, Engine, Local, Made, run_batch
from hybrid.batch.options import BatchOptions
from hybrid.batch.place import Place, open_place, output_folder
from hybrid.batch.telling import Failure, raise_failures, tell_failure
from hybrid.console import format_duration, messages, progress_on, results
from hybrid.devices import set_threads
from hybrid.errors import HybridError, InputError, RequestError
from hybrid.loading import portable_source
from hybrid.memory import format_size, parse_size
from hybrid.plain_yaml import parse_yaml, read_yaml
from hybrid.remote import Mirror, localised
from medical.cli.batch import REMOTE_ENDINGS, ScanWatcher
from medical.files.batch import Networks, SegmentRecipe, SegmentWorker, items_of, options_of
from medical.files.inputs import Job, plan_jobs, read_scan
from medical.files.outputs import FileSettings, Format, check_jobs, check_targets, possible_outputs
from medical.files.segment import Outcome, members_of
from medical.loading import build, find_weights
from medical.models.base import SegmentationNetwork
from medical.notice import RESEARCH_USE
from medical.protocol import Protocol
from medical.segmentation.preparation import doubts
from medical.segmentation.roi import mask_path
from medical.segmentation.run import SegmentSettings, plan_volume, protocol_of, seconds_per_window

if TYPE_CHECKING:
    from medical.dicom.deidentification import Pseudonyms

FAST_OVERLAP = 0.25
"""Overlap of windows with --fast: a third of the windows that half an overlap takes in a large scan."""


@dataclass(frozen=True)
class Request:
    """The command line of `medical segment`, as given."""

    inputs: tuple[str, ...]
    source: str | Path
    protocol: Path | None
    options: tuple[str, ...]
    output: Path | None
    format: Format | None
    stacked: bool
    volume: int | None
    series: str | None
    any_modality: bool
    roi: str | None
    overlap: float | None
    tta: bool
    uncertainty: bool
    ensemble: tuple[str, ...]
    fast: bool
    largest_component: bool
    fill_holes: bool
    probabilities: bool
    report: bool
    deidentify: bool
    deidentify_key: Path | None
    overwrite: bool
    memory: str | None
    device: str
    precision: str
    plan_only: bool
    json: bool
    quiet: bool
    batch: BatchOptions = field(default_factory=BatchOptions)

    def settings(self) -> FileSettings:
        """The settings that hold for every scan.

        Raises:
            RequestError: Options that do not go together, a size that is none, or a protocol that is none.
            InputError: The protocol cannot be read.
        """
        if self.fast and (self.tta or self.overlap is not None):
            raise RequestError(
                "--fast has an overlap of its own and no mirror images.", hint="Leave --fast, or --tta and --overlap, out."
            )
        if self.ensemble and not self.uncertainty:
            raise RequestError(
                "--ensemble names further members of an uncertain segmentation.", hint="Add --uncertainty, or leave it out."
            )
        run = SegmentSettings(
            overlap=FAST_OVERLAP if self.fast else self.overlap,
            mirror=self.tta or (self.uncertainty and not self.ensemble),
            memory=parse_size(self.memory) if self.memory is not None else None,
            roi=self.roi,
            largest_component=self.largest_component,
            fill_holes=self.fill_holes,
            probabilities=self.probabilities,
            any_modality=self.any_modality,
        )
        protocol = read_protocol(self.protocol) if self.protocol is not None else None
        settings = FileSettings(
            run, self.format, self.report, self.overwrite, self.volume, self.series, protocol, self.uncertainty
        )
        return replace(settings, pseudonyms=self._pseudonyms())

    def _pseudonyms(self) -> Pseudonyms | None:
        if not (self.deidentify or self.deidentify_key is not None):
            return None
        from medical.dicom.deidentification import Pseudonyms

        return Pseudonyms.read(self.deidentify_key) if self.deidentify_key is not None else Pseudonyms()


def run(request: Request) -> None:
    """Segment every scan of a request, or plan it. One that fails does not stop the others.

    Raises:
        HybridError: The request cannot be met at all, or scans failed: the scan's own error if there was only one, else a
            list of all.
    """
    with localised(request.inputs, request.output, REMOTE_ENDINGS) as places:
        if places.mirror is not None and request.plan_only:
            raise RequestError("Plans are made of scans of this machine.", hint="Leave --plan out, or fetch the scans first.")
        _run(replace(request, inputs=places.inputs, output=places.output), places.mirror)


def _run(request: Request, mirror: Mirror | None) -> None:
    settings = request.settings()
    talk = messages(quiet=request.quiet)
    # Paths are checked before weights are looked for: a wrong path should not cost a download.
    ending = ".dcm" if request.format == "seg" else ".nii.gz"
    jobs = plan_jobs(request.inputs, request.output, stacked=request.stacked, studies=request.series is not None, ending=ending)
    check_jobs(jobs, settings, inputs=[mask] if (mask := mask_path(request.roi or "")) is not None else [])
    several = len(jobs) > 1 or jobs[0].source != Path(request.inputs[0])
    if not several and not request.plan_only:
        check_targets(jobs[0], settings)
    folder = output_folder(request.inputs, request.output, [(job.source, job.target) for job in jobs])
    with open_place(folder, mirror, retry_failed=request.batch.retry_failed) as place:
        first = _load(request, talk)
        alike = replace(request, precision=first.precision)
        networks = (first, *(_load(replace(alike, source=source), talk) for source in request.ensemble))
        protocol_of(networks[0], settings.protocol)  # of no scan's making: one complaint, not one for each
        if settings.uncertainty:
            members_of(networks, settings)
        if settings.protocol is not None and networks[0].protocol not in (None, settings.protocol):
            talk.print("--protocol takes the place of the protocol that these weights bring.", style="yellow")
        if request.plan_only:
            failures = _plan_all(networks, jobs, settings, request, talk, several)
        else:
            failures = _segment_all(networks, jobs, settings, request, talk, place)
    raise_failures(failures, len(jobs), "scan", place.path)


def read_protocol(path: Path) -> Protocol:
    """Read a protocol from a YAML file.

    Raises:
        InputError: It cannot be read, or is no protocol; the message names the first faults.
    """
    try:
        raw = read_yaml(path)
    except OSError as error:
        raise InputError(f"The protocol {path} cannot be read: {error.strerror}.", hint="Check the path.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is no YAML file.", hint="Write it as in the documentation of protocols.") from error
    try:
        return Protocol.model_validate(raw)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}" for fault in error.errors()[:3]]
        raise InputError(f"{path.name} is no protocol: {'; '.join(faults)}.", hint="Correct it there.") from error


def _load(request: Request, talk: Console) -> SegmentationNetwork:
    set_threads(request.batch.threads)  # no more than this process may use, which torch does not ask a container for
    with progress_on(talk) as progress:
        task = progress.add_task("weights", visible=False)

        def on_download(done: int, total: int) -> None:
            progress.update(task, completed=done // 1024, total=total // 1024, visible=True)

        found = find_weights(request.source, on_progress=on_download)
        network = build(found, device=request.device, precision=request.precision, **network_options(request.options))
    return network


def network_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a network from texts such as ``merging=merging15``; values are read as YAML does."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise RequestError(f"--option {text} is not understood.", hint="Write NAME=VALUE, such as merging=merging15.")
        try:
            options[name] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise RequestError(f"The value of --option {text} is not understood.", hint="Write a name or number.") from error
    return options


def _segment_all(
    networks: Networks, jobs: list[Job], settings: FileSettings, request: Request, talk: Console, place: Place
) -> list[Failure]:
    several = len(jobs) > 1 or place.folder is not None
    batch = Batch(
        folder=place.folder,
        journal=place.journal,
        weights=networks[0].source.sha256 if networks[0].source else "",
        options=options_of(networks, settings) if place.folder is not None else "",
        overwrite=request.overwrite,
        retry_failed=request.batch.retry_failed,
        alone=not several,
        mirror=place.mirror,
    )
    with progress_on(talk) as progress:
        bar = progress.add_task("scans", total=len(jobs), visible=several)

        def tell_of(made: Made) -> None:
            outcome, told = made.report
            _report(outcome, talk, request.json, told)

        watcher = ScanWatcher(talk, request.json, several, progress, bar, tell_of, _notices(networks))
        items = items_of(jobs, request.inputs, settings)
        # Of places elsewhere no more is taken than is under way: they may fall silent.
        engine = _engine(networks, settings, request, several, overlap=several and place.mirror is None)
        failures = run_batch(items, engine, batch, watcher)
    if len(failures) < len(jobs):
        talk.print(f"{RESEARCH_USE}.", style="dim")
    return [(item.work, error) for item, error in failures]


def _engine(networks: Networks, settings: FileSettings, request: Request, several: bool, *, overlap: bool) -> Engine:
    if request.batch.engine == "local":
        return Local(SegmentWorker(networks, settings, several), overlap)
    import torch

    from hybrid.batch.cluster import OnRay

    found = [network.source for network in networks if network.source is not None]
    asked = (request.source, *request.ensemble)
    recipe = SegmentRecipe(
        sources=tuple(portable_source(*pair) for pair in zip(asked, found, strict=True)),
        sha256=tuple(source.sha256 for source in found),
        device=request.device,
        precision=networks[0].precision,  # as it was decided here, on every machine
        threads=torch.get_num_threads(),
        settings=settings,
        resume=several,
        options=network_options(request.options),
    )
    return OnRay(recipe, request.batch, threads=recipe.threads, device=request.device)


def _plan_all(
    networks: Networks, jobs: list[Job], settings: FileSettings, request: Request, talk: Console, several: bool
) -> list[Failure]:
    """Plans are the answer that was asked for: they go to standard output, and quiet does not hide them."""
    out = results()
    protocol = protocol_of(networks[0], settings.protocol)
    seconds: float | None = None
    failures: list[Failure] = []
    notices = _notices(networks)
    for job in jobs:
        try:
            outputs = check_targets(job, replace(settings, overwrite=True))  # a plan replaces nothing
            volume = read_scan(job.sources, channels=len(protocol.channels), volume=settings.volume, series=settings.series)
            outputs, _ = possible_outputs(outputs, volume, settings)
            way, plan = plan_volume(volume, networks[0], settings.run, protocol)
        except HybridError as error:
            failures.append((job, error))
            tell_failure(failures[-1], talk, several=several, as_json=request.json)
            continue
        while notices:
            talk.print(notices.pop(0), style="dim")
        for doubt in (*volume.warnings, *doubts(volume, protocol, way)):
            talk.print(f"{job.source.name}: {doubt}", style="yellow")
        seconds = seconds or sum(seconds_per_window(network, plan) for network in networks)
        # The scan, what the network sees of it, the label map there and on the scan's grid, and the windows.
        memory = volume.values.nbytes + 4 * volume.values.shape[0] * _voxels(way.model.shape)
        memory += 2 * _voxels(volume.grid.shape) + plan.tiles.memory_bytes
        if request.json:
            facts = {"input": str(job.source), "outputs": [str(path) for path in outputs], "way": way.describe()}
            costs = {"windows": plan.to_dict(), "memory_bytes": memory, "seconds": seconds * plan.tiles.count}
            out.out(json.dumps(facts | costs, ensure_ascii=False))
        else:
            out.out(
                f"{job.source}: {way.describe()}; {plan.describe()}; about {format_size(memory)} with the scan, "
                f"{format_duration(seconds * plan.tiles.count)}; to {outputs[0]}{', which is there' * outputs[0].exists()}"
            )
    return failures


def _notices(networks: Networks) -> list[str]:
    """What users should be told of the weights and of what they compute in, each once, with the first scan that runs."""
    verdicts = [verdict for network in networks if (verdict := network.precision_verdict) is not None]
    told = [network.source.notice for network in networks if network.source and network.source.notice]
    return list(dict.fromkeys([*(each.sentence for each in verdicts if each.worth_telling), *told]))


def _report(outcome: Outcome, talk: Console, as_json: bool, told: Sequence[str]) -> None:
    if as_json:
        facts = {
            "input": str(outcome.input),
            "outputs": [str(path) for path in outcome.outputs],
            "seconds": outcome.seconds,
            "windows": outcome.windows,
            "way": outcome.way,
            "structures": [figures.to_dict() for figures in outcome.figures],
            "notes": outcome.notes,
            "uncertainty": asdict(outcome.uncertainty) if outcome.uncertainty is not None else None,
            "research_use": RESEARCH_USE,
        }
        results().out(json.dumps(facts, ensure_ascii=False))
        return
    talk.print(f"{outcome.outputs[0]}  {outcome.seconds:.1f} s")
    found = [f"{row.name} {row.amount}" for row in outcome.figures]
    talk.print(f"  {', '.join(found)}")
    if outcome.uncertainty is not None:
        talk.print(f"  {outcome.uncertainty.describe()}")
    for note in outcome.notes:
        if note not in told:
            talk.print(f"  note: {note}", style="yellow")


def _voxels(shape: tuple[int, ...]) -> int:
    i, j, k = shape
    return i * j * k
