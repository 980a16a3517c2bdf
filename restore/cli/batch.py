"""How the commands for pictures go through them: as a batch that can be resumed, here or on Ray, or as plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from hybrid.batch.engine import Batch, Engine, Item, Local, Made, Tell, run_batch
from hybrid.batch.place import Place
from hybrid.batch.telling import Failure, tell_failure, tell_skipped
from hybrid.console import progress_on, results
from hybrid.errors import HybridError
from restore.cli.report import report
from restore.cli.road import Loaded, Request, check_target_of
from restore.images import probe
from restore.models.base import RestorationNetwork
from restore.restoration.batch import PictureRecipe, PictureWorker, PinnedWeights, items_of, options_of, settings_of
from restore.restoration.inputs import Job, check_name
from restore.restoration.one_output import as_asked
from restore.restoration.run import (
    RunSettings,
    check_size,
    describe_plan,
    expected_seconds,
    plan_file,
    result_size,
    seconds_per_pixel,
)


def work(
    request: Request, settings: RunSettings, loaded: Loaded, jobs: list[Job], talk: Console, *, many: bool, place: Place
) -> list[Failure]:
    """Run, or plan, every picture; returns those that failed."""
    network, stand_in = loaded
    if request.plan_only:
        return _plan_all(network, jobs, settings, talk, request.json, many=many)
    notes = (stand_in,) if stand_in else ()
    batch = Batch(
        folder=place.folder,
        journal=place.journal,
        weights=network.source.sha256 if network.source else "",
        options=options_of(settings, network, ensemble=request.ensemble, maps=request.selection.uncertainty is not None),
        overwrite=request.overwrite,
        retry_failed=request.batch.retry_failed,
        alone=not many,
        mirror=place.mirror,
    )
    with progress_on(talk) as progress:
        watcher = PictureWatcher(
            lambda outcome: report(outcome, notes, talk, request.json), talk, request.json, progress, len(jobs)
        )
        items = items_of(jobs, request.inputs, settings, network.card.outputs)
        # Of places elsewhere no more is taken than is under way: they may fall silent.
        engine = _engine(request, settings, network, notes, overlap=many and place.mirror is None)
        failures = run_batch(items, engine, batch, watcher)
    return [(item.work, error) for item, error in failures]


def _engine(
    request: Request, settings: RunSettings, network: RestorationNetwork, notes: tuple[str, ...], *, overlap: bool
) -> Engine:
    if request.batch.engine == "local":
        return Local(PictureWorker(network, settings, notes), overlap)
    import torch

    from hybrid.batch.cluster import OnRay

    recipe = PictureRecipe(
        PinnedWeights.of(network, request.source),
        request.device,
        request.ensemble,
        torch.get_num_threads(),
        settings,
        notes,
    )
    return OnRay(recipe, request.batch, threads=recipe.threads, device=request.device)


@dataclass(frozen=True)
class _Told(Tell):
    """Shows how one picture gets on."""

    bar: Progress
    task: TaskID
    talk: Console

    def progress(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)

    def say(self, text: str, style: str = "") -> None:
        self.talk.print(text, style=style)


class PictureWatcher:
    """Tells what comes of pictures.

    Args:
        report: Tells of a result, by what the worker reports.
        talk, json, bar: Where and how things are told.
        count: How many pictures there are.
    """

    def __init__(self, report: Callable[[Any], None], talk: Console, json: bool, bar: Progress, count: int) -> None:
        self.report, self.talk, self.json, self.bar, self.many = report, talk, json, bar, count > 1
        self.all = bar.add_task("pictures", total=count, visible=self.many)

    @contextmanager
    def watching(self, item: Item) -> Iterator[Tell]:
        task = self.bar.add_task(item.inputs[0].name, total=None)
        try:
            yield _Told(self.bar, task, self.talk)
        except BaseException as stop:
            for note in getattr(stop, "__notes__", ()):  # how to go on after Ctrl-C
                self.talk.print(note)
            raise
        finally:
            self.bar.remove_task(task)

    def done(self, item: Item, made: Made) -> None:
        self.report(made.report)
        self.bar.advance(self.all)

    def skipped(self, item: Item) -> None:
        tell_skipped(item.work.source, item.work.target, "picture", self.talk, self.json)
        self.bar.advance(self.all)

    def failed(self, item: Item, error: HybridError) -> None:
        tell_failure((item.work, error), self.talk, several=self.many, as_json=self.json)
        self.bar.advance(self.all)


def _plan_all(
    network: RestorationNetwork, jobs: list[Job], settings: RunSettings, talk: Console, as_json: bool, *, many: bool
) -> list[Failure]:
    """Plans are the answer that was asked for: they go to standard output, and quiet does not hide them."""
    out = results()
    per_pixel = seconds_per_pixel(network)
    failures: list[Failure] = []
    for job in jobs:
        try:
            check_name(job)
            check_target_of(job, settings, network.card.outputs)
            info = probe(job.source)
            check_size(info, job.target, settings)
            asked = settings_of(job, settings)
            plan = plan_file(as_asked(network, asked.selection), info, job.target, asked)
        except HybridError as error:
            failures.append((job, error))
            tell_failure(failures[-1], talk, several=many)
            continue
        if as_json:
            facts: dict[str, object] = {"input": str(job.source), "output": str(job.target)}
            facts |= {"seconds": expected_seconds(plan.tiles, per_pixel), "plan": plan.to_dict()}
            facts |= {"size": result_size(network.card.scale, info, settings)}
            out.out(json.dumps(facts, ensure_ascii=False))
        else:
            out.out(f"{job.source}: {describe_plan(plan, info, settings, per_pixel)}")
    return failures
