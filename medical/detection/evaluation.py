"""Detection of lesions, case by case: a folder of maps, or a network on a data set, against references.

`medical.detection.lesions` says what a candidate and a hit are, `medical.detection.scores` what comes of all cases together, and
`medical.detection.report` writes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import HybridError, InputError, RequestError
from medical.detection.lesions import DetectionRules, Detections, detect
from medical.detection.scores import DetectionScores, score_scans
from medical.evaluation.engine import (
    EvaluationCase,
    EvaluationPlan,
    Folder,
    Made,
    Progress,
    check_grid,
    file_names,
    without_strays,
)
from medical.evaluation.network import Network
from medical.files.inputs import read_scan
from medical.pictures.reading import of_picture
from medical.protocol import Protocol
from medical.segmentation.run import segment
from medical.volumes.geometry import Grid
from medical.volumes.label_maps import read_label_map
from medical.volumes.nifti import open_nifti
from medical.volumes.volume import read_volume

log = logging.getLogger(__name__)

ENDINGS = ("_detection_map", "_probabilities", "")
"""Maps are found by the name of their case with one of these behind it; the first that is there."""


@dataclass(frozen=True, eq=False)
class ConfidenceMap:
    """Confidences from 0 to 1, (i, j, k) on their grid, and what a reader should know of them."""

    values: NDArray[np.floating]
    grid: Grid
    notes: tuple[str, ...] = ()


MakeMap = Callable[[EvaluationCase], ConfidenceMap]


@dataclass(frozen=True)
class DetectionPlan:
    """All that will be scored.

    Attributes:
        cases: From `medical.evaluation.engine.plan_folders` or `plan_data_set`; its conventions do not count here.
        lesion: Values of the references that are lesions; empty: every value above 0.
        rules: What is a candidate, and what a hit.
    """

    cases: EvaluationPlan
    lesion: tuple[int, ...]
    rules: DetectionRules

    def __post_init__(self) -> None:
        if self.lesion and min(self.lesion) < 1:
            raise RequestError(f"The value {min(self.lesion)} is no lesion.", hint="Give values above 0 with --lesion.")


@dataclass(frozen=True)
class DetectionResult:
    """Lesions and candidates of a case, or the error that kept it from them.

    Attributes:
        name: The case.
        detections: None where there is an error.
        seconds: Reading and segmenting.
        notes: What a reader should know.
        error: Why there are none.
    """

    name: str
    detections: Detections | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class DetectionEvaluation:
    """What came out.

    Attributes:
        plan: What was asked.
        results: One for each case, in order.
        scores: Of the cases without an error.
        made: How the maps were made; None where they lay in a folder.
        seconds: Wall time of the whole.
    """

    plan: DetectionPlan
    results: tuple[DetectionResult, ...]
    scores: DetectionScores
    made: Made | None
    seconds: float

    @property
    def scans(self) -> tuple[Detections, ...]:
        """Lesions and candidates of the scans that could be scored."""
        return tuple(each.detections for each in self.results if each.detections is not None)

    @property
    def failures(self) -> tuple[DetectionResult, ...]:
        """Cases that could not be scored."""
        return tuple(each for each in self.results if each.error is not None)

    @property
    def exit_code(self) -> int:
        """1 if a case could not be scored, else 0."""
        return 1 if self.failures else 0


class MapFolder(Folder):
    """Maps that lie in a folder, found by the name of the case, of the reference or of the scan.

    Args:
        folder: With .nii or .nii.gz files; see `ENDINGS`.
        channel: Which volume of 4-D files is the confidence of a lesion, from 0; None: the second of two.
    """

    holds = "map"

    def __init__(self, folder: Path, channel: int | None = None) -> None:
        super().__init__(folder)
        self.channel = channel

    def find(self, case: EvaluationCase) -> Path | None:
        """The map of a case."""
        names = [f"{name}{ending}" for ending in ENDINGS for name in file_names(case)]
        return next((self.files[name] for name in names if name in self.files), None)

    def map_of(self, case: EvaluationCase) -> ConfidenceMap:
        """Read the map of a case.

        Raises:
            InputError: There is none, or it is damaged.
            RequestError: It is 4-D, and which of its volumes counts was not said.
        """
        path = self.find(case)
        if path is None:
            raise InputError(f"There is no map {case.name}.nii.gz in {self.folder.name}.", hint="Make one of that scan too.")
        count, channel = open_nifti(path).count, self.channel
        if count > 2 and channel is None:
            raise RequestError(
                f"{path.name} holds {count} classes.", hint=f"Say which of 0 to {count - 1} is the lesion with --channel."
            )
        found = read_volume(path, volume=channel if channel is not None else count - 1)
        return ConfidenceMap(found.values[0], found.grid)


class DetectionNetwork:
    """A network that makes the maps: the probability of a lesion, on the scan's own grid.

    Args:
        network: The network and how it is run.
        lesion: As in `DetectionPlan`.

    Raises:
        RequestError: The network's outputs do not tell those lesions.
    """

    def __init__(self, network: Network, lesion: tuple[int, ...]) -> None:
        self.network = network
        self.settings = replace(network.settings, probabilities=True)
        self.channels = lesion_channels(network.protocol, lesion)

    def map_of(self, case: EvaluationCase) -> ConfidenceMap:
        """Segment the scan of a case.

        Raises:
            HybridError: As `medical.segmentation.run.segment`; or the scan is a picture.
        """
        network = self.network
        volume = read_scan(case.images, channels=len(network.protocol.channels))
        if of_picture(volume):
            raise InputError(f"{volume.name} is a picture, and lesions are looked for in volumes.", hint="Give NIfTI files.")
        result = segment(volume, network.network, self.settings, protocol=network.protocol)
        assert result.probabilities is not None
        values = result.probabilities[list(self.channels)].sum(axis=0)
        return ConfidenceMap(np.minimum(values, 1), volume.grid, result.notes)

    def made(self) -> Made:
        """What a report must say of the model and of how it is run."""
        made = self.network.made()
        return replace(made, inference={**made.inference, "lesion_channels": list(self.channels)})


def lesion_channels(protocol: Protocol, lesion: tuple[int, ...]) -> tuple[int, ...]:
    """The outputs whose probabilities add up to that of a lesion.

    Args:
        protocol: Of the network.
        lesion: Values of its label map that are lesions; empty: all.

    Raises:
        RequestError: There are none: the network does not know a value, or its regions overlap and none is just these.
    """
    known = {structure.value: structure.name for structure in protocol.structures}
    if unknown := set(lesion) - set(known):
        raise RequestError(
            f"The network does not segment the value {min(unknown)}, but "
            f"{', '.join(f'{value} ({name})' for value, name in known.items())}.",
            hint="Choose among them with --lesion.",
        )
    wanted = set(lesion) or set(known)
    if not protocol.regions:
        return tuple(sorted(wanted))
    found = [region.channel for region in protocol.regions if set(region.values or (region.value,)) == wanted]
    if not found:
        raise RequestError(
            f"No output of the network is the region of the values {', '.join(map(str, sorted(wanted)))}.",
            hint="Name the values of one of its regions with --lesion.",
        )
    return (found[0],)


def run_detection(
    plan: DetectionPlan, make: MakeMap, *, made: Made | None = None, on_progress: Progress | None = None
) -> DetectionEvaluation:
    """Score every case, and all together.

    A case that fails for a reason of the project's own errors becomes a result with an error, which no score counts; the
    others go on.

    Args:
        plan: What is scored.
        make: Gives the map of a case: `MapFolder.map_of` or `DetectionNetwork.map_of`.
        made: How the maps are made, for the report.
        on_progress: Called as (cases done, cases in all).
    """
    start = time.perf_counter()
    results = []
    for case in plan.cases.cases:
        try:
            results.append(_evaluate(plan, case, make))
        except HybridError as error:
            log.info("%s failed: %s", case.name, error)
            results.append(DetectionResult(case.name, error=str(error)))
        if on_progress is not None:
            on_progress(len(results), len(plan.cases.cases))
    scores = score_scans([each.detections for each in results if each.detections is not None])
    return DetectionEvaluation(plan, tuple(results), scores, made, time.perf_counter() - start)


def _evaluate(plan: DetectionPlan, case: EvaluationCase, make: MakeMap) -> DetectionResult:
    reference = read_label_map(case.reference)
    labels, notes = without_strays(reference.labels, plan.cases.spec)
    start = time.perf_counter()
    found = make(case)
    seconds = time.perf_counter() - start
    check_grid(found.grid, reference.grid)
    lesions = np.isin(labels, plan.lesion) if plan.lesion else labels > 0
    told = tuple(f"Reference: {warning}" for warning in reference.warnings)
    return DetectionResult(
        case.name, detect(found.values, lesions, reference.grid, plan.rules), seconds, (*notes, *told, *found.notes)
    )
