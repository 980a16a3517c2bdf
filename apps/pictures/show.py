"""What is told and shown of pictures that came and of what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pyvips

from apps.pictures.run import MAP, Restored, Trial
from apps.pictures.view import Window, draw_pair, draw_whole, pair_html
from apps.serving.words import complaint, download_links, plain_table
from apps.serving.workspace import Workspace
from hybrid.console import format_duration
from hybrid.errors import HybridError, InputError
from hybrid.memory import format_size
from restore.images import MAX_PIXELS, PictureInfo, check_pixels, probe
from restore.images.reading import reason_of

KEPT_VIEWS = 12
LISTED = 6
THUMBNAIL = 360
RESULT = "Result"


@dataclass(frozen=True)
class Looked:
    """What can be looked at: the results of a run, or a part that was tried.

    Attributes:
        folder: Where views are drawn.
        results: Pictures in order.
        trial: A part instead.
        archive: All files as one, where there are several pictures.
    """

    folder: Path
    results: tuple[Restored, ...] = ()
    trial: Trial | None = None
    archive: Path | None = None

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """Names and places of the pictures that were restored."""
        return [(each.source.name, place) for place, each in enumerate(self.results) if each.output]

    def shown(self, place: int) -> list[str]:
        """What of a picture can stand beside its input."""
        each = self.results[place]
        candidates = [f"Output {number}" for number in each.candidates]
        return [RESULT, *candidates, *([each.beside[0]] if each.beside else [])]

    def pair(self, place: int, shown: str) -> tuple[Path, Path]:
        """The files to compare."""
        if self.trial is not None:
            return self.trial.before, self.trial.after
        each = self.results[place]
        assert each.output is not None
        if each.beside is not None and shown == each.beside[0]:
            return each.source if shown == MAP else each.beside[1], each.beside[1]
        number = int(shown.rsplit(" ", 1)[-1]) if shown.startswith("Output ") else 0
        return each.source, each.candidates.get(number, each.output)


def draw(looked: Looked | None, place: int, shown: str, window: Window, workspace: Workspace) -> str | None:
    """The comparison as HTML; None where there is nothing to compare.

    Raises:
        InputError: The files are gone.
    """
    if looked is None or (looked.trial is None and not looked.pictures):
        return None
    before, after = (workspace.own(path) for path in looked.pair(place, shown))
    for old in sorted(looked.folder.glob("view-*.png"), key=lambda path: path.stat().st_mtime)[:-KEPT_VIEWS]:
        old.unlink(missing_ok=True)
    try:
        first, second, box = draw_pair(before, after, window, looked.folder)
    except pyvips.Error as error:
        raise InputError(
            f"The picture cannot be shown ({reason_of(error)}).", hint="The files can be downloaded all the same."
        ) from error
    right = "After" if shown == RESULT else shown
    return pair_html(workspace, first, second, ("Before", right), _under(box, window, looked.trial is not None))


def describe(sources: Sequence[Path]) -> tuple[str, str]:
    """The pictures that came as HTML, and what is wrong with those that cannot be used."""
    lines, wrong = [], []
    for path in sources:
        try:
            info = probe(path)
            check_pixels(info, MAX_PIXELS)
        except HybridError as error:
            wrong.append(complaint(error))
        else:
            lines.append(f"<li><b>{escape(path.name)}</b>: {info.width} x {info.height}, {_kind(info)}</li>")
    more = f"<li>and {len(lines) - LISTED} more</li>" if len(lines) > LISTED else ""
    return f'<ul class="came">{"".join(lines[:LISTED])}{more}</ul>' if lines else "", " ".join(wrong)


def thumbnail(sources: Sequence[Path], workspace: Workspace) -> Path | None:
    """A small view of the first picture that can be read."""
    for path in sources:
        try:
            check_pixels(probe(path), MAX_PIXELS)
            return draw_whole(path, workspace.new_folder("small"), THUMBNAIL)
        except (InputError, pyvips.Error):
            continue  # told of by `describe`, or when it is restored
    return None


def downloads(looked: Looked, workspace: Workspace) -> str:
    """Links to what was written: the files of one picture, or the archive of several and each result."""
    restored = [each for each in looked.results if each.output]
    if looked.archive is not None and len(looked.results) > 1:
        results = [(str(each.output), "Result") for each in restored]
        return download_links(workspace, [(str(looked.archive), "Everything"), *results])
    files: list[tuple[str, str]] = []
    for each in restored:
        files.append((str(each.output), "Result"))
        files += [(str(path), f"Output {number}") for number, path in each.candidates.items()]
        files += [(str(each.beside[1]), each.beside[0])] if each.beside else []
        files.append((str(each.files[-1]), "Record"))
    return download_links(workspace, files)


def outcome_table(looked: Looked) -> str:
    """What became of each picture, and what is to be said of it."""
    rows = []
    for each in looked.results:
        if each.output is None:
            rows.append((each.source.name, "failed", "", each.error))
        else:
            width, height = each.size
            rows.append((each.source.name, f"{width} x {height}", format_duration(each.seconds), " ".join(each.notes)))
    return plain_table(("picture", "result", "time", "notes"), rows) if rows else ""


def _kind(info: PictureInfo) -> str:
    depth = {"uint8": "8 bits", "uint16": "16 bits", "float32": "floats"}[info.dtype]
    colour = {"gray": "gray", "rgb": "RGB", "palette": "palette", "cmyk": "CMYK"}[info.kind]
    size = format_size(info.path.stat().st_size)
    return f"{info.format.upper()}, {colour}{' with alpha' if info.alpha else ''}, {depth}, {size}"


def _under(box: tuple[int, int, int, int], window: Window, part: bool) -> str:
    left, top, width, height = box
    what = "The part that was tried" if part else "The whole picture"
    if window.zoom == 0:
        return f"{what}, {width} x {height} pixels of the result. Drag the edge, or move it with the arrow keys."
    return f"{width} x {height} pixels of the result from ({left}, {top}), each as {window.zoom} x {window.zoom} of the screen."
