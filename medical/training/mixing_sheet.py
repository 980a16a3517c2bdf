"""A picture sheet of mixing: two samples, and what each kind makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hybrid.training.loop import Sample
from medical.structures import Structure
from medical.training.mixing import CropMix, CutMix, Mixed, MixUp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (
    ("MixUp, alpha 5", MixUp(probability=1, alpha=5)),
    ("CutMix, alpha 5", CutMix(probability=1, alpha=5)),
    ("CropMix by MixUp", CropMix(probability=1, alpha=5)),
    ("CropMix by CutMix", CropMix(probability=1, alpha=5, by="cutmix")),
    ("CutMix, slices: 2", CutMix(probability=1, alpha=5, slices=2)),
)
"""With weights near one half, where one sees most of both."""

_WIDTH, _GAP, _HEADING = 1.5, 0.06, 0.24  # inches: a panel, the space between, a heading or the legend
_TINT = 0.6  # strength of the colour where a structure has the whole of a voxel


def mixing_sheet(samples: Sequence[Sample], structures: Sequence[Structure], seed: int = 0) -> Figure:
    """Draw each sample, the next one, and their mixtures, one row a sample; a plane across the first axis.

    Args:
        samples: (C, i, j, k) values and (1, i, j, k) labels, all of one size. The first channel is drawn.
        structures: What is tinted, by the shares of each voxel.
        seed: Of all chance.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    _, _, columns, rows = samples[0][0].shape
    high = _WIDTH * rows / columns
    count = 2 + len(KINDS)
    size = count * (_WIDTH + _GAP) + _GAP, len(samples) * (high + _GAP) + 2 * _HEADING
    figure = Figure(figsize=size)
    for row in range(len(samples)):
        pair = [samples[row], samples[(row + 1) % len(samples)]]
        plane = int((pair[0][1][0] > 0).sum((1, 2)).argmax())
        for column, (heading, sample) in enumerate(_panels(pair, structures, [seed, row])):
            left, bottom = _GAP + column * (_WIDTH + _GAP), size[1] - _HEADING - (row + 1) * (high + _GAP) + _GAP
            axes = figure.add_axes((left / size[0], bottom / size[1], _WIDTH / size[0], high / size[1]))
            axes.set_axis_off()
            picture = tinted(sample[0][0, plane], sample[1][1:, plane], structures)
            axes.imshow(picture.swapaxes(0, 1), origin="lower", interpolation="nearest", aspect="auto")
            if row == 0:
                axes.set_title(heading, fontsize=8, pad=3)
    handles = [Patch(color="#{:02x}{:02x}{:02x}".format(*each.rgb), label=each.name) for each in structures]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=8, frameon=False, borderaxespad=0)
    return figure


def tinted(values: np.ndarray, shares: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    """A plane (a, b) in gray, coloured by the shares (structures, a, b) of its structures: (a, b, 3) in [0, 1]."""
    low, high = np.percentile(values, (1, 99))
    gray = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)[..., None]
    colours = np.array([each.rgb for each in structures]) / 255
    strength = _TINT * shares.sum(0)[..., None]
    tinted: np.ndarray = gray * (1 - strength) + _TINT * np.einsum("sab,sc->abc", shares, colours)
    return tinted


def _panels(pair: Sequence[Sample], structures: Sequence[Structure], seed: list[int]) -> list[tuple[str, Sample]]:
    values = [each.value for each in structures]

    def mixed(kind: MixUp | CutMix | CropMix, order: Sequence[Sample]) -> Sample:
        given = iter(order)
        return Mixed(lambda rng: next(given), kind, values)(np.random.default_rng(seed))

    first, second = (mixed(MixUp(probability=0), [each]) for each in pair)
    return [("first", first), ("second", second), *((name, mixed(kind, pair)) for name, kind in KINDS)]
