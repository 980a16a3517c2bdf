"""What `restore sr` does with its request: the scale or the final size, and the network that leads there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from hybrid.batch.place import Place, open_place, output_folder
from hybrid.batch.telling import Failure, raise_failures
from hybrid.console import messages, printable
from hybrid.devices import choose_device
from hybrid.errors import HybridError
from hybrid.remote import Mirror, localised
from hybrid.weights.find import Store
from restore.cli.batch import work
from restore.cli.road import Loaded, Request, check_inputs, check_targets, load, name_outputs, work_of
from restore.images import probe
from restore.loading import catalogue
from restore.restoration.choice import AUTO, choose_model
from restore.restoration.final_size import FinalSize, suitable_scales
from restore.restoration.inputs import SUFFIXES, Job
from restore.restoration.passed_over import passed_over
from restore.restoration.record import DETAILS
from restore.restoration.run import RunSettings


@dataclass(frozen=True)
class Enlargement:
    """How much larger pictures become.

    Attributes:
        scale: Scale of the network; None for the one that a file of weights has, or for a final size.
        final: The final size, or None for what the network gives.
    """

    scale: int | None
    final: FinalSize | None


def run(request: Request, asked: Enlargement) -> None:
    """Enlarge every picture of a request, or plan it. One that fails does not stop the others.

    Raises:
        HybridError: The request cannot be met at all, or pictures failed: the picture's own error if there was only
            one, else a list of all.
    """
    with localised(request.inputs, request.output, SUFFIXES) as places:
        _run(replace(request, inputs=places.inputs, output=places.output), asked, places.mirror)


def _run(request: Request, asked: Enlargement, mirror: Mirror | None) -> None:
    settings = replace(request.settings(), final=asked.final)
    talk = messages(quiet=request.quiet)
    inputs = check_inputs(request, settings, mirror)
    request.check_model()
    if request.source == AUTO:
        request = replace(request, source=choose(request, asked, inputs, talk))
    loaded = None
    tag = asked.final.tag if asked.final else f"_x{asked.scale}"
    if asked.scale is None and asked.final is None:  # the file of weights tells the scale, and the scale the names
        loaded = load(request, (None,), talk, work=work_of(inputs))
        tag = f"_x{loaded[0].card.scale}"
    jobs = name_outputs(request, tag)
    folder = output_folder(request.inputs, request.output, [(job.source, job.target) for job in jobs])
    with open_place(folder, mirror, retry_failed=request.batch.retry_failed) as place:
        check_targets(jobs, settings, talk, place=place)
        failures: list[Failure] = []
        groups = by_scales(request, asked, jobs) if loaded is None else {(None,): jobs}
        for scales, group in groups.items():
            network = loaded or load(request, scales, talk, work=work_of(group))
            failures += _work(request, asked, settings, network, group, talk, many=len(jobs) > 1, place=place)
    if not (request.plan_only or request.json) and len(failures) < len(jobs):
        talk.print(f"{DETAILS}.", style="dim")
    if passed := passed_over(request.inputs, request.output):
        talk.print(passed)
    raise_failures(failures, len(jobs), "picture", place.path)


def choose(request: Request, asked: Enlargement, inputs: list[Job], talk: Console) -> str:
    """The name of the model for the largest of the pictures that can be read; the others are told of in their turn."""
    known, store, device = catalogue(), Store.from_environment(), choose_device(request.device).type
    largest, wanted = 1, float(asked.scale or 1)
    for job in inputs:
        with suppress(HybridError):
            info = probe(job.source)
            largest = max(largest, info.width * info.height)
            wanted = max(wanted, asked.final.wanted(info.width, info.height) if asked.final else 1)
    choice = choose_model(known, store, wanted=wanted, pixels=largest, device=device)
    talk.print(choice.reason, style="dim")
    return choice.name


def by_scales(request: Request, asked: Enlargement, jobs: list[Job]) -> dict[tuple[int | None, ...], list[Job]]:
    """Pictures by the scales of the network that lead to their final size, best first; a file has its one scale."""
    if isinstance(request.source, Path) or request.source.lower() not in catalogue():
        return {(None,): jobs}
    scales = catalogue().entry(request.source).files
    if asked.final is None and asked.scale in scales:
        return {(asked.scale,): jobs}
    final = asked.final or FinalSize(asked.scale)
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
    request: Request,
    asked: Enlargement,
    settings: RunSettings,
    loaded: Loaded,
    jobs: list[Job],
    talk: Console,
    *,
    many: bool,
    place: Place,
) -> list[Failure]:
    scale = loaded[0].card.scale
    settings = settings_at(scale, asked, settings)
    if asked.scale is not None and asked.scale != scale:
        talk.print(
            f"{printable(Path(request.source))} has no network for scale {asked.scale}: the one for scale {scale} "
            f"runs, and its result is resized.",
            style="yellow",
        )
    return work(request, settings, loaded, jobs, talk, many=many, place=place)


def settings_at(scale: int, asked: Enlargement, settings: RunSettings) -> RunSettings:
    """The settings for a network of that scale: where another one is asked for, its results are resized."""
    return settings if asked.scale in (None, scale) else replace(settings, final=FinalSize(asked.scale))
