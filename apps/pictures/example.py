"""Example pictures: excerpts that come with the package, damaged in the way that a task mends."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_specs import FOLDER
from restore.degradations.pipeline import Pipeline, gaussian_noise, jpeg, motion_blur
from restore.images import Picture, read_picture, write_picture
from restore.tasks import DEBLUR, DEJPEG, DENOISE, Command

PICTURES = {"deblur": "colosseum", "denoise": "otter", "dejpeg": "flowers"}
DAMAGE: dict[str, Pipeline] = {
    DEBLUR.name: motion_blur(),
    DENOISE.name: gaussian_noise(25.0),
    DEJPEG.name: jpeg(15),
}
SEED = 5


def make_example(command: Command, folder: Path) -> Path:
    """Write the example of a task into a folder: the same bytes at every call."""
    name = PICTURES.get(command.name, "osprey")
    picture = read_picture(FOLDER / "mini" / f"{name}.png")
    colour = picture.colour
    if command.name in DAMAGE:
        colour = DAMAGE[command.name].apply(colour, np.random.default_rng(SEED)).image
    path = folder / f"example_{name}.png"
    write_picture(path, Picture(colour))
    return path
