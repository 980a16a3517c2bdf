"""The road that the commands for pictures share: what they ask, the checks before any work, the network.

`restore.cli.batch` goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from hybrid.batch.names import check_distinct
from hybrid.batch.options import BatchOptions
from hybrid.batch.place import Place
from hybrid.batch.telling import Failure, raise_failures, tell_failure
from hybrid.console import printable, progress_on
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError, ResourceError, WeightsError
from hybrid.memory import parse_size
from hybrid.remote import Mirror
from hybrid.weights.find import Resolved, Store, resolve
from restore.images import SaveOptions, probe
from restore.loading import build, catalogue, find_weights
from restore.models.base import RestorationNetwork
from restore.restoration.batch import settings_of
from restore.restoration.ensemble import SelfEnsemble
from restore.restoration.inputs import Job, check_format, check_name, keep_inputs, plan_jobs
from restore.restoration.one_output import Selection
from restore.restoration.planes import check_channels
from restore.restoration.run import RunSettings, check_size, check_target
from restore.tasks import Command

Loaded = tuple[RestorationNetwork, str | None]
MUCH_WORK = 2**22
"""Pixels from which no more are counted: any check of the precision has paid by then."""


@dataclass(frozen=True)
class Request:
    """A command line, as given: what holds for every command.

    Attributes:
        command: The command.
        selection: What becomes of several outputs; its map stands for the file or the folder of maps.
        batch: How many pictures are run.
    """

    command: Command
    inputs: tuple[str, ...]
    source: str | Path
    output: Path | None
    format: str | None
    quality: int
    lossless: bool
    overwrite: bool
    tile: str
    memory: str | None
    max_pixels: int | None
    device: str
    precision: str
    ensemble: bool
    plan_only: bool
    json: bool
    quiet: bool
    selection: Selection = field(default_factory=Selection)
    batch: BatchOptions = field(default_factory=BatchOptions)
    deidentify: bool = False

    def settings(self) -> RunSettings:
        """The settings that hold for every picture.

        Raises:
            RequestError: A tile or memory size that makes no sense.
        """
        return RunSettings(
            tile=_tile(self.tile),
            memory=parse_size(self.memory) if self.memory is not None else None,
            max_pixels=self.max_pixels,
            overwrite=self.overwrite,
            save=SaveOptions(self.format, self.quality, self.lossless, deidentify=self.deidentify),
            selection=replace(self.selection, uncertainty=None),
            task=self.command.name,
        )

    def check_model(self) -> None:
        """Refuse a model of another task by its name, before its weights are looked for.

        Raises:
            RequestError: It is one.
        """
        if isinstance(self.source, str) and self.source.lower() in catalogue():
            self.command.check_entry(catalogue().entry(self.source))


def check_inputs(request: Request, settings: RunSettings, mirror: Mirror | None = None) -> list[Job]:
    """The inputs, with outputs that are not named in full yet. Paths are checked before weights are looked for: a wrong
    path, or an output that is there, should not cost a download.

    Raises:
        HybridError: One is wrong.
    """
    if mirror is not None and request.plan_only:
        raise RequestError("Plans are made of pictures of this machine.", hint="Leave --plan out, or fetch the pictures first.")
    check_format(request.output, request.format)
    inputs = plan_jobs(list(request.inputs), request.output, tag="", format=request.format)
    if len(inputs) == 1:
        check_name(inputs[0])
    if len(inputs) == 1 and (mirror is None or mirror.address(inputs[0].source) is None):
        check_size(probe(inputs[0].source), inputs[0].target, settings)
    return inputs


def name_outputs(request: Request, tag: str) -> list[Job]:
    """The pictures with their outputs, and their maps where those are asked for."""
    jobs = plan_jobs(list(request.inputs), request.output, tag=tag, format=request.format)
    maps = request.selection.uncertainty
    if maps is not None:
        if len(jobs) > 1 and maps.suffix and not maps.is_dir():
            raise RequestError(f"{maps} names one map, but there are {len(jobs)} inputs.", hint="Give --uncertainty a folder.")
        check_format(maps, "png")
        planned = plan_jobs(list(request.inputs), maps, tag=tag, format="png")
        jobs = [replace(job, map=other.target) for job, other in zip(jobs, planned, strict=True)]
    keep_inputs(jobs)
    return jobs


def check_targets(jobs: list[Job], settings: RunSettings, talk: Console, *, outputs: int = 1, place: Place) -> None:
    """Stop here if no result at all could be written; where one could, each picture's turn says what is in its way."""
    keep_apart(jobs, settings, outputs)
    failures: list[Failure] = []
    for job in jobs:
        try:
            if not place.knows(job.target):
                check_target_of(job, settings, outputs)
        except HybridError as error:
            failures.append((job, error))
        else:
            return
    for failure in failures:
        tell_failure(failure, talk, several=len(jobs) > 1)
    raise_failures(failures, len(jobs), "picture")


def keep_apart(jobs: list[Job], settings: RunSettings, outputs: int) -> None:
    """Make sure that what is written beside results takes the place neither of inputs nor of other outputs.

    Raises:
        RequestError: It would.
    """
    seen: dict[Path, Path] = {job.target: job.source for job in jobs}
    for job in jobs:
        beside = settings_of(job, settings).selection.beside(job.target, outputs)
        keep_inputs([*jobs, *(Job(job.source, path) for path in beside)])
        for path in beside:
            if seen.setdefault(path, job.source) != job.source or path == job.target:
                raise RequestError(
                    f"What belongs to {job.source} and to {seen[path]} would both be written to {path}.",
                    hint="Choose another --output or --uncertainty, or run them separately.",
                )
    check_distinct((source, path) for path, source in seen.items())


def load(request: Request, scales: tuple[int | None, ...], talk: Console, *, work: int | None = None) -> Loaded:
    """The network of the first of these scales whose weights, or a stand-in's, can be had, and a line about the stand-in.

    `work` is the number of pixels that it will be run on; None where that is much or not known.

    Raises:
        RequestError: It is for another task, or lacks the outputs that are asked for.
        WeightsError: None can be had.
    """
    set_threads(request.batch.threads)  # no more than this process may use, which torch does not ask a container for
    with progress_on(talk) as progress:
        scale, (found, stand_in) = _find(request.source, scales, progress, download=not request.plan_only)
        network = build(found, scale=scale, device=request.device, precision=request.precision, work=work)
    request.command.check_card(network.card, printable(Path(request.source)))
    check_channels(network.card)
    request.selection.check(network.card)
    if stand_in:
        talk.print(stand_in, style="yellow")
    elif network.source and network.source.notice:
        talk.print(network.source.notice, style="dim")
    if (verdict := network.precision_verdict) is not None and verdict.worth_telling:
        talk.print(verdict.sentence, style="dim")
    return SelfEnsemble(network) if request.ensemble else network, stand_in


def work_of(jobs: list[Job]) -> int | None:
    """Pixels of these pictures; None where they are many, or cannot be told yet."""
    pixels = 0
    for job in jobs:
        try:
            info = probe(job.source)
        except HybridError:
            return None  # not here yet, or its own turn will say what is wrong with it
        pixels += info.width * info.height
        if pixels > MUCH_WORK:
            return None
    return pixels


def _find(
    source: str | Path, scales: tuple[int | None, ...], progress: Progress, *, download: bool
) -> tuple[int | None, tuple[Resolved, str | None]]:
    task = None

    def on_download(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            task = progress.add_task("weights")
        progress.update(task, completed=done // 1024, total=total // 1024)

    first: HybridError | None = None
    for scale in scales:
        try:
            if not download:
                return scale, _find_here(source, scale)
            return scale, find_weights(source, scale, stand_in=True, on_progress=on_download)
        except (WeightsError, ResourceError) as error:
            first = first or error
    assert first is not None
    raise first


def _find_here(source: str | Path, scale: int | None) -> tuple[Resolved, str | None]:
    """For a plan: what a run would take, as far as it is here. What it would download first, only it can plan with."""
    store = Store.from_environment()
    if store.offline:
        return find_weights(source, scale, stand_in=True)
    try:
        return resolve(source, scale, catalogue(), store, allow_download=False), None
    except WeightsError as error:
        error.message += " A plan downloads nothing."
        raise


def check_target_of(job: Job, settings: RunSettings, outputs: int) -> None:
    """Whether the outputs of a picture can be written; a run makes the folders that are missing."""
    if job.target.parent.exists():
        placed = settings_of(job if job.map is None or job.map.parent.exists() else replace(job, map=None), settings)
        check_target(job.source, job.target, placed, outputs=outputs)


def _tile(text: str) -> Literal["auto"] | int | None:
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise RequestError(f"--tile {text} is not understood.", hint="Give auto, off or a number of pixels such as 256.")
