"""What `medical restore` does with its request."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from hybrid.batch.engine import Batch, Engine, Local, Made, run_batch
from hybrid.batch.options import BatchOptions
from hybrid.batch.place import Place, open_place, output_folder
from hybrid.batch.telling import Failure, raise_failures, tell_failure
from hybrid.console import format_duration, messages, progress_on, results
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError
from hybrid.loading import portable_source
from hybrid.memory import format_size, parse_size
from hybrid.remote import Mirror, localised
from medical.cli.batch import REMOTE_ENDINGS, ScanWatcher
from medical.files.inputs import Job, plan_jobs
from medical.loading import find_weights
from medical.notice import RESEARCH_USE
from medical.restoration.batch import RestoreRecipe, RestoreWorker, items_of, options_of
from medical.restoration.files import (
    RESTORED,
    FileSettings,
    Outcome,
    check_jobs,
    check_targets,
    is_restored,
    plan_file,
)
from medical.restoration.loading import Restorer, build_restorer, read_restoration_protocol
from medical.restoration.preview import DETAILS
from medical.restoration.run import RestoreSettings, SlicePlan, seconds_per_pixel


@dataclass(frozen=True)
class Request:
    """The command line of `medical restore`, as given."""

    inputs: tuple[str, ...]
    source: str | Path
    protocol: Path | None
    output: Path | None
    volume: int | None
    series: str | None
    any_modality: bool
    dtype: Literal["source", "float32"]
    tile: int | None
    preview: bool
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
            RequestError: A size that is none.
        """
        memory = parse_size(self.memory) if self.memory is not None else None
        run = RestoreSettings(self.dtype, self.tile, memory, self.any_modality)
        return FileSettings(run, self.preview, self.overwrite, self.volume, self.series)


def run(request: Request) -> None:
    """Restore every scan of a request, or plan it. One that fails does not stop the others.

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
    jobs = _jobs(request)
    check_jobs(jobs, settings)
    several = len(jobs) > 1 or jobs[0].source != Path(request.inputs[0])
    if not several and not request.plan_only:
        check_targets(jobs[0], settings)
    folder = output_folder(request.inputs, request.output, [(job.source, job.target) for job in jobs])
    with open_place(folder, mirror, retry_failed=request.batch.retry_failed) as place:
        restorer = _load(request, talk)
        if request.plan_only:
            failures = _plan_all(restorer, jobs, settings, request, talk, several)
        else:
            failures = _restore_all(restorer, jobs, settings, request, talk, place)
    raise_failures(failures, len(jobs), "scan", place.path)


def _jobs(request: Request) -> list[Job]:
    """The scans of a request. Restored scans that lie in a folder beside their scans are passed over."""
    jobs = plan_jobs(request.inputs, request.output, studies=request.series is not None, naming=RESTORED)
    named = {Path(text) for text in request.inputs}
    return [job for job in jobs if job.source in named or not is_restored(job.source)] or jobs


def _load(request: Request, talk: Console) -> Restorer:
    set_threads(request.batch.threads)  # no more than this process may use, which torch does not ask a container for
    protocol = read_restoration_protocol(request.protocol) if request.protocol is not None else None
    with progress_on(talk) as progress:
        task = progress.add_task("weights", visible=False)

        def on_download(done: int, total: int) -> None:
            progress.update(task, completed=done // 1024, total=total // 1024, visible=True)

        found = find_weights(request.source, on_progress=on_download)
        restorer = build_restorer(found, protocol=protocol, device=request.device, precision=request.precision)
    return restorer


def _notices(restorer: Restorer) -> list[str]:
    """What users should be told of the weights and of what they compute in, with the first scan that runs."""
    source, verdict = restorer.network.source, restorer.network.precision_verdict
    told = [source.notice] if source is not None and source.notice else []
    return [*told, *([verdict.sentence] if verdict is not None and verdict.worth_telling else [])]


def _restore_all(
    restorer: Restorer, jobs: list[Job], settings: FileSettings, request: Request, talk: Console, place: Place
) -> list[Failure]:
    several = len(jobs) > 1 or place.folder is not None
    source = restorer.network.source
    batch = Batch(
        folder=place.folder,
        journal=place.journal,
        weights=source.sha256 if source else "",
        options=options_of(restorer, settings),
        overwrite=request.overwrite,
        retry_failed=request.batch.retry_failed,
        alone=not several,
        mirror=place.mirror,
    )
    with progress_on(talk) as progress:
        bar = progress.add_task("scans", total=len(jobs), visible=several)

        def tell_of(made: Made) -> None:
            _report(made.report, talk, request.json)

        watcher = ScanWatcher(talk, request.json, several, progress, bar, tell_of, _notices(restorer))
        items = items_of(jobs, request.inputs, settings)
        # Of places elsewhere no more is taken than is under way: they may fall silent.
        engine = _engine(restorer, settings, request, several, overlap=several and place.mirror is None)
        failures = run_batch(items, engine, batch, watcher)
    if len(failures) < len(jobs):
        talk.print(f"{RESEARCH_USE}. {DETAILS}.", style="dim")
    return [(item.work, error) for item, error in failures]


def _engine(restorer: Restorer, settings: FileSettings, request: Request, several: bool, *, overlap: bool) -> Engine:
    if request.batch.engine == "local":
        return Local(RestoreWorker(restorer, settings, several), overlap)
    import torch

    from hybrid.batch.cluster import OnRay

    source, threads = restorer.network.source, torch.get_num_threads()
    assert source is not None
    recipe = RestoreRecipe(
        source=portable_source(request.source, source),
        sha256=source.sha256,
        protocol=restorer.protocol,
        device=request.device,
        precision=restorer.network.precision,  # as it was decided here, on every machine
        threads=threads,
        settings=settings,
        resume=several,
    )
    return OnRay(recipe, request.batch, threads=threads, device=request.device)


def _plan_all(
    restorer: Restorer, jobs: list[Job], settings: FileSettings, request: Request, talk: Console, several: bool
) -> list[Failure]:
    """Plans are the answer that was asked for: they go to standard output, and quiet does not hide them."""
    out = results()
    failures: list[Failure] = []
    per_pixel: float | None = None
    notices = _notices(restorer)
    for job in jobs:
        try:
            outputs = check_targets(job, replace(settings, overwrite=True))  # a plan replaces nothing
            volume, plan, doubtful = plan_file(restorer, job, settings)
        except HybridError as error:
            failures.append((job, error))
            tell_failure(failures[-1], talk, several=several, as_json=request.json)
            continue
        while notices:
            talk.print(notices.pop(0), style="dim")
        for doubt in doubtful:
            talk.print(f"{job.source.name}: {doubt}", style="yellow")
        per_pixel = per_pixel or seconds_per_pixel(restorer)
        seconds = per_pixel * plan.pixels
        memory = volume.values.nbytes + _result_bytes(plan, settings, volume.values.itemsize) + plan.tiles.memory_bytes
        if request.json:
            facts = {"input": str(job.source), "outputs": [str(path) for path in outputs], "slices": plan.to_dict()}
            out.out(json.dumps(facts | {"memory_bytes": memory, "seconds": seconds}, ensure_ascii=False))
        else:
            there = ", which is there" * outputs[0].exists()
            out.out(
                f"{job.source}: {plan.describe()}; about {format_size(memory)} with the scan, {format_duration(seconds)}; "
                f"to {outputs[0]}{there}"
            )
    return failures


def _report(outcome: Outcome, talk: Console, as_json: bool) -> None:
    if as_json:
        facts = {
            "input": str(outcome.input),
            "outputs": [str(path) for path in outcome.outputs],
            "seconds": outcome.seconds,
            "slices": outcome.slices,
            "storage": outcome.storage,
            "removed": outcome.removed,
            "removed_share": outcome.share,
            "notes": outcome.notes,
            "research_use": f"{RESEARCH_USE}. {DETAILS}.",
        }
        results().out(json.dumps(facts, ensure_ascii=False))
        return
    talk.print(f"{outcome.outputs[0]}  {outcome.seconds:.1f} s")
    talk.print(f"  {outcome.storage}; taken away: {outcome.removed:.3g} RMS, {100 * outcome.share:.1f} % of the scan's range")


def _result_bytes(plan: SlicePlan, settings: FileSettings, itemsize: int) -> int:
    i, j, k = plan.turn.grid.shape
    return i * j * k * (4 if settings.run.dtype == "float32" else itemsize)
