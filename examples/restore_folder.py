"""Enlarge the pictures of a folder by two; one that cannot be read is named, and the others go on.

    python examples/restore_folder.py [FOLDER] [OUTPUT]

Without arguments the six crops that ship in `data_specs/mini` are enlarged into `enlarged/`. Bit depth, alpha, profile and
metadata stay as they were, and beside each result lies its record (`NAME.png.json`): model, hash of its weights, tiles, time.
The command for the same, which also goes on where it was broken off: `restore sr FOLDER -o OUTPUT --scale 2`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import restore
from hybrid.errors import HybridError
from restore.restoration.run import RunSettings

CROPS = Path(__file__).resolve().parent.parent / "data_specs" / "mini"
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}


def main(folder: Path = CROPS, output: Path = Path("enlarged")) -> None:
    """Write `output / NAME.png` for each picture of `folder`."""
    network = restore.load_model("cfsr-compact", scale=2)  # or another name of `restore models list`, or a checkpoint file
    settings = RunSettings(overwrite=True, memory=2 * 2**30)  # larger pictures are cut into tiles that fit 2 GiB
    output.mkdir(parents=True, exist_ok=True)
    for source in sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS):
        try:
            outcome = restore.restore_file(network, source, output / f"{source.stem}.png", settings)
        except HybridError as error:  # what is wrong with this picture, and what to do about it
            print(f"{source.name}: {error}")
            continue
        print(f"{outcome.output}: {outcome.size[0]} x {outcome.size[1]} in {outcome.seconds:.1f} s")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
