"""Draw the sheet of mixed samples in docs/mixing.png.

    python examples/mixing.py hippocampus/ docs/mixing.png

The folder is that of the Medical Segmentation Decathlon's hippocampus data (CC-BY-SA 4.0) with splits in its dataset.json;
the first three scans to train on are drawn.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hybrid.records import replacing
from medical.training.cases import Folder, cut
from medical.training.mixing_sheet import mixing_sheet
from medical.training.run import load_recipe


def main(data: Path, sheet: Path) -> None:
    """Write the sheet as a PNG of 256 colours, which halves the file."""
    protocol, folder = load_recipe("hippocampus").protocol, Folder.read(data)
    samples = []
    for case in folder.cases(folder.train[:3], protocol):
        start = (np.array(case.labels.shape) - protocol.patch) // 2
        samples.append((cut(case.values, start, protocol.patch), cut(case.labels[None], start, protocol.patch)))
    drawn = io.BytesIO()
    mixing_sheet(samples, protocol.structures, seed=12).savefig(drawn, format="png", dpi=110)
    with Image.open(drawn) as picture, replacing(sheet) as part:
        picture.convert("RGB").quantize(256).save(part, "PNG", optimize=True)
    print(f"{sheet}: {sheet.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/mixing.png"))
