"""Draw the sheets of degradations in docs/degradations.png and docs/blur.png.

    python examples/degradations.py docs

The picture is the osprey of the `mini` set, a CC0-1.0 photograph.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import data_specs
from hybrid.records import replacing
from restore.degradations.blur_sheet import blur_sheet
from restore.degradations.sheet import degradation_sheet
from restore.images import read_picture

PICTURE = Path(data_specs.__file__).parent / "mini" / "osprey.png"


def main(folder: Path) -> None:
    """Draw and write both."""
    picture = read_picture(PICTURE).colour
    write(degradation_sheet(picture, seeds=range(12)), folder / "degradations.png")
    write(blur_sheet(picture), folder / "blur.png")


def write(figure: Figure, sheet: Path) -> None:
    """Write a sheet as a PNG of 256 colours, which halves the file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    with Image.open(drawn) as picture, replacing(sheet) as part:
        picture.convert("RGB").quantize(256).save(part, "PNG", optimize=True)
    print(f"{sheet}: {sheet.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
