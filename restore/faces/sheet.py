"""What is shown of restored faces: a sheet of each before and after, and the faces as files.

Lengths are in pixels of the sheet; x runs right and y down.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hybrid.errors import OutputError
from hybrid.records import write_bytes
from restore.faces.paste import Pixels
from restore.faces.restoration import RestoredFace
from restore.images import from_unit
from restore.images.interpolation import resize

PANEL, GAP, LABEL, MARGIN, LINE = 256, 8, 40, 16, 18
WIDEST_LETTER = 8  # on the mean of a line, so that it has room
COLUMNS = 3
"""Faces in a row, each before and after."""
PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (110, 110, 110)


def face_sheet_png(faces: Sequence[RestoredFace], heading: Sequence[str]) -> bytes:
    """Each face before and after, side by side, with its number and the distance between the two, below lines of text; as PNG."""
    columns = min(COLUMNS, max(1, len(faces)))
    rows = -(-len(faces) // columns)
    pair = 2 * PANEL + GAP
    width = 2 * MARGIN + columns * pair + (columns - 1) * MARGIN
    lines = [line for each in heading for line in textwrap.wrap(each, (width - 2 * MARGIN) // WIDEST_LETTER)]
    top = MARGIN + LINE * len(lines) + GAP
    picture = Image.new("RGB", (width, top + rows * (PANEL + LABEL) + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for place, line in enumerate(lines):
        draw.text((MARGIN, MARGIN - 4 + LINE * place), line, INK, ImageFont.load_default(14))
    for place, face in enumerate(faces):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * (pair + MARGIN), top + row * (PANEL + LABEL)
        for side, pixels in enumerate((face.before, face.after)):
            picture.paste(_panel(pixels), (x + side * (PANEL + GAP), y))
        draw.text((x, y + PANEL + 3), f"{face.number}  before", INK, ImageFont.load_default(13))
        draw.text((x + PANEL + GAP, y + PANEL + 3), "after", INK, ImageFont.load_default(13))
        draw.text((x + PANEL + GAP, y + PANEL + 19), str(face.distance), FAINT, ImageFont.load_default(12))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def save_faces(folder: Path, stem: str, faces: Sequence[RestoredFace], *, overwrite: bool) -> list[Path]:
    """Write each aligned face before and after as PNG: `STEM_face1_before.png`, `STEM_face1_after.png`.

    Raises:
        OutputError: A file is there and may not be replaced, or the folder does not take files.
    """
    wanted = {
        folder / f"{stem}_face{face.number}_{name}.png": pixels
        for face in faces
        for name, pixels in (("before", face.before), ("after", face.after))
    }
    for path in wanted:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} is there already.", hint="Pass --overwrite or choose another --save-faces.")
    for path, pixels in wanted.items():
        buffer = io.BytesIO()
        Image.fromarray(from_unit(pixels, "uint8")).save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())
    return list(wanted)


def _panel(pixels: Pixels) -> Image.Image:
    shown = np.clip(resize(pixels, (PANEL, PANEL), "bicubic", antialias=True), 0, 1)
    return Image.fromarray(from_unit(shown, "uint8"))
