"""Restoring the pictures of one request: by the functions of the commands, so that the files are the commands' own.

Each picture is a turn of its own: one that fails is told of and does not stop the others.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from apps.pictures.models import scales_here
from apps.serving.jobs import Report
from apps.serving.words import complaint
from hybrid.console import messages
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError
from hybrid.records import record_path
from restore.cli.road import Loaded, Request, load
from restore.cli.sr import Enlargement, by_scales, choose, settings_at
from restore.images import MAX_PIXELS, Picture, SaveOptions, check_pixels, probe, read_picture, write_picture
from restore.loading import load_model
from restore.models.base import RestorationNetwork
from restore.restoration.choice import AUTO
from restore.restoration.inputs import FORMAT_SUFFIX, Job
from restore.restoration.one_output import Main, Selection, candidate_path
from restore.restoration.run import RunSettings, expected_seconds, plan_file, restore_file, restore_picture
from restore.tasks import FACE, SR, Command

TRIAL_SIDE = 160
"""Edge of the part that is tried first, in pixels of the input."""
STEPS = 1000
"""Steps of the progress that each picture counts for."""
MAP, FACES = "Where outputs differ", "Faces, before and after"
"""What may stand beside a result."""
ARCHIVE = "restored.zip"


@dataclass(frozen=True)
class Wish:
    """What the controls say.

    Attributes:
        command: The task.
        model: A name of the catalogue, or auto.
        scale: Enlargement; of no meaning for tasks that keep the size.
        format: Format of the results; None for that of each input.
        quality: Of JPEG, WebP and AVIF.
        several: Whether all outputs of a network that has several are saved, with a map of where they differ.
        main: Which of several outputs is the result.
        ensemble: Whether the eight turns and mirror images are averaged.
        fidelity: Of faces: 0 for the network's, 1 for the face as it was.
        deidentify: Whether results are written without EXIF, XMP, IPTC and the names in colour profiles.
        device: Where to compute.
    """

    command: Command
    model: str
    scale: float = 4.0
    format: str | None = None
    quality: int = 95
    several: bool = False
    main: Main = "best"
    ensemble: bool = False
    fidelity: float = 0.0
    deidentify: bool = False
    device: str = "auto"

    def request(self, sources: Sequence[Path]) -> Request:
        """The command line that does the same."""
        return Request(
            command=self.command,
            inputs=tuple(str(path) for path in sources),
            source=self.model,
            output=None,
            format=self.format,
            quality=self.quality,
            lossless=False,
            overwrite=False,
            tile="auto",
            memory=None,
            max_pixels=MAX_PIXELS,
            device=self.device,
            precision="auto",
            ensemble=self.ensemble,
            plan_only=False,
            json=False,
            quiet=True,
            deidentify=self.deidentify,
        )

    @property
    def enlargement(self) -> Enlargement:
        """As `restore sr` takes --scale."""
        from restore.restoration.final_size import asked_size

        return Enlargement(*asked_size(self.scale, None))

    def target(self, source: Path, folder: Path) -> Path:
        """Where the result of a picture goes: under the name that the command gives it."""
        tag = f"_x{self.scale:g}" if self.command is SR else self.command.tag
        return folder / f"{source.stem}{tag}{FORMAT_SUFFIX[self.format] if self.format else source.suffix}"


@dataclass(frozen=True)
class Restored:
    """One picture's turn.

    Attributes:
        source: The picture.
        output: The result; None where it failed.
        size: Width and height of the result.
        seconds: Time that it took.
        notes: What is to be said of it, one sentence each.
        candidates: Saved outputs by their number, in order of quality.
        beside: A further picture and what it is called: where outputs differ, or faces before and after.
        error: Why it failed.
    """

    source: Path
    output: Path | None = None
    size: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    candidates: Mapping[int, Path] = field(default_factory=dict)
    beside: tuple[str, Path] | None = None
    error: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that was written, the result first."""
        if self.output is None:
            return ()
        beside = (self.beside[1],) if self.beside else ()
        return (self.output, *self.candidates.values(), *beside, record_path(self.output))


@dataclass(frozen=True)
class Trial:
    """A part that was restored to see what comes.

    Attributes:
        before, after: Files of the part.
        seconds: Time that it took.
        whole: Estimated seconds of the whole picture.
        size: Width and height of the part in pixels of the input.
        model: The network that ran.
    """

    before: Path
    after: Path
    seconds: float
    whole: float
    size: tuple[int, int]
    model: str


def restore_all(wish: Wish, sources: Sequence[Path], folder: Path, report: Report) -> list[Restored]:
    """Restore pictures into a folder.

    Args:
        wish: How.
        sources: Pictures, each restored on its own.
        folder: Where results go, with their records; where two pictures have one name, each into a folder of its own.
        report: Called with steps done and in all.

    Raises:
        RequestError: No network can do it.
        WeightsError: Its weights cannot be used.
    """
    done: list[Restored] = []
    for place, source in enumerate(sources):
        part = _folder_for(wish, source, folder, place)

        def step(tiles: int, total: int, place: int = place) -> None:
            report(place * STEPS + round(STEPS * tiles / max(total, 1)), len(sources) * STEPS)

        step(0, 1)
        try:
            done.append(_restore(wish, source, part, step))
        except HybridError as error:
            done.append(Restored(source, error=complaint(error)))
        report((place + 1) * STEPS, len(sources) * STEPS)
    return done


def try_part(wish: Wish, source: Path, folder: Path, middle: tuple[float, float], report: Report) -> Trial:
    """Restore a small part of a picture and tell what the whole would take.

    Args:
        wish: How.
        source: The picture.
        folder: Where both views of the part go, as PNG.
        middle: Of the part, as shares of the picture's width and height.
        report: Called with tiles done and in all.

    Raises:
        HybridError: The picture cannot be read, or no network can do it.
    """
    if wish.command is FACE:
        raise RequestError("Faces are looked for in the whole picture.", hint="Press Restore.")
    check_pixels(probe(source), MAX_PIXELS)
    (network, _), settings = _network(wish, source)
    picture = read_picture(source)
    height, width = picture.colour.shape[:2]
    box = tuple(_around(share, length) for share, length in ((middle[1], height), (middle[0], width)))
    part = Picture(picture.colour[box], None if picture.alpha is None else picture.alpha[box], picture.metadata)
    settings = replace(settings, selection=Selection(wish.main if network.card.outputs > 1 else "best"))
    clock = time.perf_counter()
    result = restore_picture(network, part, settings, on_progress=report)
    seconds = time.perf_counter() - clock
    pixels = part.colour.shape[0] * part.colour.shape[1]
    plan = plan_file(network, probe(source), wish.target(source, folder), settings)
    before, after = folder / "before.png", folder / "after.png"
    for path, shown in ((before, part), (after, result)):
        write_picture(path, shown, SaveOptions(deidentify=wish.deidentify))
    return Trial(
        before,
        after,
        seconds,
        expected_seconds(plan.tiles, seconds / pixels),
        (part.colour.shape[1], part.colour.shape[0]),
        network.source.name if network.source else network.card.title,
    )


def write_archive(results: Sequence[Restored], folder: Path) -> Path | None:
    """All files of several pictures as one zip, in folders where names repeat; None if nothing was restored."""
    files = [path for result in results for path in result.files]
    if not files:
        return None
    path = folder / ARCHIVE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path


def _restore(wish: Wish, source: Path, folder: Path, step: Callable[[int, int], None]) -> Restored:
    check_pixels(probe(source), MAX_PIXELS)
    target = wish.target(source, folder)
    if wish.command is FACE:
        return _restore_faces(wish, source, target, step)
    (network, stand_in), settings = _network(wish, source)
    beside = None
    if network.card.outputs > 1:
        beside = (MAP, target.with_name(f"{target.stem}_differences.png")) if wish.several else None
        outputs = network.card.outputs if wish.several else 0
        settings = replace(settings, selection=Selection(wish.main, outputs, beside[1] if beside else None))
    notes = (stand_in,) if stand_in else ()
    made = restore_file(network, source, target, settings, notes=notes, on_progress=step)
    found = made.figures.get("candidates", {})
    assert isinstance(found, dict)
    candidates = {number: candidate_path(target, number) for number in found.values()}
    return Restored(source, made.output, made.size, made.seconds, made.notes, candidates, beside)


def _restore_faces(wish: Wish, source: Path, target: Path, step: Callable[[int, int], None]) -> Restored:
    from restore.faces.files import FaceRun, restore_faces_file
    from restore.faces.restoration import FaceSettings

    network = _face_network(wish.model, wish.device)
    settings = FaceSettings(fidelity=wish.fidelity)
    run = FaceRun(settings, scale=wish.scale, save=SaveOptions(wish.format, wish.quality, deidentify=wish.deidentify))
    sheet = target.with_name(f"{target.stem}_faces.png")
    made = restore_faces_file(network, source, target, run, sheet=sheet, on_progress=step)
    beside = (FACES, made.sheet) if made.sheet is not None else None
    return Restored(source, made.output, made.size, made.seconds, made.notes, beside=beside)


@lru_cache(maxsize=1)
def _face_network(name: str, device: str) -> RestorationNetwork:
    set_threads()
    network = load_model(name, device=device, precision="auto")
    FACE.check_card(network.card, name)
    return network


def _network(wish: Wish, source: Path) -> tuple[Loaded, RunSettings]:
    """The network for a picture and how it is run, decided as the command decides."""
    request, settings = wish.request([source]), wish.request([source]).settings()
    scales: tuple[int | None, ...] = (None,)
    if wish.command is SR:
        asked, job = wish.enlargement, Job(source, wish.target(source, source.parent))
        settings = replace(settings, final=asked.final)
        if wish.model == AUTO:
            request = replace(request, source=choose(request, asked, [job], messages(quiet=True)))
        scales = next(iter(by_scales(request, asked, [job])))
    name = str(request.source)
    if not scales_here(name):
        raise RequestError(f"{name} is not on this computer.", hint="Choose another model.")
    loaded = _loaded(request.command, name, scales, wish.device, wish.ensemble)
    if wish.command is SR:
        settings = settings_at(loaded[0].card.scale, wish.enlargement, settings)
    return loaded, settings


@lru_cache(maxsize=2)
def _loaded(command: Command, name: str, scales: tuple[int | None, ...], device: str, ensemble: bool) -> Loaded:
    """A network, kept for the next picture or request, and a line about what it stands in for."""
    set_threads()
    request = replace(Wish(command, name, ensemble=ensemble, device=device).request(()), source=name)
    return load(request, scales, messages(quiet=True))


def _folder_for(wish: Wish, source: Path, folder: Path, place: int) -> Path:
    target = wish.target(source, folder)
    if not target.exists():
        return folder
    part = folder / f"picture{place + 1}"
    part.mkdir()
    return part


def _around(share: float, length: int) -> slice:
    side = min(TRIAL_SIDE, length)
    start = int(np.clip(round(share * length - side / 2), 0, length - side))
    return slice(start, start + side)
