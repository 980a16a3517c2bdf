"""What `restore face` does with its request."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from hybrid.batch.engine import Batch, Engine, Local, run_batch
from hybrid.batch.names import check_distinct
from hybrid.batch.options import BatchOptions
from hybrid.batch.place import Place, open_place, output_folder
from hybrid.batch.telling import Failure, raise_failures, tell_failure
from hybrid.console import messages, printable, progress_on, results
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError
from hybrid.records import sha256_file
from hybrid.remote import Mirror, localised
from hybrid.weights.find import Resolved
from restore.cli.batch import PictureWatcher
from restore.faces.batch import FaceJob, FaceRecipe, FaceWorker, items_of, options_of
from restore.faces.boxes import boxes_of, read_boxes
from restore.faces.files import FaceRun, check_sheet
from restore.faces.identity import INVENTED, Distance
from restore.faces.plan import plan_faces
from restore.faces.restoration import check_face_network
from restore.images import check_pixels, probe
from restore.loading import build, catalogue, find_weights
from restore.models.base import RestorationNetwork
from restore.restoration.batch import PinnedWeights
from restore.restoration.inputs import SUFFIXES, Job, check_format, check_name, keep_inputs, plan_jobs
from restore.restoration.passed_over import passed_over
from restore.restoration.run import RunSettings, check_target
from restore.tasks import FACE, SR


@dataclass(frozen=True)
class FaceRequest:
    """The command line, as given.

    Attributes:
        run: All that holds for every picture; its enlarger is made here.
        batch: How many pictures are run.
        background: Name or file of the network that enlarges what is no face.
    """

    inputs: tuple[str, ...]
    source: str | Path
    output: Path | None
    run: FaceRun
    background: str | None
    boxes: Path | None
    sheet: Path | None
    batch: BatchOptions
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
    with localised(request.inputs, request.output, SUFFIXES) as places:
        _run(replace(request, inputs=places.inputs, output=places.output), places.mirror)


def _run(request: FaceRequest, mirror: Mirror | None) -> None:
    if mirror is not None and request.plan_only:
        raise RequestError("Plans are made of pictures of this machine.", hint="Leave --plan out, or fetch the pictures first.")
    talk = messages(quiet=request.quiet)
    check_format(request.output, request.run.save.format)
    jobs = _jobs(request)
    if request.background is not None and request.run.scale == 1:
        raise RequestError("--background enlarges, and --scale 1 does not.", hint="Give --scale 2, 3 or 4.")
    folder = output_folder(request.inputs, request.output, [(job.source, job.target) for job in jobs])
    with open_place(folder, mirror, retry_failed=request.batch.retry_failed) as place:
        if len(jobs) == 1 and (mirror is None or mirror.address(jobs[0].source) is None):
            _check(request, jobs[0], known=place.knows(jobs[0].target))
        set_threads(request.batch.threads)
        network = load(request, talk)
        if request.background is not None:
            request = replace(request, run=replace(request.run, enlarger=_enlarger(request, talk)))
        failures = _plan_all(request, network, jobs, talk) if request.plan_only else _work(request, network, jobs, talk, place)
    if passed := passed_over(request.inputs, request.output):
        talk.print(passed)
    raise_failures(failures, len(jobs), "picture", place.path)


def _jobs(request: FaceRequest) -> list[FaceJob]:
    """The pictures with all that holds for each alone. Sheets and aligned faces of sub-folders go to sub-folders."""
    jobs = plan_jobs(list(request.inputs), request.output, tag=FACE.tag, format=request.run.save.format)
    keep_inputs(jobs)
    known = None if request.boxes is None else read_boxes(request.boxes)
    folder = output_folder(request.inputs, request.output, [(job.source, job.target) for job in jobs])
    asked = []
    for job in jobs:
        below = job.target.parent.relative_to(folder) if folder is not None else Path()
        faces = request.run.faces / below if request.run.faces is not None else None
        found = None if known is None else tuple(boxes_of(known, job.source))
        asked.append(FaceJob(job.source, job.target, None, found, _sheet(request, job, len(jobs), below), faces))
    check_distinct((job.source, job.sheet) for job in asked if job.sheet is not None)
    check_distinct((job.source, job.faces / job.source.stem) for job in asked if job.faces is not None)
    return asked


def _work(request: FaceRequest, network: RestorationNetwork, jobs: list[FaceJob], talk: Console, place: Place) -> list[Failure]:
    """Restore every picture, as a batch that can be gone on with; returns those that failed."""
    boxes = "" if request.boxes is None else sha256_file(request.boxes)
    batch = Batch(
        folder=place.folder,
        journal=place.journal,
        weights=network.source.sha256 if network.source else "",
        options=options_of(request.run, network, boxes, sheets=request.sheet is not None),
        overwrite=request.run.overwrite,
        retry_failed=request.batch.retry_failed,
        alone=len(jobs) == 1,
        mirror=place.mirror,
    )
    with progress_on(talk) as progress:
        watcher = PictureWatcher(lambda told: _report(told, talk, request.json), talk, request.json, progress, len(jobs))
        # Of places elsewhere no more is taken than is under way: they may fall silent.
        engine = _engine(request, network, overlap=len(jobs) > 1 and place.mirror is None)
        failures = run_batch(items_of(jobs, request.inputs), engine, batch, watcher)
    return [(item.work, error) for item, error in failures]


def _engine(request: FaceRequest, network: RestorationNetwork, *, overlap: bool) -> Engine:
    if request.batch.engine == "local":
        return Local(FaceWorker(network, request.run), overlap)
    import torch

    from hybrid.batch.cluster import OnRay

    enlarger = request.run.enlarger
    recipe = FaceRecipe(
        PinnedWeights.of(network, request.source),
        None if enlarger is None else PinnedWeights.of(enlarger, request.background or ""),
        request.device,
        torch.get_num_threads(),
        replace(request.run, enlarger=None),
    )
    return OnRay(recipe, request.batch, threads=recipe.threads, device=request.device)


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
    FACE.check_card(network.card, printable(Path(request.source)))
    check_face_network(network)
    if (verdict := network.precision_verdict) is not None and verdict.worth_telling:
        talk.print(verdict.sentence, style="dim")
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
    SR.check_card(network.card, printable(Path(source)))
    return network


def _find(source: str | Path, scale: int | None, progress: Progress) -> tuple[Resolved, str | None]:
    task = progress.add_task("weights", total=None, visible=False)

    def on_download(done: int, total: int) -> None:
        progress.update(task, completed=done // 1024, total=total // 1024, visible=True)

    try:
        return find_weights(source, scale, on_progress=on_download)
    finally:
        progress.remove_task(task)


def _sheet(request: FaceRequest, job: Job, count: int, below: Path) -> Path | None:
    """The sheet of a picture: the file that was named, or of many pictures one each in the folder that was named."""
    if request.sheet is None:
        return None
    if count == 1 and request.sheet.suffix:
        return request.sheet
    if request.sheet.suffix:
        raise RequestError(f"{request.sheet} names one sheet, but there are {count} inputs.", hint="Give --sheet a folder.")
    return request.sheet / below / f"{job.target.stem}_faces.png"


def _check(request: FaceRequest, job: FaceJob, *, known: bool) -> None:
    """What is wrong with a single picture is said before weights are looked for; a batch before may have written its outputs."""
    check_name(job)
    check_pixels(probe(job.source), request.run.max_pixels)
    if request.plan_only or known:
        return
    check_sheet(job.sheet, job.source, job.target, overwrite=request.run.overwrite)
    if job.target.parent.exists():
        check_target(job.source, job.target, RunSettings(overwrite=request.run.overwrite, save=request.run.save))


def _plan_all(request: FaceRequest, network: RestorationNetwork, jobs: list[FaceJob], talk: Console) -> list[Failure]:
    """Where the faces are: the answer that was asked for, on standard output."""
    out = results()
    failures: list[Failure] = []
    for job in jobs:
        try:
            check_name(job)
            plan = plan_faces(network, job.source, request.run, job.known)
        except HybridError as error:
            failures.append((job, error))
            tell_failure(failures[-1], talk, several=len(jobs) > 1)
            continue
        if request.json:
            facts = {"input": str(job.source), "output": str(job.target)} | plan.to_dict()
            out.out(json.dumps(facts, ensure_ascii=False))
        for line in () if request.json else plan.lines():
            out.out(f"{job.source}: {line}")
    return failures


def _report(told: dict[str, Any], talk: Console, as_json: bool) -> None:
    if as_json:
        results().out(json.dumps(told, ensure_ascii=False))
        return
    width, height = told["size"]
    count = len(told["faces"])
    talk.print(f"{told['output']}  {width} x {height}, {count} {'face' if count == 1 else 'faces'}, {told['seconds']:.1f} s")
    for face in told["faces"]:
        talk.print(f"  face {face['number']}: score {face['score']:.2f}, {Distance(**face['distance'])}", style="dim")
    for note in told["notes"]:
        talk.print(f"  note: {note}", style="dim")
    if count:
        talk.print(f"  {INVENTED}", style="yellow")
