"""What `restore sr` does with its request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hybrid.devices import set_threads
from hybrid.errors import HybridError, OutputError, RequestError, ResourceError, WeightsError
from hybrid.memory import parse_size
from hybrid.weights import Resolved
from restore.ensemble import SelfEnsemble
from restore.final_size import FinalSize, suitable_scales
from restore.images import MAX_PIXELS, SaveOptions, check_pixels, probe
from restore.inputs import Job, check_format, check_name, keep_inputs, plan_jobs, shown
from restore.loading import build, catalogue, find_weights
from restore.models.base import RestorationNetwork
from restore.super_resolution import (
    Outcome,
    RunSettings,
    check_target,
    describe_plan,
    enlarge_file,
    expected_seconds,
    plan_picture,
    result_size,
    seconds_per_pixel,
)

Failure = tuple[Job, HybridError]
Loaded = tuple[RestorationNetwork, str | None]


@dataclass(frozen=True)
class Request:
    """The command line of `restore sr`, as given."""

    inputs: tuple[str, ...]
    source: str | Path
    scale: int | None
    final: FinalSize | None
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

    def settings(self) -> RunSettings:
        """The settings that hold for every picture.

        Raises:
            RequestError: A tile or memory size that makes no sense.
        """
        return RunSettings(
            tile=_tile(self.tile),
            memory=parse_size(self.memory) if self.memory is not None else None,
            max_pixels=self.max_pixels or MAX_PIXELS,
            overwrite=self.overwrite,
            save=SaveOptions(format=self.format, quality=self.quality, lossless=self.lossless),
            final=self.final,
        )


def run(request: Request) -> None:
    """Enlarge every picture of a request, or plan it. One that fails does not stop the others.

    Raises:
        HybridError: The request cannot be met at all, or pictures failed: the picture's own error if there was only
            one, else a list of all.
    """
    settings = request.settings()
    talk = _console(quiet=request.quiet)
    # Paths are checked before weights are looked for: a wrong path should not cost a download.
    check_format(request.output, request.format)
    inputs = plan_jobs(list(request.inputs), request.output, tag="", format=request.format)
    if len(inputs) == 1:
        check_name(inputs[0])
        check_pixels(probe(inputs[0].source), settings.max_pixels)
    if request.final is None:
        loaded = _load(request, (request.scale,), talk)
        jobs = _jobs(request, f"_x{loaded[0].card.scale}")
        failures = _work(request, settings, loaded, jobs, talk, many=len(jobs) > 1)
    else:
        jobs, failures = _jobs(request, request.final.tag), []
        for scales, group in _by_scales(request, request.final, jobs).items():
            failures += _work(request, settings, _load(request, scales, talk), group, talk, many=len(jobs) > 1)
    _raise_failures(failures, len(jobs))


def _jobs(request: Request, tag: str) -> list[Job]:
    jobs = plan_jobs(list(request.inputs), request.output, tag=tag, format=request.format)
    keep_inputs(jobs)
    return jobs


def _by_scales(request: Request, final: FinalSize, jobs: list[Job]) -> dict[tuple[int | None, ...], list[Job]]:
    """Pictures by the scales of the network that lead to their final size, best first; a file has its one scale."""
    if isinstance(request.source, Path) or request.source.lower() not in catalogue():
        return {(None,): jobs}
    scales = catalogue().entry(request.source).files
    groups: dict[tuple[int | None, ...], list[Job]] = {}
    unread = []
    for job in jobs:
        try:
            info = probe(job.source)
        except HybridError:
            unread.append(job)  # its own turn will say what is wrong with it
        else:
            groups.setdefault(suitable_scales(final.wanted(info.width, info.height), scales), []).append(job)
    if not groups:
        return {(max(scales),): unread}
    next(iter(groups.values())).extend(unread)
    return groups


def _work(
    request: Request, settings: RunSettings, loaded: Loaded, jobs: list[Job], talk: Console, *, many: bool
) -> list[Failure]:
    network, stand_in = loaded
    if request.plan_only:
        return _plan_all(network, jobs, settings, talk, request.json, many=many)
    return _enlarge_all(network, jobs, settings, (stand_in,) if stand_in else (), talk, request.json, many=many)


def _enlarge_all(
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
    with _progress(talk) as progress:
        for job in jobs:
            try:
                check_name(job)
                with _folder_of(job.target):
                    outcome = _one(network, job, settings, notes, progress)
            except HybridError as error:
                failures.append((job, error))
                _tell(failures[-1], talk, many=many)
            else:
                _report(outcome, notes, talk, as_json)
    return failures


def _plan_all(
    network: RestorationNetwork, jobs: list[Job], settings: RunSettings, talk: Console, as_json: bool, *, many: bool
) -> list[Failure]:
    """Plans are the answer that was asked for: they go to standard output, and quiet does not hide them."""
    out = Console(highlight=False, soft_wrap=True, emoji=False)
    per_pixel = seconds_per_pixel(network)
    failures = []
    for job in jobs:
        try:
            check_name(job)
            if job.target.parent.exists():  # a run makes the folders that are missing
                check_target(job.source, job.target, settings)
            info = probe(job.source)
            check_pixels(info, settings.max_pixels)
            plan = plan_picture(network, info, settings)
        except HybridError as error:
            failures.append((job, error))
            _tell(failures[-1], talk, many=many)
            continue
        if as_json:
            facts: dict[str, object] = {"input": str(job.source), "output": str(job.target)}
            facts |= {"seconds": expected_seconds(plan, per_pixel)}
            out.out(
                json.dumps(facts | {"size": result_size(plan.scale, info, settings), "plan": plan.to_dict()}, ensure_ascii=False)
            )
        else:
            out.out(f"{job.source}: {describe_plan(plan, info, settings, per_pixel)}")
    return failures


def _load(request: Request, scales: tuple[int | None, ...], talk: Console) -> Loaded:
    """The network of the first of these scales whose weights, or a stand-in's, can be had, and a line about the stand-in."""
    set_threads()  # no more than this process may use, which torch does not ask a container for
    with _progress(talk) as progress:
        scale, (found, stand_in) = _find(request.source, scales, progress)
        network = build(found, scale=scale, device=request.device, precision=request.precision)
    if stand_in:
        talk.print(stand_in, style="yellow")
    elif network.source and network.source.notice:
        talk.print(network.source.notice, style="dim")
    return SelfEnsemble(network) if request.ensemble else network, stand_in


def _find(
    source: str | Path, scales: tuple[int | None, ...], progress: Progress
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
            return scale, find_weights(source, scale, stand_in=True, on_progress=on_download)
        except (WeightsError, ResourceError) as error:
            first = first or error
    assert first is not None
    raise first


def _one(network: RestorationNetwork, job: Job, settings: RunSettings, notes: tuple[str, ...], progress: Progress) -> Outcome:
    task = progress.add_task(job.source.name, total=None)
    try:
        return enlarge_file(
            network,
            job.source,
            job.target,
            settings,
            notes=notes,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    finally:
        progress.remove_task(task)


@contextmanager
def _folder_of(target: Path) -> Iterator[None]:
    """Make the folders of an output, of a mirrored one in particular; after a failure those that are still empty go again."""
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The folder {target.parent} cannot be made: {error.strerror}.", hint="Choose another --output."
            ) from error
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _report(outcome: Outcome, notes: tuple[str, ...], talk: Console, as_json: bool) -> None:
    if as_json:
        facts = asdict(outcome) | {"input": str(outcome.input), "output": str(outcome.output), "notes": notes + outcome.notes}
        Console(highlight=False, soft_wrap=True, emoji=False).out(json.dumps(facts, ensure_ascii=False))
        return
    width, height = outcome.size
    talk.print(f"{outcome.output}  {width} x {height}, {outcome.seconds:.1f} s")
    for note in outcome.notes:
        talk.print(f"  note: {note}", style="dim")


def _tell(failure: Failure, talk: Console, *, many: bool) -> None:
    """Say at once why one of several pictures failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if many:
        (_console(quiet=False) if talk.quiet else talk).print(f"failed: {shown(job.source)}: {error}", style="red")


def _raise_failures(failures: list[Failure], count: int) -> None:
    if failures and count == 1:
        raise failures[0][1]
    if failures:
        names = "; ".join(shown(job.source) for job, _ in failures[:10]) + (" and more" if len(failures) > 10 else "")
        raise HybridError(f"{len(failures)} of {count} pictures failed: {names}.", hint="The reasons stand above.")


def _console(*, quiet: bool) -> Console:
    """For people, on standard error. Without markup and emoji: file names may hold [brackets] and :colons:."""
    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)


def _progress(console: Console) -> AbstractContextManager[Progress]:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet or not console.is_terminal,
    )


def _tile(text: str) -> Literal["auto"] | int | None:
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise RequestError(f"--tile {text} is not understood.", hint="Give auto, off or a number of pixels such as 256.")
