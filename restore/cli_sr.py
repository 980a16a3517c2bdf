"""What `restore sr` does with its request."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from hybrid.console import folder_of, messages, progress_on, results
from hybrid.devices import choose_device, set_threads
from hybrid.errors import HybridError, RequestError, ResourceError, WeightsError
from hybrid.memory import parse_size
from hybrid.weights import Resolved, Store, resolve
from restore.choice import AUTO, choose_model
from restore.ensemble import SelfEnsemble
from restore.final_size import FinalSize, suitable_scales
from restore.images import SaveOptions, probe
from restore.inputs import Job, check_format, check_name, keep_inputs, plan_jobs, shown
from restore.loading import build, catalogue, find_weights
from restore.models.base import RestorationNetwork
from restore.passed_over import passed_over
from restore.super_resolution import (
    Outcome,
    RunSettings,
    check_size,
    check_target,
    describe_plan,
    enlarge_file,
    expected_seconds,
    plan_file,
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
            max_pixels=self.max_pixels,
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
    talk = messages(quiet=request.quiet)
    # Paths are checked before weights are looked for: a wrong path, or an output that is there, should not cost a download.
    check_format(request.output, request.format)
    inputs = plan_jobs(list(request.inputs), request.output, tag="", format=request.format)
    if len(inputs) == 1:
        check_name(inputs[0])
        check_size(probe(inputs[0].source), inputs[0].target, settings)
    if request.source == AUTO:
        request = replace(request, source=_choose(request, inputs, talk))
    if request.scale is None and request.final is None:  # the file of weights tells the scale, and the scale the names
        loaded = _load(request, (None,), talk)
        jobs = _jobs(request, f"_x{loaded[0].card.scale}")
        _check_targets(jobs, settings, talk)
        failures = _work(request, settings, loaded, jobs, talk, many=len(jobs) > 1)
    else:
        jobs, failures = _jobs(request, request.final.tag if request.final else f"_x{request.scale}"), []
        _check_targets(jobs, settings, talk)
        for scales, group in _by_scales(request, jobs).items():
            failures += _work(request, settings, _load(request, scales, talk), group, talk, many=len(jobs) > 1)
    if passed := passed_over(request.inputs, request.output):
        talk.print(passed)
    _raise_failures(failures, len(jobs))


def _choose(request: Request, inputs: list[Job], talk: Console) -> str:
    """The model for the largest of the pictures; of those that can be read, the others being told of in their turn."""
    known, store, device = catalogue(), Store.from_environment(), choose_device(request.device).type
    largest, wanted = 1, float(request.scale or 1)
    for job in inputs:
        with suppress(HybridError):
            info = probe(job.source)
            largest = max(largest, info.width * info.height)
            wanted = max(wanted, request.final.wanted(info.width, info.height) if request.final else 1)
    choice = choose_model(known, store, wanted=wanted, pixels=largest, device=device)
    talk.print(choice.reason, style="dim")
    return choice.name


def _jobs(request: Request, tag: str) -> list[Job]:
    jobs = plan_jobs(list(request.inputs), request.output, tag=tag, format=request.format)
    keep_inputs(jobs)
    return jobs


def _check_targets(jobs: list[Job], settings: RunSettings, talk: Console) -> None:
    """Stop here if no result at all could be written; where one could, each picture's turn says what is in its way."""
    failures: list[Failure] = []
    for job in jobs:
        try:
            if job.target.parent.exists():  # a run makes the folders that are missing
                check_target(job.source, job.target, settings)
        except HybridError as error:
            failures.append((job, error))
        else:
            return
    for failure in failures:
        _tell(failure, talk, many=len(jobs) > 1)
    _raise_failures(failures, len(jobs))


def _by_scales(request: Request, jobs: list[Job]) -> dict[tuple[int | None, ...], list[Job]]:
    """Pictures by the scales of the network that lead to their final size, best first; a file has its one scale."""
    if isinstance(request.source, Path) or request.source.lower() not in catalogue():
        return {(None,): jobs}
    scales = catalogue().entry(request.source).files
    if request.final is None and request.scale in scales:
        return {(request.scale,): jobs}
    final = request.final or FinalSize(request.scale)
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
    if request.scale is not None and request.scale != network.card.scale:
        settings = replace(settings, final=FinalSize(request.scale))
        talk.print(
            f"{shown(Path(request.source))} has no network for scale {request.scale}: the one for scale {network.card.scale} "
            f"runs, and its result is resized.",
            style="yellow",
        )
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
    with progress_on(talk) as progress:
        for job in jobs:
            try:
                check_name(job)
                with folder_of(job.target):
                    outcome = _one(network, job, settings, notes, progress, talk)
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
    out = results()
    per_pixel = seconds_per_pixel(network)
    failures = []
    for job in jobs:
        try:
            check_name(job)
            if job.target.parent.exists():  # a run makes the folders that are missing
                check_target(job.source, job.target, settings)
            info = probe(job.source)
            check_size(info, job.target, settings)
            plan = plan_file(network, info, job.target, settings)
        except HybridError as error:
            failures.append((job, error))
            _tell(failures[-1], talk, many=many)
            continue
        if as_json:
            facts: dict[str, object] = {"input": str(job.source), "output": str(job.target)}
            facts |= {"seconds": expected_seconds(plan.tiles, per_pixel), "plan": plan.to_dict()}
            facts |= {"size": result_size(network.card.scale, info, settings)}
            out.out(json.dumps(facts, ensure_ascii=False))
        else:
            out.out(f"{job.source}: {describe_plan(plan, info, settings, per_pixel)}")
    return failures


def _load(request: Request, scales: tuple[int | None, ...], talk: Console) -> Loaded:
    """The network of the first of these scales whose weights, or a stand-in's, can be had, and a line about the stand-in."""
    set_threads()  # no more than this process may use, which torch does not ask a container for
    with progress_on(talk) as progress:
        scale, (found, stand_in) = _find(request.source, scales, progress, download=not request.plan_only)
        network = build(found, scale=scale, device=request.device, precision=request.precision)
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


def _one(
    network: RestorationNetwork, job: Job, settings: RunSettings, notes: tuple[str, ...], progress: Progress, talk: Console
) -> Outcome:
    task = progress.add_task(job.source.name, total=None)
    try:
        return enlarge_file(
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
        results().out(json.dumps(facts, ensure_ascii=False))
        return
    width, height = outcome.size
    talk.print(f"{outcome.output}  {width} x {height}, {outcome.seconds:.1f} s")
    for note in outcome.notes:
        talk.print(f"  note: {note}", style="dim")


def _tell(failure: Failure, talk: Console, *, many: bool) -> None:
    """Say at once why one of several pictures failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if many:
        (messages(quiet=False) if talk.quiet else talk).print(f"failed: {shown(job.source)}: {error}", style="red")


def _raise_failures(failures: list[Failure], count: int) -> None:
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
