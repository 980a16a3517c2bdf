"""Restoring the faces of picture files: the background, the encoding, the record, the sheet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hybrid.batch.work import Listener, Stages, Stopwatch, finish
from hybrid.errors import OutputError, RequestError
from hybrid.records import record_path, timestamp, write_bytes, write_record
from restore.faces.detection import Face
from restore.faces.identity import INVENTED, MEASURE
from restore.faces.memory import check_memory
from restore.faces.restoration import (
    FaceSettings,
    OnProgress,
    RestoredPicture,
    enlarged_background,
    face_size,
    notes_on,
    restore_aligned,
    restore_faces,
)
from restore.faces.sheet import face_sheet_png, save_faces
from restore.images import MAX_PIXELS, Picture, SaveOptions, check_pixels, probe, read_picture, write_picture
from restore.models.base import RestorationNetwork
from restore.restoration.final_size import FinalSize
from restore.restoration.record import check_target, make_record, with_record
from restore.restoration.run import RunSettings, can_wait, restore_picture

MOST_RESULT_PIXELS = 4 * MAX_PIXELS


@dataclass(frozen=True, eq=False)
class FaceRun:
    """What is the same for every picture of a batch.

    Attributes:
        settings: How faces are found and restored.
        aligned: Whether pictures are aligned faces and nothing else.
        scale: Enlargement of the result.
        enlarger: A super-resolution network for what is no face; None for the antialiased bicubic.
        save: How to encode.
        overwrite: Whether files that are there may be replaced.
        max_pixels: Pictures of more are refused.
        memory: Bytes that the process may take at its peak; None takes up to half of what is free.
        faces: Folder for the aligned faces, if they are wanted.
    """

    settings: FaceSettings = field(default_factory=FaceSettings)
    aligned: bool = False
    scale: float = 1.0
    enlarger: RestorationNetwork | None = None
    save: SaveOptions = field(default_factory=SaveOptions)
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    memory: int | None = None
    faces: Path | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale >= 1):
            raise RequestError(f"--scale {self.scale:g} does not enlarge.", hint="Give 1 or more, such as 2.")
        if self.aligned and (self.scale != 1 or self.enlarger is not None):
            raise RequestError("An aligned face has no background.", hint="Leave out --scale and --background, or --aligned.")
        if self.aligned and self.settings.only:
            raise RequestError("An aligned face is the only one.", hint="Leave out --only or --aligned.")


@dataclass(frozen=True, eq=False)
class FaceOutcome:
    """What one run made.

    Attributes:
        input, output, sheet: The files; the sheet is None where none was asked for or no face was found.
        size: Width and height of the output.
        seconds: Time of the run.
        result: The faces.
        notes: What should be known, one sentence each.
        files: All that was written, the output first.
    """

    input: Path
    output: Path
    sheet: Path | None
    size: tuple[int, int]
    seconds: float
    result: RestoredPicture
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def restore_faces_file(
    network: RestorationNetwork,
    source: Path,
    target: Path,
    run: FaceRun | None = None,
    *,
    known: Sequence[Face] | None = None,
    sheet: Path | None = None,
    on_progress: OnProgress | None = None,
) -> FaceOutcome:
    """Restore the faces of a picture file; the result's record lies beside it as `<target>.json`.

    A picture without a face is written too, enlarged if that is asked for, and the outcome's notes say so.

    Args:
        network: For faces.
        source: Picture to read; never changed.
        target: File to write, whole or not at all.
        run: Settings, encoding, background.
        known: Faces that need not be searched.
        sheet: A PNG to write with each face before and after.
        on_progress: Called with faces done and faces in all.

    Raises:
        InputError: The picture cannot be read, or has too many pixels.
        OutputError: A file cannot be written, or is there and may not be replaced.
        RequestError: The target is the source, or its format cannot hold the result, or there is no such face.
        ResourceError: It does not fit the memory.
    """
    return finish(face_stages(network, source, target, run or FaceRun(), known=known, sheet=sheet), Listener(on_progress))


def face_stages(
    network: RestorationNetwork,
    source: Path,
    target: Path,
    run: FaceRun,
    *,
    known: Sequence[Face] | None = None,
    sheet: Path | None = None,
) -> Stages[FaceOutcome]:
    """What `restore_faces_file` does, with pauses before and after the networks run, where the picture needs little memory.

    Args:
        network, source, target, run, known, sheet: As of `restore_faces_file`.

    Raises:
        HybridError: As `restore_faces_file`.
    """
    started, clock = timestamp(), Stopwatch()
    check_target(source, target, RunSettings(overwrite=run.overwrite, save=run.save))
    check_sheet(sheet, source, target, overwrite=run.overwrite)
    info = probe(source)
    check_pixels(info, run.max_pixels)
    size = FinalSize(run.scale).of(info.width, info.height)
    if size[0] * size[1] > MOST_RESULT_PIXELS:
        raise RequestError(f"The result would have {size[0]} x {size[1]} pixels.", hint="Give a smaller --scale.")
    apart = can_wait(info, size, run.memory)
    picture = read_picture(source, max_pixels=run.max_pixels) if apart else None
    with clock.stopped():
        tell = yield
    check_memory(network, info, size, run.memory)  # not earlier: until now another picture may have been at work
    if picture is None:
        picture = read_picture(source, max_pixels=run.max_pixels)
    if run.aligned:
        result = restore_aligned(network, picture, run.settings)
    else:
        background = _background(picture, run)
        result = restore_faces(network, picture, run.settings, background=background, known=known, on_progress=tell.progress)
    if apart:
        with clock.stopped():
            yield
    notes = notes_on(result, face_size(network))
    record = make_record(network, source, target, "face", "", started, _told(result, run, notes, size))
    record = replace(record, figures=_figures(result))
    options = with_record(run.save, record)
    written: list[Path] = []
    try:
        if run.faces is not None:
            written += save_faces(run.faces, source.stem, result.faces, overwrite=run.overwrite)
        if sheet is not None and result.faces:
            heading = "Faces before and after" if run.save.deidentify else f"{source.name}: faces before and after"
            write_bytes(sheet, face_sheet_png(result.faces, (heading, INVENTED)))
            written.append(sheet)
        said = (*picture.metadata.notes, *write_picture(target, result.picture, options))
        written.append(target)
        seconds = clock.seconds
        write_record(replace(record, seconds=round(seconds, 3), notes=(*record.notes, *said)), target)
    except BaseException:
        for path in written:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # no result without its record
        raise
    made = result.picture.colour.shape[1], result.picture.colour.shape[0]
    files = (target, *written[:-1], record_path(target))
    return FaceOutcome(source, target, sheet if result.faces else None, made, seconds, result, (*notes, *said), files)


def check_sheet(sheet: Path | None, source: Path, target: Path, *, overwrite: bool) -> None:
    """Make sure that the sheet can be written, before any work is done.

    Raises:
        OutputError: It is there and may not be replaced.
        RequestError: It is the input or the output, or no PNG.
    """
    if sheet is None:
        return
    if sheet.suffix.lower() != ".png":
        raise RequestError(f"{sheet} is not named like a PNG file.", hint=f"Name it {sheet.stem}.png.")
    if sheet.resolve() in (source.resolve(), target.resolve()):
        raise RequestError(f"The sheet would take the place of {sheet}.", hint="Choose another --sheet.")
    if sheet.exists() and not overwrite:
        raise OutputError(f"{sheet} is there already.", hint="Pass --overwrite or choose another --sheet.")


def _background(picture: Picture, run: FaceRun) -> Picture | None:
    if run.enlarger is not None:
        return restore_picture(run.enlarger, picture, RunSettings(final=FinalSize(run.scale), memory=run.memory, task="face"))
    if run.scale == 1:
        return None
    height, width = picture.colour.shape[:2]
    wide, high = FinalSize(run.scale).of(width, height)
    return enlarged_background(picture, (high, wide))


def _told(result: RestoredPicture, run: FaceRun, notes: tuple[str, ...], size: tuple[int, int]) -> tuple[str, ...]:
    """The notes of the record."""
    told = [INVENTED, *notes] if result.faces else [*notes]
    if run.enlarger is not None:
        weights = run.enlarger.source
        name = f"{weights.name} ({weights.file}, sha256 {weights.sha256})" if weights else run.enlarger.card.title
        told.append(f"The background was enlarged to {size[0]} x {size[1]} by {name}.")
    elif run.scale != 1:
        told.append(f"The background was enlarged to {size[0]} x {size[1]} by antialiased bicubic.")
    settings = run.settings
    if settings.fidelity:
        told.append(f"Restored faces were blended with the input, of which there is {settings.fidelity:.0%}.")
    if settings.match_colour:
        told.append("Restored faces were given the colours and the contrast of the input.")
    return tuple(told)


def _figures(result: RestoredPicture) -> dict[str, object]:
    return {"faces_found": result.found, "faces": [face.to_dict() for face in result.faces], "distance_measure": MEASURE}


def record_of(outcome: FaceOutcome) -> dict[str, object]:
    """An outcome as plain values, for --json."""
    return {
        "input": str(outcome.input),
        "output": str(outcome.output),
        "sheet": str(outcome.sheet) if outcome.sheet else None,
        "size": outcome.size,
        "seconds": round(outcome.seconds, 3),
        "notes": list(outcome.notes),
        **_figures(outcome.result),
    }
