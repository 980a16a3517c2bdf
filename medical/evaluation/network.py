"""A network as what is evaluated: each scan goes the road of `medical segment`, with the network loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_specs import SegmentationSpec
from hybrid.devices import set_threads
from hybrid.errors import RequestError
from medical.evaluation.engine import EvaluationCase, EvaluationPlan, EvaluationWorker, Made, Prediction
from medical.files.batch import load_pinned
from medical.files.inputs import read_scan
from medical.models.base import SegmentationNetwork
from medical.pictures.label_maps import pixel_grid
from medical.pictures.reading import of_picture
from medical.protocol import Protocol
from medical.segmentation.run import SegmentSettings, protocol_of, segment
from medical.segmentation.sliding import device_of


class Network:
    """Segments the scan of a case.

    Args:
        network: From `medical.load_model`.
        settings: As for `medical.segmentation.run.segment`.
        protocol: What the network asks of a scan, where its file does not say it.

    Raises:
        RequestError: There is no protocol.
    """

    def __init__(
        self, network: SegmentationNetwork, settings: SegmentSettings | None = None, *, protocol: Protocol | None = None
    ) -> None:
        self.network = network
        self.settings = settings or SegmentSettings()
        self.protocol = protocol_of(network, protocol)

    def __call__(self, case: EvaluationCase) -> Prediction:
        volume = read_scan(case.images, channels=len(self.protocol.channels))
        result = segment(volume, self.network, self.settings, protocol=self.protocol)
        grid = pixel_grid(result.labels) if of_picture(volume) else volume.grid
        return Prediction(result.labels, grid, result.notes, result.probabilities)

    def made(self, spec: SegmentationSpec | None = None) -> Made:
        """What a report must say of the model and of how it is run; with a data set, where names differ from its own."""
        network, protocol, settings = self.network, self.protocol, self.settings
        source = network.source
        model = {
            "name": source.name if source is not None else network.card.title,
            "weights": source.file if source is not None else None,
            "sha256": source.sha256 if source is not None else None,
            "origin": source.origin if source is not None else None,
            "family": network.card.family,
            "title": network.card.title,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "options": network.options(),
            "protocol": protocol.model_dump(mode="json"),
        }
        inference = {
            "window": list(protocol.patch),
            "overlap": protocol.overlap if settings.overlap is None else settings.overlap,
            "weighting": "gaussian",
            "mirror": list(protocol.mirror) if settings.mirror else [],
            "largest_component": settings.largest_component,
            "fill_holes": settings.fill_holes,
            "device": str(device_of(network)),
            "precision": network.precision,
        }
        return Made(model, inference, check_structures(protocol, spec) if spec is not None else ())


@dataclass(frozen=True)
class NetworkRecipe:
    """What another process makes an `EvaluationWorker` of, whose label maps a network gives.

    Attributes:
        plan: What is scored.
        source, sha256: Name of the weights, or their file, which all machines must see; on every machine the same.
        options, device, precision: As of `medical.load_model`.
        threads: To compute with.
        settings, protocol: As of `Network`.
    """

    plan: EvaluationPlan
    source: str | Path
    sha256: str
    device: str
    precision: str
    threads: int
    settings: SegmentSettings
    protocol: Protocol | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, room: int | None = None) -> EvaluationWorker:
        """Load the network; `room` is the memory that the worker may take where the user has set no bound.

        Raises:
            WeightsError: The weights cannot be had, or are others on this machine.
        """
        set_threads(self.threads)
        network = load_pinned(self.source, self.sha256, self.device, self.precision, self.options)
        memory = self.settings.memory
        if memory is None and device_of(network).type == "cpu":
            memory = room
        return EvaluationWorker(self.plan, Network(network, replace(self.settings, memory=memory), protocol=self.protocol))


def check_structures(protocol: Protocol, spec: SegmentationSpec) -> tuple[str, ...]:
    """Whether a network's outputs mean what a data set's labels mean; differing names as sentences for the report.

    Raises:
        RequestError: The network lacks a value that is scored.
    """
    found = {structure.value: structure.name for structure in protocol.structures}
    scored = sorted({value for target in spec.scored for value in target.values})
    if missing := [value for value in scored if value not in found]:
        names = {structure.value: structure.name for structure in spec.structures}
        raise RequestError(
            f"The network does not segment {_named(missing, names)} of {spec.title}.",
            hint="Choose a network that was trained on this data set, or a description of your own with fewer structures.",
        )
    given = {structure.value: structure.name for structure in spec.structures}
    return tuple(
        f"Value {value} is {found[value]} for the network and {given[value]} in the data set."
        for value in scored
        if found[value].casefold() != given[value].casefold()
    )


def _named(values: Sequence[int], names: dict[int, str]) -> str:
    return ", ".join(f"{value} ({names[value]})" for value in values)
