"""Pictures as items of a batch (`hybrid.batch.engine`): what a worker needs to restore them, and what their results depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid.batch.engine import Item, Made, Tell
from hybrid.batch.journal import options_digest
from hybrid.batch.place import name_below
from hybrid.batch.work import Stages, finish
from hybrid.devices import set_threads
from hybrid.loading import check_same_weights, portable_source
from hybrid.precision.check import Verdict
from hybrid.records import record_path
from restore.loading import build, find_weights
from restore.models.base import RestorationNetwork
from restore.restoration.ensemble import SelfEnsemble
from restore.restoration.inputs import Job, check_name
from restore.restoration.run import Outcome, RunSettings, file_stages


@dataclass(frozen=True)
class PictureWorker:
    """A network that restores one picture after the other.

    Attributes:
        network, settings: As of `restore.restoration.run.restore_file`.
        notes: What every record must say besides.
    """

    network: RestorationNetwork
    settings: RunSettings
    notes: tuple[str, ...] = ()

    def run(self, work: Job, *, replace: bool, tell: Tell) -> Made:
        """Restore a picture; its folders are there. The report is its `Outcome`."""
        return finish(self.stages(work, replace=replace), tell)

    def stages(self, work: Job, *, replace: bool) -> Stages[Made]:
        """The same in stages."""
        check_name(work)
        settings = settings_of(work, self.settings, replace=replace)
        outcome = yield from file_stages(self.network, work.source, work.target, settings, notes=self.notes)
        return Made(_written(work, outcome), outcome)


@dataclass(frozen=True)
class PinnedWeights:
    """Weights that are the same on every machine.

    Attributes:
        source: Their name, or their file, which all machines must see.
        sha256: Of the file.
        scale: Of the network.
        precision, verdict: What it computes in on every machine, and why.
    """

    source: str | Path
    sha256: str
    scale: int
    precision: str
    verdict: Verdict | None

    @classmethod
    def of(cls, network: RestorationNetwork, asked: str | Path) -> PinnedWeights:
        """Those of a network that was loaded by what was asked for."""
        assert network.source is not None
        source, verdict = portable_source(asked, network.source), network.precision_verdict
        return cls(source, network.source.sha256, network.card.scale, network.precision, verdict)

    def load(self, device: str) -> RestorationNetwork:
        """The network; `device` as of `restore.load_model`.

        Raises:
            WeightsError: The weights cannot be had, or are others on this machine.
        """
        found, _ = find_weights(self.source, self.scale)
        network: RestorationNetwork = build(found, scale=self.scale, device=device, precision=self.precision)
        check_same_weights(network, self.sha256)
        network.precision_verdict = self.verdict
        return network


@dataclass(frozen=True)
class PictureRecipe:
    """What another process makes a `PictureWorker` of.

    Attributes:
        weights: Of the network.
        device: As of `restore.load_model`.
        ensemble: Whether results are the mean over eight flips and turns.
        threads: To compute with.
        settings, notes: Of the worker.
    """

    weights: PinnedWeights
    device: str
    ensemble: bool
    threads: int
    settings: RunSettings
    notes: tuple[str, ...] = ()

    def make(self, room: int | None = None) -> PictureWorker:
        """Load the network.

        Args:
            room: Memory that the worker may take where the user has set no bound.

        Raises:
            WeightsError: They cannot be had, or are others on this machine.
        """
        set_threads(self.threads)
        network = self.weights.load(self.device)
        settings = self.settings
        if settings.memory is None and next(network.parameters()).device.type == "cpu":
            settings = dataclasses.replace(settings, memory=room)
        return PictureWorker(SelfEnsemble(network) if self.ensemble else network, settings, self.notes)


def items_of(jobs: Iterable[Job], inputs: Sequence[str], settings: RunSettings, outputs: int) -> list[Item]:
    """Pictures as items.

    Args:
        jobs: The pictures.
        inputs: What the user has named, which names in the journal are relative to.
        settings: How they are run.
        outputs: Of the network.
    """
    return [Item(name_below(job.source, inputs), (job.source,), planned_outputs(job, settings, outputs), job) for job in jobs]


def planned_outputs(job: Job, settings: RunSettings, outputs: int) -> tuple[Path, ...]:
    """All files that a picture may give, the result first."""
    return (job.target, record_path(job.target), *settings_of(job, settings).selection.beside(job.target, outputs))


def settings_of(job: Job, settings: RunSettings, *, replace: bool = False) -> RunSettings:
    """The settings of one picture, which may have a map of its own."""
    selection = dataclasses.replace(settings.selection, uncertainty=job.map)
    return dataclasses.replace(settings, selection=selection, overwrite=settings.overwrite or replace)


def options_of(settings: RunSettings, network: RestorationNetwork, *, ensemble: bool, maps: bool) -> str:
    """The digest of what changes results beside the weights. Memory does not: it changes tiles a little, and no wish."""
    facts = {name: value for name, value in asdict(settings).items() if name not in ("memory", "max_pixels", "overwrite")}
    return options_digest(facts | {"ensemble": ensemble, "maps": maps, "precision": network.precision})


def _written(job: Job, outcome: Outcome) -> tuple[Path, ...]:
    candidates = outcome.figures.get("candidates")
    names = list(candidates) if isinstance(candidates, dict) else []
    beside = [job.target.with_name(name) for name in names] + ([job.map] if job.map else [])
    return tuple(path for path in (job.target, *beside, record_path(job.target)) if path.exists())
