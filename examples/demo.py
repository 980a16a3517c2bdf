"""Enlarge the example by four with a shipped network, and put the result beside plain bicubic enlargement.

    python examples/demo.py demo

Leaves `colosseum_x4.png`, its record `colosseum_x4.png.json`, and `side_by_side.png` in the folder given.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from restore.images import read_picture
from restore.images.resize import imresize
from restore.loading import load_model
from restore.restoration.run import RunSettings, restore_file

EXAMPLE = Path(__file__).with_name("colosseum.png")
SCALE = 4
DETAIL = (slice(280, 560), slice(80, 500))
"""Rows and columns of the result that are shown from near."""


def main(folder: Path) -> None:
    """Run the example and write the three files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    network = load_model("cfsr-compact", scale=SCALE, precision="auto")
    outcome = restore_file(network, EXAMPLE, folder / "colosseum_x4.png", RunSettings(overwrite=True))
    name = network.source.name if network.source else network.card.title
    sheet = folder / "side_by_side.png"
    draw_side_by_side(outcome.output, sheet, name)
    print(f"{outcome.output}: {outcome.size[0]} x {outcome.size[1]} in {outcome.seconds:.1f} s")
    print(f"{sheet}: look at it")
    print("Next: source .venv/bin/activate, then: restore sr --scale 4 YOUR_PICTURE")


def draw_side_by_side(result: Path, sheet: Path, name: str) -> None:
    """Bicubic on the left, the network's result on the right; whole above, a detail below."""
    bicubic = imresize(read_picture(EXAMPLE).colour, SCALE, "uint8")
    restored = read_picture(result).colour
    figure = Figure(figsize=(13, 9.2), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(896 / 1200, 280 / 420))
    for column, (title, pixels) in enumerate((("bicubic", bicubic), (name, restored))):
        axes[0, column].imshow(pixels)
        axes[0, column].set_title(f"{title}, x{SCALE}")
        axes[1, column].imshow(pixels[DETAIL], interpolation="nearest")
    for each in axes.flat:
        each.set_axis_off()
    figure.savefig(sheet, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
