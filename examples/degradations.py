"""Draw the sheet of real-world degradations in docs/degradations.png.

    python examples/degradations.py docs/degradations.png

The picture is the osprey of the `mini` set, a CC0-1.0 photograph.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

import data_specs
from hybrid.records import replacing
from restore.degradation_sheet import degradation_sheet
from restore.images import read_picture

PICTURE = Path(data_specs.__file__).parent / "mini" / "osprey.png"


def main(sheet: Path) -> None:
    """Write the sheet as a PNG of 256 colours, which halves the file."""
    figure = degradation_sheet(read_picture(PICTURE).colour, seeds=range(12))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    with Image.open(drawn) as picture, replacing(sheet) as part:
        picture.convert("RGB").quantize(256).save(part, "PNG", optimize=True)
    print(f"{sheet}: {sheet.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/degradations.png"))
