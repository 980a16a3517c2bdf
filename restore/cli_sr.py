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
from hybrid.errors import HybridError, OutputError, RequestError
from hybrid.memory import parse_size
from restore.images import MAX_PIXELS, SaveOptions, check_pixels, probe
from restore.inputs import Job, check_format, check_name, keep_inputs, plan_jobs, shown
from restore.loading import build, find_weights
from restore.models.base import RestorationNetwork
from restore.super_resolution import (
    Outcome,
    RunSettings,
    check_target,
    describe_plan,
    enlarge_file,
    expected_seconds,
    plan_picture,
    seconds_per_pixel,
)

Failure = tuple[Job, HybridError]


@dataclass(frozen=True)
class Request:
    """The command line of `restore sr`, as given."""

    inputs: tuple[str, ...]
    source: str | Path
    scale: int | None
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
    with _progress(talk) as progress:
        network, stand_in = _load(request, progress)
    if stand_in:
        talk.print(stand_in, style="yellow")
    elif network.source and network.source.notice:
        talk.print(network.source.notice, style="dim")
    jobs = plan_jobs(list(request.inputs), request.output, tag=f"_x{network.card.scale}", format=request.format)
    keep_inputs(jobs)
    if request.plan_only:
        failures = _plan_all(network, jobs, settings, talk, request.json)
    else:
        failures = _enlarge_all(network, jobs, settings, (stand_in,) if stand_in else (), talk, request.json)
    _raise_failures(failures, len(jobs))


def _enlarge_all(
    network: RestorationNetwork, jobs: list[Job], settings: RunSettings, notes: tuple[str, ...], talk: Console, as_json: bool
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
                _tell(failures[-1], len(jobs), talk)
            else:
                _report(outcome, notes, talk, as_json)
    return failures


def _plan_all(network: RestorationNetwork, jobs: list[Job], settings: RunSettings, talk: Console, as_json: bool) -> list[Failure]:
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
            _tell(failures[-1], len(jobs), talk)
            continue
        if as_json:
            facts = {"input": str(job.source), "output": str(job.target), "seconds": expected_seconds(plan, per_pixel)}
            out.out(json.dumps(facts | {"plan": plan.to_dict()}, ensure_ascii=False))
        else:
            out.out(f"{job.source}: {describe_plan(plan, info, per_pixel)}")
    return failures


def _load(request: Request, progress: Progress) -> tuple[RestorationNetwork, str | None]:
    task = None

    def on_download(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            task = progress.add_task("weights")
        progress.update(task, completed=done // 1024, total=total // 1024)

    set_threads()  # no more than this process may use, which torch does not ask a container for
    found, stand_in = find_weights(request.source, request.scale, stand_in=True, on_progress=on_download)
    return build(found, scale=request.scale, device=request.device, precision=request.precision), stand_in


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


def _tell(failure: Failure, count: int, talk: Console) -> None:
    """Say at once why one of several pictures failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if count > 1:
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
