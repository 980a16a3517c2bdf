"""What `restore face` does with its request."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from hybrid.console import folder_of, messages, progress_on, results
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError
from hybrid.weights import Resolved
from restore.cli_report import Failure, raise_failures, tell
from restore.face_boxes import boxes_of, read_boxes
from restore.face_detection import Face
from restore.face_files import FaceOutcome, FaceRun, check_sheet, record_of, restore_faces_file
from restore.face_identity import INVENTED
from restore.face_plan import plan_faces
from restore.images import check_pixels, probe
from restore.inputs import Job, check_format, check_name, keep_inputs, plan_jobs, shown
from restore.loading import build, catalogue, find_weights
from restore.models.base import RestorationNetwork
from restore.passed_over import passed_over
from restore.restoration import RunSettings, check_target
from restore.tasks import FACE, SR


@dataclass(frozen=True)
class FaceRequest:
    """The command line, as given.

    Attributes:
        run: All that holds for every picture; its enlarger is made here.
        background: Name or file of the network that enlarges what is no face.
    """

    inputs: tuple[str, ...]
    source: str | Path
    output: Path | None
    run: FaceRun
    background: str | None
    boxes: Path | None
    sheet: Path | None
    device: str
    precision: str
    plan_only: bool
    json: bool
    quiet: bool


def run(request: FaceRequest) -> None:
    """Restore the faces of every picture of a request, or say where they are. One that fails does not stop the others.

    Raises:
        HybridError: The request cannot be met at all, or pictures failed.
    """
    talk = messages(quiet=request.quiet)
    check_format(request.output, request.run.save.format)
    jobs = plan_jobs(list(request.inputs), request.output, tag=FACE.tag, format=request.run.save.format)
    keep_inputs(jobs)
    known = None if request.boxes is None else read_boxes(request.boxes)
    if request.background is not None and request.run.scale == 1:
        raise RequestError("--background enlarges, and --scale 1 does not.", hint="Give --scale 2, 3 or 4.")
    sheets = _sheets(request, jobs)
    if len(jobs) == 1:
        _check(request, jobs[0], sheets[0])
    set_threads()
    network = load(request, talk)
    if request.background is not None:
        request = replace(request, run=replace(request.run, enlarger=_enlarger(request, talk)))
    failures: list[Failure] = []
    with progress_on(talk) as progress:
        for job, sheet in zip(jobs, sheets, strict=True):
            faces = None if known is None else boxes_of(known, job.source)
            try:
                check_name(job)
                if request.plan_only:
                    _plan(request, network, job, faces, talk)
                else:
                    _report(_one(request, network, job, faces, sheet, progress), talk, request.json)
            except HybridError as error:
                failures.append((job, error))
                tell(failures[-1], talk, many=len(jobs) > 1)
    if passed := passed_over(request.inputs, request.output):
        talk.print(passed)
    raise_failures(failures, len(jobs))


def asked_numbers(text: str | None) -> tuple[int, ...]:
    """Read --only.

    >>> asked_numbers("3,1"), asked_numbers(None)
    ((3, 1), ())

    Raises:
        RequestError: It is no list of numbers from 1.
    """
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise RequestError(f"--only {text} is not understood.", hint="Give numbers of faces, such as 1,3.")
    return tuple(map(int, parts))


def load(request: FaceRequest, talk: Console) -> RestorationNetwork:
    """The network for faces.

    Raises:
        RequestError: It is for another task.
        WeightsError: It cannot be had.
    """
    if isinstance(request.source, str) and request.source.lower() in catalogue():
        FACE.check_entry(catalogue().entry(request.source))
    with progress_on(talk) as progress:
        found, _ = _find(request.source, None, progress)
        network = build(found, device=request.device, precision=request.precision)
    FACE.check_card(network.card, shown(Path(request.source)))
    if network.card.channels != 3 or network.card.outputs != 1:
        raise RequestError(
            f"{network.card.title} takes {network.card.channels} channels and gives {network.card.outputs} pictures.",
            hint="Give a network that makes one RGB face of one.",
        )
    if network.source is not None and network.source.origin == "shipped":
        talk.print(f"{network.source.name}, which ships with the package, runs.", style="dim")
    return network


def _enlarger(request: FaceRequest, talk: Console) -> RestorationNetwork:
    """The network for the background, of the least scale that is enough, else of its largest."""
    source: str | Path = request.background or ""
    scale: int | None = None
    if isinstance(source, str) and source.lower() in catalogue():
        entry = catalogue().entry(source)
        SR.check_entry(entry)
        scale = min((each for each in entry.files if each >= request.run.scale), default=max(entry.files))
    with progress_on(talk) as progress:
        found, _ = _find(source, scale, progress)
        network = build(found, scale=scale, device=request.device, precision=request.precision)
    SR.check_card(network.card, shown(Path(source)))
    return network


def _find(source: str | Path, scale: int | None, progress: Progress) -> tuple[Resolved, str | None]:
    task = progress.add_task("weights", total=None, visible=False)

    def on_download(done: int, total: int) -> None:
        progress.update(task, completed=done // 1024, total=total // 1024, visible=True)

    try:
        return find_weights(source, scale, on_progress=on_download)
    finally:
        progress.remove_task(task)


def _sheets(request: FaceRequest, jobs: Sequence[Job]) -> list[Path | None]:
    """The sheet of each picture: the file that was named, or of many pictures one each in the folder that was named."""
    if request.sheet is None:
        return [None] * len(jobs)
    if len(jobs) == 1 and request.sheet.suffix:
        return [request.sheet]
    if request.sheet.suffix:
        raise RequestError(f"{request.sheet} names one sheet, but there are {len(jobs)} inputs.", hint="Give --sheet a folder.")
    return [request.sheet / f"{job.target.stem}_faces.png" for job in jobs]


def _check(request: FaceRequest, job: Job, sheet: Path | None) -> None:
    """What is wrong with a single picture is said before weights are looked for."""
    check_name(job)
    check_pixels(probe(job.source), request.run.max_pixels)
    if request.plan_only:
        return
    check_sheet(sheet, job.source, job.target, overwrite=request.run.overwrite)
    if job.target.parent.exists():
        check_target(job.source, job.target, RunSettings(overwrite=request.run.overwrite, save=request.run.save))


def _one(
    request: FaceRequest,
    network: RestorationNetwork,
    job: Job,
    faces: Sequence[Face] | None,
    sheet: Path | None,
    progress: Progress,
) -> FaceOutcome:
    task = progress.add_task(job.source.name, total=None)
    on_progress: Callable[[int, int], None] = lambda done, total: progress.update(task, completed=done, total=total)  # noqa: E731
    try:
        with folder_of(job.target):
            return restore_faces_file(
                network, job.source, job.target, request.run, known=faces, sheet=sheet, on_progress=on_progress
            )
    finally:
        progress.remove_task(task)


def _plan(request: FaceRequest, network: RestorationNetwork, job: Job, faces: Sequence[Face] | None, talk: Console) -> None:
    """Where the faces are: the answer that was asked for, on standard output."""
    plan = plan_faces(network, job.source, request.run, faces)
    out = results()
    if request.json:
        out.out(json.dumps({"input": str(job.source), "output": str(job.target)} | plan.to_dict(), ensure_ascii=False))
        return
    for line in plan.lines():
        out.out(f"{job.source}: {line}")


def _report(outcome: FaceOutcome, talk: Console, as_json: bool) -> None:
    if as_json:
        results().out(json.dumps(record_of(outcome), ensure_ascii=False))
        return
    width, height = outcome.size
    count = len(outcome.result.faces)
    talk.print(f"{outcome.output}  {width} x {height}, {count} {'face' if count == 1 else 'faces'}, {outcome.seconds:.1f} s")
    for each in outcome.result.faces:
        talk.print(f"  face {each.number}: score {each.face.score:.2f}, {each.distance}", style="dim")
    for note in outcome.notes:
        talk.print(f"  note: {note}", style="dim")
    if count:
        talk.print(f"  {INVENTED}", style="yellow")
