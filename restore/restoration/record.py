"""The record of a restoration, beside the result and inside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hybrid.errors import OutputError, RequestError
from hybrid.precision.check import verdict_facts
from hybrid.records import Record, record_path, sha256_file
from restore.images import SaveOptions, check_output
from restore.models.base import RestorationNetwork
from restore.restoration.one_output import notes_of
from restore.restoration.plan import RunSettings

DETAILS = "Fine details of enlarged pictures may be invented by the network"
"""What results and records say where a network gives more pixels than it was given."""


def check_target(source: Path, target: Path, settings: RunSettings, *, outputs: int = 1) -> None:
    """Make sure that the result, its record and what comes beside it can be written, before any work is done.

    Args:
        source, target, settings: As of `restore.restoration.run.restore_file`.
        outputs: Of the network.

    Raises:
        OutputError: The folder is missing or not writable, or one of the files is there and may not be replaced.
        RequestError: The target is the source, or its suffix names no format.
    """
    check_output(target, [source], overwrite=settings.overwrite, format=settings.save.format)
    for path in settings.selection.beside(target, outputs):
        if path == target:
            raise RequestError(f"The result and the map would both be {target}.", hint="Choose another --uncertainty.")
        check_output(path, [source], overwrite=settings.overwrite)
    record = record_path(target)
    if record.exists() and not settings.overwrite:
        raise OutputError(
            f"{record}, where the record would go, is there already.", hint="Pass --overwrite or choose another --output."
        )


def make_record(
    network: RestorationNetwork, source: Path, target: Path, task: str, tiles: str, started: str, notes: tuple[str, ...]
) -> Record:
    """The record of a run that has not ended yet: its time is 0."""
    weights = network.source
    return Record(
        task=task,
        input=source.name,
        input_sha256=sha256_file(source),
        output=target.name,
        weights=weights.file if weights else "none",
        weights_sha256=weights.sha256 if weights else "",
        weights_origin=weights.origin if weights else "none",
        family=network.card.family,
        title=weights.name if weights else network.card.title,
        device=str(next(network.parameters()).device),
        precision=network.precision,
        started=started,
        seconds=0.0,
        tiles=tiles,
        notes=(*notes, *notes_of(network), *((f"{DETAILS}.",) if network.card.scale > 1 else ())),
        precision_check=verdict_facts(network),
    )


def with_record(save: SaveOptions, record: Record) -> SaveOptions:
    """How to encode a picture with its record in it: without times, so that two runs write the same bytes.

    The name of the input, which its maker chose, goes into no picture that is de-identified: it may be another than the result's.
    """
    facts = record.to_dict()
    for key in ("seconds", "started", *(["input"] if save.deidentify else [])):
        del facts[key]
    return replace(save, description=json.dumps(facts, ensure_ascii=False, separators=(",", ":")))
