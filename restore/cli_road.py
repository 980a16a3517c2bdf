"""The road that the commands for pictures share: load a network, run or plan each picture, tell what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from hybrid.console import folder_of, messages, progress_on, results
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError, ResourceError, WeightsError
from hybrid.memory import parse_size
from hybrid.weights import Resolved, Store, resolve
from restore.ensemble import SelfEnsemble
from restore.images import SaveOptions, probe
from restore.inputs import Job, check_format, check_name, keep_inputs, plan_jobs, shown
from restore.loading import build, catalogue, find_weights
from restore.models.base import RestorationNetwork
from restore.one_output import Selection, as_asked
from restore.planes import check_channels
from restore.restoration import (
    Outcome,
    RunSettings,
    check_size,
    check_target,
    describe_plan,
    expected_seconds,
    plan_file,
    restore_file,
    result_size,
    seconds_per_pixel,
)
from restore.tasks import Command

Failure = tuple[Job, HybridError]
Loaded = tuple[RestorationNetwork, str | None]


@dataclass(frozen=True)
class Request:
    """A command line, as given: what holds for every command.

    Attributes:
        command: The command.
        selection: What becomes of several outputs; its map stands for the file or the folder of maps.
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
            save=SaveOptions(format=self.format, quality=self.quality, lossless=self.lossless),
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


def check_inputs(request: Request, settings: RunSettings) -> list[Job]:
    """The inputs, with outputs that are not named in full yet. Paths are checked before weights are looked for: a wrong
    path, or an output that is there, should not cost a download."""
    check_format(request.output, request.format)
    inputs = plan_jobs(list(request.inputs), request.output, tag="", format=request.format)
    if len(inputs) == 1:
        check_name(inputs[0])
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


def check_targets(jobs: list[Job], settings: RunSettings, talk: Console, *, outputs: int = 1) -> None:
    """Stop here if no result at all could be written; where one could, each picture's turn says what is in its way."""
    keep_apart(jobs, settings, outputs)
    failures: list[Failure] = []
    for job in jobs:
        try:
            _check_target(job, settings, outputs)
        except HybridError as error:
            failures.append((job, error))
        else:
            return
    for failure in failures:
        tell(failure, talk, many=len(jobs) > 1)
    raise_failures(failures, len(jobs))


def keep_apart(jobs: list[Job], settings: RunSettings, outputs: int) -> None:
    """Make sure that what is written beside results takes the place neither of inputs nor of other outputs.

    Raises:
        RequestError: It would.
    """
    seen: dict[Path, Path] = {job.target: job.source for job in jobs}
    for job in jobs:
        beside = _settings_of(job, settings).selection.beside(job.target, outputs)
        keep_inputs([*jobs, *(Job(job.source, path) for path in beside)])
        for path in beside:
            if seen.setdefault(path, job.source) != job.source or path == job.target:
                raise RequestError(
                    f"What belongs to {job.source} and to {seen[path]} would both be written to {path}.",
                    hint="Choose another --output or --uncertainty, or run them separately.",
                )


def work(request: Request, settings: RunSettings, loaded: Loaded, jobs: list[Job], talk: Console, *, many: bool) -> list[Failure]:
    """Run, or plan, every picture; returns those that failed."""
    network, stand_in = loaded
    if request.plan_only:
        return _plan_all(network, jobs, settings, talk, request.json, many=many)
    return _restore_all(network, jobs, settings, (stand_in,) if stand_in else (), talk, request.json, many=many)


def _restore_all(
    network: RestorationNetwork,
    jobs: list[Job],
    settings: RunSettings,
    notes: tuple[str, ...],
    talk: Console,
    as_json: bool,
    *,
    many: bool,
) -> list[Failure]:
    failures = []
    with progress_on(talk) as progress:
        for job in jobs:
            try:
                check_name(job)
                with _folders_of(job):
                    outcome = _one(network, job, _settings_of(job, settings), notes, progress, talk)
            except HybridError as error:
                failures.append((job, error))
                tell(failures[-1], talk, many=many)
            else:
                _report(outcome, notes, talk, as_json)
    return failures


def _plan_all(
    network: RestorationNetwork, jobs: list[Job], settings: RunSettings, talk: Console, as_json: bool, *, many: bool
) -> list[Failure]:
    """Plans are the answer that was asked for: they go to standard output, and quiet does not hide them."""
    out = results()
    per_pixel = seconds_per_pixel(network)
    failures = []
    for job in jobs:
        try:
            check_name(job)
            _check_target(job, settings, network.card.outputs)
            info = probe(job.source)
            check_size(info, job.target, settings)
            asked = _settings_of(job, settings)
            plan = plan_file(as_asked(network, asked.selection), info, job.target, asked)
        except HybridError as error:
            failures.append((job, error))
            tell(failures[-1], talk, many=many)
            continue
        if as_json:
            facts: dict[str, object] = {"input": str(job.source), "output": str(job.target)}
            facts |= {"seconds": expected_seconds(plan.tiles, per_pixel), "plan": plan.to_dict()}
            facts |= {"size": result_size(network.card.scale, info, settings)}
            out.out(json.dumps(facts, ensure_ascii=False))
        else:
            out.out(f"{job.source}: {describe_plan(plan, info, settings, per_pixel)}")
    return failures


def load(request: Request, scales: tuple[int | None, ...], talk: Console) -> Loaded:
    """The network of the first of these scales whose weights, or a stand-in's, can be had, and a line about the stand-in.

    Raises:
        RequestError: It is for another task, or lacks the outputs that are asked for.
        WeightsError: None can be had.
    """
    set_threads()  # no more than this process may use, which torch does not ask a container for
    with progress_on(talk) as progress:
        scale, (found, stand_in) = _find(request.source, scales, progress, download=not request.plan_only)
        network = build(found, scale=scale, device=request.device, precision=request.precision)
    request.command.check_card(network.card, shown(Path(request.source)))
    check_channels(network.card)
    request.selection.check(network.card)
    if stand_in:
        talk.print(stand_in, style="yellow")
    elif network.source and network.source.notice:
        talk.print(network.source.notice, style="dim")
    return SelfEnsemble(network) if request.ensemble else network, stand_in


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


def _settings_of(job: Job, settings: RunSettings) -> RunSettings:
    return replace(settings, selection=replace(settings.selection, uncertainty=job.map))


def _check_target(job: Job, settings: RunSettings, outputs: int) -> None:
    """Whether the outputs of a picture can be written; a run makes the folders that are missing."""
    if job.target.parent.exists():
        placed = _settings_of(job if job.map is None or job.map.parent.exists() else replace(job, map=None), settings)
        check_target(job.source, job.target, placed, outputs=outputs)


@contextmanager
def _folders_of(job: Job) -> Iterator[None]:
    with folder_of(job.target), folder_of(job.map or job.target):
        yield


def _one(
    network: RestorationNetwork, job: Job, settings: RunSettings, notes: tuple[str, ...], progress: Progress, talk: Console
) -> Outcome:
    task = progress.add_task(job.source.name, total=None)
    try:
        return restore_file(
            network,
            job.source,
            job.target,
            settings,
            notes=notes,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            on_note=lambda note: talk.print(note, style="dim"),
        )
    except BaseException as stop:
        for note in getattr(stop, "__notes__", ()):  # how to go on after Ctrl-C
            talk.print(note)
        raise
    finally:
        progress.remove_task(task)


def _report(outcome: Outcome, notes: tuple[str, ...], talk: Console, as_json: bool) -> None:
    if as_json:
        facts = asdict(outcome) | {"input": str(outcome.input), "output": str(outcome.output), "notes": notes + outcome.notes}
        results().out(json.dumps({key: value for key, value in facts.items() if key != "figures" or value}, ensure_ascii=False))
        return
    width, height = outcome.size
    talk.print(f"{outcome.output}  {width} x {height}, {outcome.seconds:.1f} s")
    for line in (*_several(outcome), *(f"note: {note}" for note in outcome.notes)):
        talk.print(f"  {line}", style="dim")


def _several(outcome: Outcome) -> Iterator[str]:
    """What is to be said of several outputs."""
    figures = outcome.figures
    if not figures:
        return
    main, criterion = figures["main"], figures.get("criterion")
    by = f", the best by {criterion}" if figures.get("selected") == "best" else ""
    yield f"the mean of {figures['outputs']} outputs" if main == "mean" else f"output {main} of {figures['outputs']}{by}"
    if isinstance(candidates := figures.get("candidates"), dict):
        yield f"candidates: {', '.join(candidates)}"
    if isinstance(scale := figures.get("uncertainty"), dict):
        yield f"{scale['file']}: white is a standard deviation of {scale['white']:.2g} of the range, the mean {scale['mean']:.2g}"


def tell(failure: Failure, talk: Console, *, many: bool) -> None:
    """Say at once why one of several pictures failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if many:
        (messages(quiet=False) if talk.quiet else talk).print(f"failed: {shown(job.source)}: {error}", style="red")


def raise_failures(failures: list[Failure], count: int) -> None:
    if failures and count == 1:
        raise failures[0][1]
    if failures:
        names = "; ".join(shown(job.source) for job, _ in failures[:10]) + (" and more" if len(failures) > 10 else "")
        raise HybridError(f"{len(failures)} of {count} pictures failed: {names}.", hint="The reasons stand above.")


def _tile(text: str) -> Literal["auto"] | int | None:
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise RequestError(f"--tile {text} is not understood.", hint="Give auto, off or a number of pixels such as 256.")
