"""A network trained on slices as one for volumes, and back, for every model that is made of Cross-D Conv.

M. C. Yavuz, Y. Yang, arXiv 2411.02441; the way to volumes is that of the authors' evaluation scripts: kernels are taken as
they are stored, batch norms keep their statistics, and what finds each slice's kernel is left out. The way back is ours.
The slice axis of a kernel becomes the first axis of a volume. Tensors keep the type in which they are stored.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from hybrid.blocks.cross_d import CrossDConv
from hybrid.errors import OutputError, RequestError, WeightsError
from hybrid.families import Family
from hybrid.loading import open_weights
from hybrid.records import record_path, write_bytes
from hybrid.weights.checkpoints import Checkpoint, load_strict, write_checkpoint
from hybrid.weights.header import saved_options
from medical.loading import build, entry_protocol, file_header, find_weights
from medical.models import family
from medical.models.base import SegmentationNetwork
from medical.protocol import Protocol

Dims = Literal[2, 3]
Change = Literal["carried", "rolled", "reshaped", "laid_aside", "initialised", "left_out"]
ASIDE = "slices."
"""Before the names of what a network of volumes has no use for and its file keeps for the way back."""
HEADER = "transfer"
HELD = ("modality", "channels", "intensity", "overlap", "structures", "regions")
"""Fields of a protocol that hold for slices and volumes alike."""
ANEW = ("orientation", "patch")
"""Fields that must be said anew; so may be spacing and mirror axes, without which scans are taken as they are."""
KINDS = {2: "slices", 3: "volumes"}


class Past(BaseModel):
    """What a file says of the transfer that made it.

    Attributes:
        source, sha256: The file that was turned, and the hash of its bytes.
        roll: Voxels by which the kernels of the form for volumes are rolled against those for slices.
        protocol: What the network asked for before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    sha256: str
    roll: int
    protocol: dict[str, Any] | None


@dataclass(frozen=True)
class Report:
    """What became of each tensor, by published names.

    Attributes:
        title: The network.
        source, sha256: File that was turned, and the hash of its bytes.
        spatial_dims: What it is now for: 2 slices, 3 volumes.
        roll: Voxels by which each kernel was rolled along its three axes.
        carried: The same values.
        rolled: The same values, rolled.
        reshaped: The same values with an axis of length 1 more or less.
        laid_aside: Not used by the network, kept in its file for the way back.
        initialised: New: there was nothing to take.
        left_out: Of no use, and not in the file.
        protocol: Fields of the protocol in the file; empty where it has none.
        anew: Fields that must be said before the network can segment.
        notes: What a user should know, one sentence each.
    """

    title: str
    source: str
    sha256: str
    spatial_dims: Dims
    roll: int
    carried: tuple[str, ...]
    rolled: tuple[str, ...]
    reshaped: tuple[str, ...]
    laid_aside: tuple[str, ...]
    initialised: tuple[str, ...]
    left_out: tuple[str, ...]
    protocol: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """All fields, as the file beside the weights holds them."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def transfer_file(
    source: str | Path,
    output: Path,
    *,
    to: Dims | None = None,
    centre: bool = False,
    protocol: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Report:
    """Turn a file of weights, and write the result and its report (``<output>.json``).

    There and back gives the tensors of slices that there were, bit by bit. A network that was trained on volumes has no
    predictors of axis and angle: on the way to slices they begin with angle 0, and kernels are rolled so that each slice
    sees the middle of them.

    Args:
        source: A name of the catalogue, or a checkpoint file.
        output: The safetensors file to write.
        to: 2 for slices, 3 for volumes; None for what the network is not yet.
        centre: On the way to volumes, roll kernels by one voxel, so that what a slice saw of them at angle 0 stays in the
            middle. Published is to take them as they are.
        protocol: Fields of a protocol; the others that hold are taken from the network's own.
        overwrite: Whether files that are there may be replaced.

    Raises:
        RequestError: The network has no Cross-D Conv or is such a one already, or output and source do not go together.
        WeightsError: The weights cannot be had or read, or the protocol is none.
        OutputError: The output is there already, or cannot be written.
    """
    _check_output(output, overwrite)
    found = find_weights(source)
    if output.resolve() == found.path.resolve():
        raise RequestError(f"The output {output} is the input.", hint="Inputs are never changed: choose another --output.")
    network, checkpoint = build(found, device="cpu"), open_weights(found)
    dims: Dims = to or (2 if network.card.spatial_dims == 3 else 3)
    _check_way(network, found.path.name, dims, centre)
    before = _past(checkpoint)
    roll = _roll(dims, before, centre)
    made, turned, changes = turn(family(network.card.family), checkpoint, dims, roll)
    asked, anew = _protocol(output.name, network.protocol, before, protocol)
    own = network.protocol.model_dump(mode="json") if network.protocol is not None else None
    past = Past(source=checkpoint.path.name, sha256=checkpoint.sha256, roll=abs(roll), protocol=own)
    write_checkpoint(output, made, file_header(output.name, turned, asked) | {HEADER: past.model_dump_json()})
    report = Report(
        title=turned.card.title,
        source=checkpoint.path.name,
        sha256=checkpoint.sha256,
        spatial_dims=dims,
        roll=roll,
        **{name: tuple(key for key, change in changes.items() if change == name) for name in get_args(Change)},
        protocol=tuple(asked.model_dump()) if asked is not None else (),
        anew=anew if turned.card.task == "segmentation" else (),
        notes=_notes(dims, roll, changes),
    )
    write_bytes(record_path(output), report.to_json().encode())
    return report


def turn(
    kind: Family[SegmentationNetwork], checkpoint: Checkpoint, to: Dims, roll: int
) -> tuple[dict[str, Tensor], SegmentationNetwork, dict[str, Change]]:
    """Turn weights for slices into weights for volumes, or the other way.

    Args:
        kind: The family of the network.
        checkpoint: Its weights, under published names.
        to: 2 for slices, 3 for volumes.
        roll: Voxels by which to roll each kernel along its three axes.

    Returns:
        The weights under published names, with what is laid aside; the network that they make; and what became of each.
    """
    options = saved_options(checkpoint.path.name, checkpoint.metadata) | {"spatial_dims": to}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # what is initialised is so alike each time
        weights = kind.canonical(checkpoint.state)
        network = kind.build(weights, **options)
    kernels = {f"{name}.weights_3d" for name, module in network.named_modules() if isinstance(module, CrossDConv)}
    for module in network.modules():
        if isinstance(module, CrossDConv):
            module.reset_angle()
    state = {name: tensor for name, tensor in weights.items() if not name.startswith(ASIDE)}
    aside = {name.removeprefix(ASIDE): tensor for name, tensor in weights.items() if name.startswith(ASIDE)}
    given = state | (aside if to == 2 else {})
    made: dict[str, Tensor] = {}
    changes: dict[str, Change] = {}
    for ours, own in network.state_dict().items():
        name = kind.keys.to_published(ours)
        if name in given and given[name].squeeze().shape == own.squeeze().shape:
            made[name], changes[name] = _turned(given[name], own, roll if ours in kernels else 0)
        elif not any(fnmatch.fnmatchcase(name, pattern) for pattern in kind.derived):
            made[name], changes[name] = own, "initialised"
    load_strict(network, made, rename=kind.keys.to_ours, derived=kind.derived)
    for name in given:
        if changes.get(name, "initialised") == "initialised":
            changes[ASIDE + name if to == 3 else name] = "laid_aside" if to == 3 else "left_out"
            made |= {ASIDE + name: given[name]} if to == 3 else {}
    return made, network.eval(), changes


def _turned(given: Tensor, own: Tensor, roll: int) -> tuple[Tensor, Change]:
    if given.shape != own.shape:
        return given.reshape(own.shape), "reshaped"
    if roll and given.shape[-1] > 1:
        return given.roll([roll] * 3, (-3, -2, -1)), "rolled"
    return given, "carried"


def _past(checkpoint: Checkpoint) -> Past | None:
    """What the file says of the transfer that made it; None for files that none made."""
    if HEADER not in checkpoint.metadata:
        return None
    try:
        return Past.model_validate_json(checkpoint.metadata[HEADER])
    except ValidationError as error:
        raise WeightsError(
            f"The header of {checkpoint.path.name} says of its transfer what is not understood.", hint="Make the file again."
        ) from error


def _roll(to: Dims, past: Past | None, centre: bool) -> int:
    """By how much kernels are rolled: for volumes by none or one voxel, and as much back."""
    if to == 3:
        return 1 if centre else past.roll if past is not None else 0
    return -past.roll if past is not None else -1


def _protocol(
    file_name: str, own: Protocol | None, past: Past | None, given: Mapping[str, Any] | None
) -> tuple[Protocol | None, tuple[str, ...]]:
    """The protocol for the result, or the fields that it still needs."""
    if given is None and past is not None and past.protocol is not None:
        return entry_protocol(file_name, past.protocol), ()
    held = own.model_dump(include=set(HELD)) if own is not None else {}
    if given is None:
        return None, ANEW if own is not None else (*HELD[:3], "structures", *ANEW)
    if missing := tuple(field for field in ANEW if field not in given):
        raise RequestError(f"The protocol does not say {' and '.join(missing)}.", hint="Write them into the file of --protocol.")
    return entry_protocol(file_name, held | dict(given)), ()


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix.lower() != ".safetensors":
        raise RequestError(f"{output} is not named as safetensors.", hint=f"Name it {output.stem}.safetensors.")
    for path in (output, record_path(output)):
        if path.exists() and not overwrite:
            raise OutputError(f"{path} is there already.", hint="Pass --overwrite or choose another --output.")


def _check_way(network: SegmentationNetwork, file_name: str, to: Dims, centre: bool) -> None:
    if not any(isinstance(module, CrossDConv) for module in network.modules()):
        raise RequestError(
            f"{file_name} is {network.card.title}, whose kernels are for {KINDS[network.card.spatial_dims]} alone.",
            hint="Only networks that are made of Cross-D Conv can be turned.",
        )
    if network.card.spatial_dims == to:
        raise RequestError(f"{file_name} is a network for {KINDS[to]} already.", hint=f"Choose --to {5 - to}d.")
    if centre and to == 2:
        raise RequestError("--centre is for the way to volumes.", hint="Leave it out: the way back undoes what was rolled.")


def _notes(to: Dims, roll: int, changes: Mapping[str, Change]) -> tuple[str, ...]:
    notes = []
    if to == 3:
        notes.append("The slice axis of the kernels is the first axis of volumes: its direction leads the orientation.")
        notes.append("Batch norms keep the statistics of slices: training on volumes, of norms and head at least, is needed.")
    if to == 3 and not roll:
        notes.append("Kernels are as stored, as published: one voxel off where slices saw them at angle 0 (see --centre).")
    if to == 2 and "initialised" in changes.values():
        notes.append("Predictors of axis and angle are new and begin with angle 0, at which slices see the middle of kernels.")
    if to == 2 and roll and "initialised" in changes.values():
        notes.append("Once trained on slices, its way to volumes is with --centre.")
    return tuple(notes)
