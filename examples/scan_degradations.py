"""Draw the sheet of degraded scans in docs/scan_degradations.png.

    python examples/scan_degradations.py hippocampus/imagesTr/hippocampus_003.nii.gz docs/scan_degradations.png

The scan is one of the Medical Segmentation Decathlon's hippocampus data (CC-BY-SA 4.0).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from hybrid.records import replacing
from medical.restoration.degradation_sheet import scan_degradation_sheet
from medical.volumes.volume import read_volume


def main(scan: Path, sheet: Path) -> None:
    """Write the sheet of the middle slice across j as a PNG of 256 grays."""
    values = read_volume(scan).values[0]
    drawn = io.BytesIO()
    scan_degradation_sheet(values[:, values.shape[1] // 2]).savefig(drawn, format="png", dpi=110)
    with Image.open(drawn) as picture, replacing(sheet) as part:
        picture.convert("L").save(part, "PNG", optimize=True)
    print(f"{sheet}: {sheet.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/scan_degradations.png"))
