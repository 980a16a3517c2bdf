"""How sure a segmentation is: what several networks, or one network before mirror images of a scan, agree on.

    result = segment_with_uncertainty(read_volume("scan.nii.gz"), [medical.load_model("hippocampus")])
    result.labels, result.entropy, result.mutual_information, result.disagreement

A *member* is one network with one mirror image. Its probabilities are p(m), their mean is p. The label map is the arg-max of p.
The entropy H(p) says how unsure the members are together. It is the sum of two parts: the mean of H(p(m)), what each of them
is unsure of by itself, as at a blurred border; and the mutual information, what they contradict each other in (Depeweg et al.,
ICML 2018; for ensembles Lakshminarayanan et al., NeurIPS 2017; for mirror images Wang et al., Neurocomputing 2019).

Axes: arrays are (i, j, k) in the protocol's orientation until they are brought back to the scan's. Members run one after the
other: what is held in memory is what one of them takes, and sums lie in nameless files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import entr
from torch import Tensor

from hybrid.errors import RequestError
from medical.models.base import SegmentationNetwork
from medical.protocol import Protocol, Region
from medical.segmentation.preparation import Preparation
from medical.segmentation.run import (
    Segmentation,
    SegmentSettings,
    finished,
    label_type,
    on_whole_scan,
    onto_scan,
    plan_volume,
    protocol_of,
    room,
)
from medical.segmentation.slabs import painted, shares_of
from medical.segmentation.sliding import OnProgress, WindowPlan, WriteSlab, check_memory, device_of, plan_scan, segment_windows
from medical.structures import Structure
from medical.volumes.geometry import Grid, resample, resample_labels
from medical.volumes.volume import Volume

_FREE = ("patch", "overlap")
"""What the protocols of an ensemble may differ in: how each network's windows lie changes nothing that its outputs mean."""


@dataclass(frozen=True, eq=False)
class Member:
    """One network, and the axes of its protocol along which it sees the scan mirrored."""

    network: SegmentationNetwork
    mirror: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For a record."""
        source = self.network.source
        facts = {"weights": source.file, "sha256": source.sha256} if source else {"weights": "none", "sha256": ""}
        return {"name": name_of(self.network)} | facts | {"mirror": list(self.mirror)}


@dataclass(frozen=True, eq=False)
class UncertainSegmentation(Segmentation):
    """A segmentation by several members, `probabilities` their mean.

    The three maps are (i, j, k) float32 in [0, 1] on the scan's grid, and 0 outside the part that was segmented.

    Attributes:
        entropy: Of the mean: in parts of what it is where all classes are equally likely; for regions, the mean of theirs.
        mutual_information: What of the entropy comes of members that contradict each other, on the same scale.
        disagreement: Share of the members whose label is another than that of the mean.
        shared: (structures, members, members) voxels to which both members give the structure; before any tidying.
        members: In order.
        torn: The entropy of a voxel between two answers that are equally likely, all others being ruled out.
    """

    entropy: np.ndarray
    mutual_information: np.ndarray
    disagreement: np.ndarray
    shared: np.ndarray
    members: tuple[Member, ...]
    torn: float


def segment_with_uncertainty(
    volume: Volume,
    networks: Sequence[SegmentationNetwork],
    settings: SegmentSettings | None = None,
    *,
    protocol: Protocol | None = None,
    scratch: Path | None = None,
    on_progress: OnProgress | None = None,
) -> UncertainSegmentation:
    """Segment a scan by every member, and measure what they agree on.

    Args:
        volume: From `medical.volumes.volume.read_volume` or `medical.dicom.volume.read_dicom`; not changed.
        networks: From `medical.load_model`; several of one protocol, but for patch and overlap, are an ensemble.
        settings: As for `medical.segmentation.run.segment`. With `mirror` each mirror image is a member of its own; without
            settings it is on for a single network. Probabilities are always kept.
        protocol: What the networks ask of a scan, in place of their own.
        scratch: Folder for temporary files: 4 bytes for each voxel and class, 12 for each voxel, 1 for each voxel and member.
        on_progress: Called as (windows done, windows in all), of all members.

    Raises:
        RequestError: There are less than two members, or the networks' protocols differ.
        InputError, ResourceError, OutputError: As `medical.segmentation.run.segment`.
    """
    settings = settings or SegmentSettings(mirror=len(networks) == 1)
    asked = protocol
    protocol = check_ensemble(networks, asked)
    members = plan_members(networks, protocol, mirror=settings.mirror)
    way, plan = plan_volume(volume, networks[0], settings, protocol)
    runs = [_planned(member, protocol_of(member.network, asked), way, plan, settings) for member in members]
    grid = way.oriented if way.parallel else way.model
    for run in runs:
        check_memory(
            run.plan, device_of(run.member.network), settings.memory,
            reserve=way.prepared_bytes(len(volume.values)) + 2 * math.prod(grid.shape),
        )  # fmt: skip
    tally = Tally(grid, protocol, len(members), plan.axis, scratch)
    values = way.apply(volume, protocol)
    windows = sum(run.plan.tiles.count for run in runs)
    done = 0
    for number, run in enumerate(runs):
        run(values, onto_scan(way, plan.axis, tally.take(number)), settings.memory, _from(on_progress, done, windows))
        done += run.plan.tiles.count
    if not way.parallel:
        tally = tally.moved(way.model, way.oriented, scratch)
    tally.finish()
    labels, notes = finished(tally.labels, volume, way, protocol, settings)
    maps = (way.undo(tally.entropy), way.undo(tally.own), way.undo(tally.outvoted))
    mean = on_whole_scan(tally.shares, way, protocol, scratch)
    return UncertainSegmentation(
        labels, protocol.structures, mean, plan, way.describe(), notes, *maps, tally.shared, members, _torn(protocol)
    )


def check_ensemble(networks: Sequence[SegmentationNetwork], given: Protocol | None = None) -> Protocol:
    """The protocol that all networks have.

    Raises:
        RequestError: One has another, or none; or it is the same network twice.
    """
    protocol = protocol_of(networks[0], given)
    hashes = [network.source.sha256 for network in networks if network.source]
    if len(set(hashes)) < len(hashes):
        raise RequestError(
            "Two members of the ensemble are the same weights, which always agree with themselves.",
            hint="Give each checkpoint once, the --model or --weights among them.",
        )
    for network in networks[1:]:
        differing = _differences(protocol_of(network, given), protocol)
        if differing:
            raise RequestError(
                f"{name_of(network)} has another protocol than {name_of(networks[0])}: {'; '.join(differing)}.",
                hint="An ensemble is of checkpoints that were trained for one task. Leave it out.",
            )
    return protocol


def plan_members(networks: Sequence[SegmentationNetwork], protocol: Protocol, *, mirror: bool) -> tuple[Member, ...]:
    """Each network, before each choice of the protocol's mirror axes if `mirror`.

    Raises:
        RequestError: There are less than two.
    """
    axes = sorted(set(protocol.mirror)) if mirror else []
    views = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    members = tuple(Member(network, view) for network in networks for view in views)
    if len(members) < 2:
        why = "was not trained on mirrored scans" if mirror else "is alone, without mirror images"
        raise RequestError(
            f"{name_of(networks[0])} {why}, so there is a single answer and nothing to compare it with.",
            hint="Give more checkpoints of the same protocol with --ensemble FILE.",
        )
    return members


def name_of(network: SegmentationNetwork) -> str:
    """What a user calls a network."""
    return network.source.name if network.source else network.card.title


def entropies(shares: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Entropy in [0, 1] of probabilities (outputs, ...), over what it could be at most.

    >>> from medical.protocol import ZScore
    >>> from medical.structures import Structure
    >>> asked = Protocol(modality="MR", channels=("T1w",), intensity=ZScore(), patch=(8, 8, 8),
    ...                  structures=tuple(Structure(value=value, name=str(value)) for value in (1, 2, 3)))
    >>> entropies(np.array([[0.25, 1.0, 0.5], [0.25, 0, 0.5], [0.25, 0, 0], [0.25, 0, 0]]), asked).tolist()
    [1.0, 0.0, 0.5]
    """
    if not protocol.regions:
        entropy: np.ndarray = entr(shares).sum(0) / np.log(max(len(shares), 2))
        return entropy
    chosen = shares[[region.channel for region in protocol.regions]]
    entropy = (entr(chosen) + entr(1 - chosen)).mean(0) / np.log(2)
    return entropy


def _torn(protocol: Protocol) -> float:
    return 1 / len(protocol.regions) if protocol.regions else float(np.log(2) / np.log(max(protocol.outputs, 2)))


def members_words(members: Sequence[Member]) -> str:
    """``hippocampus, 2 mirror images`` or ``3 networks (a, b, c), 2 mirror images of each``."""
    names = [name_of(network) for network in dict.fromkeys(member.network for member in members)]
    views = len(members) // len(names)
    several = len(names) > 1
    words = f"{len(names)} networks ({', '.join(names)})" if several else names[0]
    return words + (f", {views} mirror images{' of each' if several else ''}" if views > 1 else "")


class Tally:
    """Sums over members, then the maps that come of them; all in one orientation, on one grid.

    Attributes:
        shares: (outputs, i, j, k) sum, then mean of the probabilities.
        own: (i, j, k) sum of the members' entropies, then mutual information.
        votes: (members, i, j, k) labels.
        labels, entropy, outvoted, shared: After `finish`; as in `UncertainSegmentation`.
    """

    def __init__(self, grid: Grid, protocol: Protocol, members: int, axis: int, scratch: Path | None) -> None:
        self.grid, self.protocol, self.axis, self.members = grid, protocol, axis, members
        self.shares = room((protocol.outputs, *grid.shape), scratch)
        self.own, self.entropy, self.outvoted = (room(grid.shape, scratch) for _ in range(3))
        self.votes = room((members, *grid.shape), scratch, label_type(protocol))
        self.labels = np.zeros(grid.shape, label_type(protocol))
        self.shared = np.zeros((len(protocol.structures), members, members), np.int64)

    def take(self, number: int) -> WriteSlab:
        """What adds a member's slabs of logits, (outputs, rows, ...) in stream order."""
        sums, own = np.moveaxis(self.shares, 1 + self.axis, 1), np.moveaxis(self.own, self.axis, 0)
        votes = np.moveaxis(self.votes[number], self.axis, 0)

        def write(first: int, block: Tensor) -> None:
            for row in range(block.shape[1]):
                shares = shares_of(block[:, row], self.protocol).numpy()
                sums[:, first + row] += shares
                own[first + row] += entropies(shares, self.protocol)
                votes[first + row] = painted(block[:, row].numpy(), self.protocol, above=0)

        return write

    def moved(self, source: Grid, target: Grid, scratch: Path | None) -> Tally:
        """The sums brought to another grid: linearly, and votes as labels are."""
        new = Tally(target, self.protocol, self.members, self.axis, scratch)
        for channel, sums in enumerate(self.shares):
            new.shares[channel] = resample(sums, source, target, order=1)
        new.own[:] = resample(self.own, source, target, order=1)
        for number, labels in enumerate(self.votes):
            new.votes[number] = resample_labels(labels, source, target)
        return new

    def finish(self) -> None:
        """Turn sums into means and maps."""
        for row in range(self.grid.shape[0]):
            mean = self.shares[:, row] / self.members
            self.shares[:, row] = mean
            label = painted(mean, self.protocol, above=0.5)
            votes = self.votes[:, row]
            self.labels[row] = label
            self.outvoted[row] = (votes != label).mean(0)
            self.entropy[row] = entropies(mean, self.protocol)
            self.own[row] = np.clip(self.entropy[row] - self.own[row] / self.members, 0, 1)
            for number, structure in enumerate(self.protocol.structures):
                given = votes == structure.value
                given = given[:, given.any(0)].astype(np.float32)  # exact: counts in a row are far below 2^24
                self.shared[number] += np.rint(given @ given.T).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Run:
    """One member over one scan."""

    member: Member
    protocol: Protocol
    plan: WindowPlan

    def __call__(self, values: np.ndarray, write: WriteSlab, memory: int | None, on_progress: OnProgress | None) -> None:
        network = _Mirrored(self.member.network, self.member.mirror)
        segment_windows(network, values, self.protocol, write=write, plan=self.plan, memory=memory, on_progress=on_progress)


def _planned(member: Member, protocol: Protocol, way: Preparation, plan: WindowPlan, settings: SegmentSettings) -> _Run:
    """With the windows of its own network, in slabs along the axis of all."""
    own = plan_scan(way.model.shape, member.network.card, protocol, overlap=settings.overlap, axis=plan.axis)
    return _Run(member, protocol, own)


def _from(on_progress: OnProgress | None, before: int, total: int) -> OnProgress | None:
    """Progress of one member as that of all."""
    return None if on_progress is None else lambda done, _: on_progress(before + done, total)


class _Mirrored(SegmentationNetwork):
    """A network that sees its windows mirrored, and whose logits are mirrored back."""

    def __init__(self, network: SegmentationNetwork, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.axes = network, [2 + axis for axis in axes]
        self.card, self.protocol = network.card, network.protocol

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.flip(self.axes)).flip(self.axes) if self.axes else self.network(x)
        return logits


def _differences(found: Protocol, wanted: Protocol) -> list[str]:
    """What two protocols differ in, but for `_FREE`: ``spacing 2 x 2 x 2 against 1 x 1 x 1``."""
    names = [name for name in Protocol.model_fields if name not in _FREE]
    return [
        f"{name} {_words(getattr(found, name))} against {_words(getattr(wanted, name))}"
        for name in names
        if getattr(found, name) != getattr(wanted, name)
    ]


def _words(value: Any) -> str:
    """A field of a protocol for people."""
    if isinstance(value, tuple):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, Structure | Region):
        return f"{value.value} {value.name}".strip()
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "words", value))
