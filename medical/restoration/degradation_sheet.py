"""A picture sheet of degraded scans: one slice, what each degradation makes of it, and the difference below."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from medical.restoration.degradations import CartesianSampling, Dose, Operation, Rician

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW = (-160.0, 240.0)
"""Hounsfield units that stand for black and white of the slice when it plays the part of a CT."""

_WIDTH, _GAP, _CAPTION = 2.1, 0.06, 0.34  # inches: a panel, the space between, a caption of two lines


def scan_degradation_sheet(plane: np.ndarray, seed: int = 0) -> Figure:
    """Draw a slice of MR, (i, j), and its degradations; below each, what it changed, gray being nothing.

    For the noise of CT its range becomes soft tissue in Hounsfield units: the picture shows the grain, not an anatomy of CT.
    """
    from matplotlib.figure import Figure

    low, high = 0.0, float(np.percentile(plane, 99.5))
    slope = (WINDOW[1] - WINDOW[0]) / (high - low)
    scan = plane[..., None].astype(np.float32)
    operations: list[Operation] = [Rician(0.08, seed), Dose(5e3, 1.0, seed), CartesianSampling(2.5, 0.15, seed)]
    columns = [("the scan", scan)]
    for operation in operations:
        if isinstance(operation, Dose):
            units = operation.apply((scan - low) * slope + WINDOW[0])
            columns.append((str(operation), (units - WINDOW[0]) / slope + low))
        else:
            columns.append((str(operation), operation.apply(scan)))
    high_side = _WIDTH * plane.shape[1] / plane.shape[0]
    size = len(columns) * (_WIDTH + _GAP) + _GAP, 2 * (high_side + _GAP) + _CAPTION
    figure = Figure(figsize=size)
    for column, (caption, values) in enumerate(columns):
        for row, (pixels, limits) in enumerate(((values, (low, high)), (values - scan, (-high / 4, high / 4)))):
            left, bottom = _GAP + column * (_WIDTH + _GAP), size[1] - _CAPTION - (row + 1) * high_side - row * _GAP
            axes = figure.add_axes((left / size[0], bottom / size[1], _WIDTH / size[0], high_side / size[1]))
            axes.set_axis_off()
            if row and not column:
                axes.text(0.5, 0.5, "what was changed,\ntwice as strong", ha="center", va="center", fontsize=7)
                continue
            axes.imshow(pixels[..., 0].T, "gray", vmin=limits[0], vmax=limits[1], origin="lower", interpolation="nearest")
            if not row:
                axes.set_title(textwrap.fill(caption, 34), fontsize=7, pad=3)
    return figure
