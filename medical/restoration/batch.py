"""Scans to restore as items of a batch (`hybrid.batch.engine`): what a worker needs, and what restored scans depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.batch.engine import Item, Made, Tell
from hybrid.batch.journal import options_digest
from hybrid.batch.place import name_below
from hybrid.batch.work import Stages, finish
from hybrid.devices import set_threads
from hybrid.loading import check_same_weights
from medical.files.inputs import Job
from medical.loading import find_weights
from medical.restoration.files import FileSettings, is_done, planned_outputs, restore_stages
from medical.restoration.loading import Restorer, build_restorer
from medical.restoration.protocol import RestorationProtocol
from medical.restoration.run import SlicePlan, device_of

MANY_TILES = 400
"""From so many runs of the network on, what a scan is in for is said before it runs."""


@dataclass(frozen=True)
class RestoreWorker:
    """A network that restores one scan after the other.

    Attributes:
        restorer, settings: As of `medical.restoration.files.restore_file`.
        resume: Whether a scan whose files are there, as their record says, is left as it is.
    """

    restorer: Restorer
    settings: FileSettings
    resume: bool

    def run(self, work: Job, *, replace: bool, tell: Tell) -> Made:
        """Restore a scan; its folder is there. The report is its `Outcome`."""
        return finish(self.stages(work, replace=replace), tell)

    def stages(self, work: Job, *, replace: bool) -> Stages[Made]:
        """The same in stages."""
        settings = dataclasses.replace(self.settings, overwrite=self.settings.overwrite or replace)
        if self.resume and is_done(work, self.restorer, settings):
            return Made(planned_outputs(work, settings), skipped=True)

        def begin(tell: Tell, plan: SlicePlan, doubtful: tuple[str, ...]) -> None:
            for doubt in doubtful:
                tell.say(f"{work.source.name}: {doubt}", "yellow")
            if plan.count * plan.tiles.count >= MANY_TILES:
                tell.say(f"{work.source.name}: {plan.describe()}", "dim")

        outcome = yield from restore_stages(self.restorer, work, settings, on_start=begin)
        return Made(outcome.outputs, outcome)


@dataclass(frozen=True)
class RestoreRecipe:
    """What another process makes a `RestoreWorker` of.

    Attributes:
        source: Name of the weights, or their file, which all machines must see.
        sha256: Of the weights: on every machine the same.
        protocol, device, precision: As of `medical.restoration.loading.load_restorer`.
        threads: To compute with.
        settings, resume: Of the worker.
    """

    source: str | Path
    sha256: str
    protocol: RestorationProtocol
    device: str
    precision: str
    threads: int
    settings: FileSettings
    resume: bool

    def make(self, room: int | None = None) -> RestoreWorker:
        """Load the network.

        Args:
            room: Memory that the worker may take where the user has set no bound.

        Raises:
            WeightsError: They cannot be had, or are others on this machine.
        """
        set_threads(self.threads)
        found = find_weights(self.source)
        restorer = build_restorer(found, protocol=self.protocol, device=self.device, precision=self.precision)
        check_same_weights(restorer.network, self.sha256)
        settings = self.settings
        if settings.run.memory is None and device_of(restorer).type == "cpu":
            settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, memory=room))
        return RestoreWorker(restorer, settings, self.resume)


def items_of(jobs: Iterable[Job], inputs: Sequence[str], settings: FileSettings) -> list[Item]:
    """Scans as items; names in the journal are relative to the `inputs` that the user has named."""
    return [Item(name_below(job.source, inputs), job.sources, planned_outputs(job, settings), job) for job in jobs]


def options_of(restorer: Restorer, settings: FileSettings) -> str:
    """The digest of what changes results beside the weights. Memory does not."""
    facts = {
        "settings": settings.facts(),
        "preview": settings.preview,
        "protocol": restorer.protocol.model_dump(mode="json"),
        "options": dict(restorer.options),
        "precision": restorer.network.precision,
    }
    return options_digest(facts)
