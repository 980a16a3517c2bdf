"""What `restore sr` does with its request."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hybrid.errors import HybridError, RequestError
from hybrid.memory import parse_size
from restore.images import MAX_PIXELS, SaveOptions, check_output, probe
from restore.inputs import Job, plan_jobs
from restore.loading import build, find_weights
from restore.models.base import RestorationNetwork
from restore.super_resolution import (
    Outcome,
    RunSettings,
    describe_plan,
    enlarge_file,
    expected_seconds,
    plan_picture,
    seconds_per_pixel,
)


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
    """Enlarge every picture of a request. One that fails does not stop the others.

    Raises:
        HybridError: The request cannot be met at all, or pictures failed: the picture's own error if there was only
            one, else a list of all.
    """
    settings = request.settings()
    talk = Console(stderr=True, quiet=request.quiet, highlight=False, soft_wrap=True)
    # Paths are checked before weights are looked for: a wrong path should not cost a download.
    inputs = plan_jobs(list(request.inputs), request.output, tag="", format=request.format)
    if len(inputs) == 1:
        probe(inputs[0].source)
    with _progress(talk) as progress:
        network, stand_in = _load(request, progress)
    if stand_in:
        talk.print(stand_in, style="yellow")
    elif network.source and network.source.notice:
        talk.print(network.source.notice, style="dim")
    jobs = plan_jobs(list(request.inputs), request.output, tag=f"_x{network.card.scale}", format=request.format)
    if request.plan_only:
        return _print_plans(network, jobs, settings, request.json)
    failures: list[tuple[Job, HybridError]] = []
    with _progress(talk) as progress:
        for job in jobs:
            try:
                _make_folder(job.target)
                outcome = _one(network, job, settings, (stand_in,) if stand_in else (), progress)
            except HybridError as error:
                failures.append((job, error))
                if len(jobs) > 1:
                    talk.print(f"failed: {job.source}: {error}", style="red")
            else:
                _report(outcome, talk, request.json)
    _raise_failures(failures, len(jobs))


def _load(request: Request, progress: Progress) -> tuple[RestorationNetwork, str | None]:
    task = None

    def on_download(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            task = progress.add_task("weights")
        progress.update(task, completed=done // 1024, total=total // 1024)

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


def _make_folder(target: Path) -> None:
    """Folders of mirrored outputs are made; the parent of a single named file must be there, like for any command."""
    if not target.parent.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"The folder {target.parent} cannot be made: {error.strerror}.", hint="Choose another --output."
            ) from error


def _report(outcome: Outcome, talk: Console, as_json: bool) -> None:
    if as_json:
        facts = asdict(outcome) | {"input": str(outcome.input), "output": str(outcome.output)}
        Console(highlight=False, soft_wrap=True).out(json.dumps(facts, ensure_ascii=False))
        return
    width, height = outcome.size
    talk.print(f"{outcome.output}  {width} x {height}, {outcome.seconds:.1f} s", highlight=False)
    for note in outcome.notes:
        talk.print(f"  note: {note}", style="dim")


def _print_plans(network: RestorationNetwork, jobs: list[Job], settings: RunSettings, as_json: bool) -> None:
    """Plans are the answer that was asked for: they go to standard output, and quiet does not hide them."""
    out = Console(highlight=False, soft_wrap=True)
    per_pixel = seconds_per_pixel(network)
    for job in jobs:
        check_output(job.target, [job.source], overwrite=settings.overwrite, format=settings.save.format)
        info = probe(job.source)
        plan = plan_picture(network, info, settings)
        if as_json:
            facts = {"input": str(job.source), "output": str(job.target), "seconds": expected_seconds(plan, per_pixel)}
            out.out(json.dumps(facts | {"plan": plan.to_dict()}))
        else:
            out.out(f"{job.source}: {describe_plan(plan, info, per_pixel)}")


def _raise_failures(failures: list[tuple[Job, HybridError]], count: int) -> None:
    if failures and count == 1:
        raise failures[0][1]
    if failures:
        names = "; ".join(str(job.source) for job, _ in failures[:10]) + (" and more" if len(failures) > 10 else "")
        raise HybridError(f"{len(failures)} of {count} pictures failed: {names}.", hint="The reasons stand above.")


def _progress(console: Console) -> AbstractContextManager[Progress]:
    return Progress(
        TextColumn("{task.description}"),
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
