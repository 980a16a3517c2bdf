"""What `medical restore` does with its request."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from hybrid.console import folder_of, messages, progress_on, results
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError
from hybrid.memory import format_size, parse_size
from medical.cli_batch import Failure, format_duration, raise_failures, tell_failure
from medical.inputs import Job, plan_jobs
from medical.loading import find_weights
from medical.notice import RESEARCH_USE
from medical.restoration import RestoreSettings, SlicePlan, seconds_per_pixel
from medical.restoration_files import (
    RESTORED,
    FileSettings,
    Outcome,
    check_jobs,
    check_targets,
    is_done,
    is_restored,
    plan_file,
    planned_outputs,
    restore_file,
)
from medical.restoration_loading import Restorer, build_restorer, read_restoration_protocol
from medical.restoration_preview import DETAILS

MANY_TILES = 400
"""From so many runs of the network on, what a scan is in for is said before it runs."""


@dataclass(frozen=True)
class Request:
    """The command line of `medical restore`, as given."""

    inputs: tuple[str, ...]
    source: str | Path
    protocol: Path | None
    output: Path | None
    volume: int | None
    series: str | None
    dtype: Literal["source", "float32"]
    tile: int | None
    preview: bool
    overwrite: bool
    memory: str | None
    threads: int | None
    device: str
    precision: str
    plan_only: bool
    json: bool
    quiet: bool

    def settings(self) -> FileSettings:
        """The settings that hold for every scan.

        Raises:
            RequestError: A size that is none.
        """
        run = RestoreSettings(self.dtype, self.tile, parse_size(self.memory) if self.memory is not None else None)
        return FileSettings(run, self.preview, self.overwrite, self.volume, self.series)


def asked_source(model: str | None, weights: Path | None) -> str | Path:
    """What is to be loaded, by --model and --weights as they were given.

    Raises:
        RequestError: Neither was given: no network ships with the package.
    """
    source = weights if weights is not None else model
    if source is None:
        raise RequestError(
            "No network that restores scans ships with the package yet.",
            hint="Give --weights FILE; `medical train denoise-mr-compact` trains one from scans.",
        )
    return source


def run(request: Request) -> None:
    """Restore every scan of a request, or plan it. One that fails does not stop the others.

    Raises:
        HybridError: The request cannot be met at all, or scans failed: the scan's own error if there was only one, else a
            list of all.
    """
    settings = request.settings()
    talk = messages(quiet=request.quiet)
    # Paths are checked before weights are looked for: a wrong path should not cost a download.
    jobs = _jobs(request)
    check_jobs(jobs, settings)
    several = len(jobs) > 1 or jobs[0].source != Path(request.inputs[0])
    if not several and not request.plan_only:
        check_targets(jobs[0], settings)
    restorer = _load(request, talk)
    batch = _Batch(restorer, settings, talk, several, request.json)
    raise_failures(batch.plan(jobs) if request.plan_only else batch.restore(jobs), len(jobs))


def _jobs(request: Request) -> list[Job]:
    """The scans of a request. Restored scans that lie in a folder beside their scans are passed over."""
    jobs = plan_jobs(request.inputs, request.output, studies=request.series is not None, naming=RESTORED)
    named = {Path(text) for text in request.inputs}
    return [job for job in jobs if job.source in named or not is_restored(job.source)] or jobs


def _load(request: Request, talk: Console) -> Restorer:
    set_threads(request.threads)  # no more than this process may use, which torch does not ask a container for
    protocol = read_restoration_protocol(request.protocol) if request.protocol is not None else None
    with progress_on(talk) as progress:
        task = progress.add_task("weights", visible=False)

        def on_download(done: int, total: int) -> None:
            progress.update(task, completed=done // 1024, total=total // 1024, visible=True)

        found = find_weights(request.source, on_progress=on_download)
        restorer = build_restorer(found, protocol=protocol, device=request.device, precision=request.precision)
    if restorer.network.source is not None and restorer.network.source.notice:
        talk.print(restorer.network.source.notice, style="dim")
    return restorer


@dataclass(frozen=True)
class _Batch:
    """What holds for all scans of a request."""

    restorer: Restorer
    settings: FileSettings
    talk: Console
    several: bool
    json: bool

    def restore(self, jobs: list[Job]) -> list[Failure]:
        failures: list[Failure] = []
        with progress_on(self.talk) as progress:
            for job in jobs:
                try:
                    if self.several and is_done(job, self.restorer, self.settings):
                        self._skipped(job)
                        continue
                    with folder_of(job.target):
                        self._report(self._one(job, progress))
                except HybridError as error:
                    failures.append((job, error))
                    tell_failure(failures[-1], self.talk, self.several, self.json)
        if len(failures) < len(jobs):
            self.talk.print(f"{RESEARCH_USE}. {DETAILS}.", style="dim")
        return failures

    def plan(self, jobs: list[Job]) -> list[Failure]:
        """Plans are the answer that was asked for: they go to standard output, and quiet does not hide them."""
        out, failures = results(), []
        per_pixel: float | None = None
        for job in jobs:
            try:
                outputs = check_targets(job, replace(self.settings, overwrite=True))  # a plan replaces nothing
                volume, plan, doubtful = plan_file(self.restorer, job, self.settings)
            except HybridError as error:
                failures.append((job, error))
                tell_failure(failures[-1], self.talk, self.several, self.json)
                continue
            for doubt in doubtful:
                self.talk.print(f"{job.source.name}: {doubt}", style="yellow")
            per_pixel = per_pixel or seconds_per_pixel(self.restorer)
            seconds = per_pixel * plan.pixels
            memory = volume.values.nbytes + _result_bytes(plan, self.settings, volume.values.itemsize) + plan.tiles.memory_bytes
            if self.json:
                facts = {"input": str(job.source), "outputs": [str(path) for path in outputs], "slices": plan.to_dict()}
                out.out(json.dumps(facts | {"memory_bytes": memory, "seconds": seconds}, ensure_ascii=False))
            else:
                there = ", which is there" * outputs[0].exists()
                out.out(
                    f"{job.source}: {plan.describe()}; about {format_size(memory)} with the scan, {format_duration(seconds)}; "
                    f"to {outputs[0]}{there}"
                )
        return failures

    def _one(self, job: Job, progress: Progress) -> Outcome:
        task = progress.add_task(job.source.name, total=None)

        def begin(plan: SlicePlan, doubtful: tuple[str, ...]) -> None:
            for doubt in doubtful:
                self.talk.print(f"{job.source.name}: {doubt}", style="yellow")
            if plan.count * plan.tiles.count >= MANY_TILES:
                self.talk.print(f"{job.source.name}: {plan.describe()}", style="dim")

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        try:
            return restore_file(self.restorer, job, self.settings, on_start=begin, on_progress=on_progress)
        finally:
            progress.remove_task(task)

    def _report(self, outcome: Outcome) -> None:
        if self.json:
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
        self.talk.print(f"{outcome.outputs[0]}  {outcome.seconds:.1f} s")
        self.talk.print(
            f"  {outcome.storage}; taken away: {outcome.removed:.3g} RMS, {100 * outcome.share:.1f} % of the scan's range"
        )

    def _skipped(self, job: Job) -> None:
        restored = planned_outputs(job, self.settings)[0]
        if self.json:
            results().out(json.dumps({"input": str(job.source), "skipped": str(restored)}, ensure_ascii=False))
        else:
            self.talk.print(f"{restored}  is there already, of the same scan, network and settings: skipped")


def _result_bytes(plan: SlicePlan, settings: FileSettings, itemsize: int) -> int:
    i, j, k = plan.turn.grid.shape
    return i * j * k * (4 if settings.run.dtype == "float32" else itemsize)
