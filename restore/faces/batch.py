"""Pictures with faces as items of a batch (`hybrid.batch.engine`): what a worker needs, and what results depend on."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid.batch.engine import Item, Made, Tell
from hybrid.batch.journal import options_digest
from hybrid.batch.place import name_below
from hybrid.batch.work import Stages, finish
from hybrid.devices import set_threads
from hybrid.records import record_path
from restore.faces.detection import Face
from restore.faces.files import FaceRun, face_stages, record_of
from restore.models.base import RestorationNetwork
from restore.restoration.batch import PinnedWeights
from restore.restoration.inputs import Job, check_name


@dataclass(frozen=True)
class FaceJob(Job):
    """A picture, its result, and what else holds for it alone.

    Attributes:
        known: Faces that need not be searched.
        sheet: Where its faces before and after are drawn.
        faces: Folder for its aligned faces.
    """

    known: tuple[Face, ...] | None = None
    sheet: Path | None = None
    faces: Path | None = None


@dataclass(frozen=True)
class FaceWorker:
    """A network that restores the faces of one picture after the other, as of `restore_faces_file`."""

    network: RestorationNetwork
    settings: FaceRun

    def run(self, work: FaceJob, *, replace: bool, tell: Tell) -> Made:
        """Restore the faces of a picture; its folders are there. The report is that of `record_of`."""
        return finish(self.stages(work, replace=replace), tell)

    def stages(self, work: FaceJob, *, replace: bool) -> Stages[Made]:
        """The same in stages."""
        check_name(work)
        settings = dataclasses.replace(self.settings, overwrite=self.settings.overwrite or replace, faces=work.faces)
        outcome = yield from face_stages(self.network, work.source, work.target, settings, known=work.known, sheet=work.sheet)
        return Made(outcome.files, record_of(outcome))


@dataclass(frozen=True)
class FaceRecipe:
    """What another process makes a `FaceWorker` of.

    Attributes:
        face, background: The networks; no second one where the background is enlarged by none.
        device: As of `restore.load_model`.
        threads: To compute with.
        settings: Of the worker, without its enlarger.
    """

    face: PinnedWeights
    background: PinnedWeights | None
    device: str
    threads: int
    settings: FaceRun

    def make(self, room: int | None = None) -> FaceWorker:
        """Load the networks.

        Args:
            room: Memory that the worker may take where the user has set no bound.

        Raises:
            WeightsError: They cannot be had, or are others on this machine.
        """
        set_threads(self.threads)
        network = self.face.load(self.device)
        enlarger = None if self.background is None else self.background.load(self.device)
        memory = self.settings.memory
        if memory is None and next(network.parameters()).device.type == "cpu":
            memory = room
        return FaceWorker(network, dataclasses.replace(self.settings, enlarger=enlarger, memory=memory))


def items_of(jobs: Iterable[FaceJob], inputs: Sequence[str]) -> list[Item]:
    """Pictures as items; `inputs` is what the user has named, which names in the journal are relative to."""
    return [Item(name_below(job.source, inputs), (job.source,), planned_outputs(job), job) for job in jobs]


def planned_outputs(job: FaceJob) -> tuple[Path, ...]:
    """The files that a picture may give, the result first; of aligned faces those that a run before has saved."""
    saved = sorted(job.faces.glob(f"{glob.escape(job.source.stem)}_face*.png")) if job.faces is not None else ()
    return (job.target, record_path(job.target), *filter(None, (job.sheet,)), *saved)


def options_of(settings: FaceRun, network: RestorationNetwork, boxes: str, *, sheets: bool) -> str:
    """The digest of what changes results beside the weights; `boxes` is the hash of the file of known faces."""
    facts = asdict(dataclasses.replace(settings, enlarger=None))
    facts = {name: value for name, value in facts.items() if name not in ("enlarger", "memory", "max_pixels", "overwrite")}
    enlarger = settings.enlarger
    background = None if enlarger is None or enlarger.source is None else enlarger.source.sha256
    return options_digest(facts | {"background": background, "boxes": boxes, "sheets": sheets, "precision": network.precision})
