"""Draw what face networks learn from: aligned faces beside what the seeded degradation makes of them.

    python examples/face_degradations.py FOLDER_OF_FACES sheet.png [face-base | face-extending | face-sharp]

The faces are aligned and of one size; the first six by name are taken, each with two seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from restore.faces.degradation import FACE_PRESETS, face_sheet
from restore.training.data import PICTURES, read_photos

FACES, DRAWS = 6, 12


def main(folder: Path, sheet: Path, preset: str = "face-extending") -> None:
    """Draw and write the sheet."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)[:FACES]
    faces = read_photos(files)
    face_sheet(faces, range(DRAWS), FACE_PRESETS[preset](faces[0].shape[0])).savefig(sheet, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
