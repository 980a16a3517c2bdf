"""Scans to segment as items of a batch (`hybrid.batch.engine`): what a worker needs, and what label maps depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.batch import engine as batch
from hybrid.batch.journal import options_digest
from hybrid.batch.place import name_below
from hybrid.batch.work import Stages, finish
from hybrid.devices import set_threads
from hybrid.errors import HybridError
from hybrid.loading import check_same_weights
from hybrid.records import sha256_file
from medical.files.inputs import Job
from medical.files.outputs import FileSettings, planned_outputs
from medical.files.segment import is_done, members_of, segment_stages
from medical.loading import build, find_weights
from medical.models.base import SegmentationNetwork
from medical.segmentation.preparation import Preparation
from medical.segmentation.roi import mask_path
from medical.segmentation.run import protocol_of
from medical.segmentation.sliding import WindowPlan, device_of

MANY_WINDOWS = 50
"""From so many passes of the network on, what a scan is in for is said before it runs."""

Networks = tuple[SegmentationNetwork, ...]
"""The one that was asked for, and further members of an ensemble."""


@dataclass(frozen=True)
class SegmentWorker:
    """Networks that segment one scan after the other.

    Attributes:
        networks: It, or they.
        settings: As of `medical.files.segment.segment_file`.
        resume: Whether a scan whose files are there, as their record says, is left as it is.
    """

    networks: Networks
    settings: FileSettings
    resume: bool

    def run(self, work: Job, *, replace: bool, tell: batch.Tell) -> batch.Made:
        """Segment a scan; its folder is there. The report is the `Outcome`, and what was told before the network ran."""
        return finish(self.stages(work, replace=replace), tell)

    def stages(self, work: Job, *, replace: bool) -> Stages[batch.Made]:
        """The same in stages."""
        settings = self.settings if not replace else _overwriting(self.settings)
        if self.resume and is_done(work, self.networks[0], settings, ensemble=self.networks[1:]):
            return batch.Made(tuple(path for path in planned_outputs(work, settings) if path.exists()), skipped=True)
        told: list[str] = []

        def begin(tell: batch.Tell, way: Preparation, plan: WindowPlan, doubtful: Sequence[str]) -> None:
            for doubt in doubtful:
                tell.say(f"{work.source.name}: {doubt}", "yellow")
            told.extend(doubtful)
            if plan.tiles.count * plan.views >= MANY_WINDOWS:
                tell.say(f"{work.source.name}: {way.describe()}; {plan.describe()}", "dim")

        outcome = yield from segment_stages(self.networks[0], work, settings, ensemble=self.networks[1:], on_start=begin)
        return batch.Made(outcome.outputs, (outcome, tuple(told)))


@dataclass(frozen=True)
class SegmentRecipe:
    """What another process makes a `SegmentWorker` of.

    Attributes:
        sources: Names of the weights, or their files, which all machines must see; the network's first.
        sha256: Of each: on every machine the same.
        options, device, precision: As of `medical.load_model`.
        threads: To compute with.
        settings, resume: Of the worker.
    """

    sources: tuple[str | Path, ...]
    sha256: tuple[str, ...]
    device: str
    precision: str
    threads: int
    settings: FileSettings
    resume: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, room: int | None = None) -> SegmentWorker:
        """Load the networks.

        Args:
            room: Memory that the worker may take where the user has set no bound.

        Raises:
            WeightsError: They cannot be had, or are others on this machine.
        """
        set_threads(self.threads)
        networks = tuple(
            load_pinned(source, sha256, self.device, self.precision, self.options)
            for source, sha256 in zip(self.sources, self.sha256, strict=True)
        )
        settings = self.settings
        if settings.run.memory is None and device_of(networks[0]).type == "cpu":
            settings = replace(settings, run=replace(settings.run, memory=room))
        return SegmentWorker(networks, settings, self.resume)


def load_pinned(source: str | Path, sha256: str, device: str, precision: str, options: Mapping[str, Any]) -> SegmentationNetwork:
    """The network of weights that are the same on every machine; arguments as of `medical.load_model`.

    Raises:
        WeightsError: They cannot be had, or are others on this machine.
    """
    found = find_weights(source)
    network = build(found, device=device, precision=precision, **options)
    check_same_weights(network, sha256)
    return network


def items_of(jobs: Iterable[Job], inputs: Sequence[str], settings: FileSettings) -> list[batch.Item]:
    """Scans as items; names in the journal are relative to the `inputs` that the user has named."""
    return [batch.Item(name_below(job.source, inputs), job.sources, _outputs(job, settings), job) for job in jobs]


def options_of(networks: Networks, settings: FileSettings) -> str:
    """The digest of what changes results beside the network's weights. Memory does not."""
    mask = mask_path(settings.run.roi or "")
    facts = {
        "settings": settings.facts(),
        "format": settings.format,
        "files": [settings.report, settings.run.probabilities],
        "protocol": protocol_of(networks[0], settings.protocol).model_dump(mode="json"),
        "networks": [network.options() for network in networks],
        "precision": networks[0].precision,
        "roi": sha256_file(mask) if mask is not None else settings.run.roi,
    }
    if settings.uncertainty:
        facts["members"] = [member.to_dict() for member in members_of(networks, settings)]
    return options_digest(facts)


def _outputs(job: Job, settings: FileSettings) -> tuple[Path, ...]:
    try:
        return planned_outputs(job, settings)
    except HybridError:  # told by the worker when its turn comes
        return (job.target,)


def _overwriting(settings: FileSettings) -> FileSettings:
    return replace(settings, overwrite=True)
