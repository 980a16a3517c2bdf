"""A picture sheet of degradations: each kind alone, with its kernel or numbers, and whole pipelines with what they drew."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from restore.degradations import operations
from restore.degradations.blur_kernels import GaussianKernel, SincKernel
from restore.degradations.operations import Blur, Operation
from restore.degradations.pipeline import REAL_WORLD_X4, Pipeline
from restore.images.resize import mod_crop, round_to_uint8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6
DETAIL = 96
"""Pixels of the picture along each side of a panel that shows one kind."""

_SIDE, _GAP, _HEADING, _LINE = 1.75, 0.08, 0.32, 0.118  # inches: a panel, the space between, a heading, a line of a caption
_LETTERS = 36  # that fit below a panel
_FONT = 6.5


@dataclass(frozen=True)
class Panel:
    """A picture, (h, w, 3) uint8, what is written below it, and a kernel for its corner."""

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...]
    kernel: NDArray[np.float64] | None = None


def degradation_sheet(image: NDArray[np.uint8], seeds: Sequence[int], pipeline: Pipeline = REAL_WORLD_X4) -> Figure:
    """Draw the kinds of degradation on the middle of a picture, and below them a pipeline on all of it.

    Args:
        image: (H, W, 3) uint8.
        seeds: One realisation of the pipeline for each, with the list of what was done.
        pipeline: The random degradation.
    """
    return draw_sheet(
        [("Each kind alone", _kinds(image)), (f"Drawn at random, x{pipeline.scale}", _draws(image, seeds, pipeline))]
    )


def draw_sheet(sections: Sequence[tuple[str, Sequence[Panel]]]) -> Figure:
    """Draw panels in rows under the heading of their section."""
    from matplotlib.figure import Figure

    laid = [(heading, _rows(panels)) for heading, panels in sections]
    width = COLUMNS * _SIDE + (COLUMNS + 1) * _GAP
    height = sum(_HEADING + sum(_row_height(row) for row in rows) for _, rows in laid)
    figure = Figure(figsize=(width, height))
    y = height
    for heading, rows in laid:
        y -= _HEADING
        figure.text(_GAP / width, (y + 0.09) / height, heading, fontsize=9, fontweight="bold")
        for row in rows:
            for column, panel in enumerate(row):
                x = _GAP + column * (_SIDE + _GAP)
                _draw(figure, panel, (x / width, (y - _SIDE) / height, _SIDE / width, _SIDE / height))
            y -= _row_height(row)
    return figure


def single_degradations(size: tuple[int, int]) -> list[Operation]:
    """An operation of each kind, strong enough to be seen; resizing goes to a third of `size`."""
    small = max(1, size[0] // 3), max(1, size[1] // 3)
    return [
        Blur(GaussianKernel(15, (1.8, 1.8))),
        Blur(GaussianKernel(21, (3.0, 0.7), math.radians(30))),
        Blur(GaussianKernel(15, (1.0, 1.0), beta=0.5)),
        Blur(GaussianKernel(15, (2.5, 1.2), math.radians(120), 2.0, "plateau")),
        Blur(SincKernel(21, math.pi / 3)),
        operations.Resize(small, "area"),
        operations.Resize(small, "bilinear"),
        operations.Resize(small, "bicubic"),
        operations.Resize(small, "bicubic", antialias=True),
        operations.Compression("jpeg", 15),
        operations.Compression("webp", 5),
        operations.GaussianNoise(20, False, 0),
        operations.GaussianNoise(20, True, 0),
        operations.PoissonNoise(2.0, False, 0),
        operations.PoissonNoise(2.0, True, 0),
        operations.CameraNoise(0.001, 1e-6, 0),
        operations.CameraNoise(0.012, 2e-4, 0),
    ]


def _kinds(image: NDArray[np.uint8]) -> list[Panel]:
    top, left = ((side - min(side, DETAIL)) // 2 for side in image.shape[:2])
    detail = image[top : top + DETAIL, left : left + DETAIL]
    values = detail.astype(np.float32) / np.float32(255)
    panels = [Panel(detail, (f"{detail.shape[1]} x {detail.shape[0]} pixels of the original",))]
    for operation in single_degradations((detail.shape[0], detail.shape[1])):
        kernel = operation.kernel.array() if isinstance(operation, Blur) else None
        panels.append(Panel(round_to_uint8(operation.apply(values) * 255), tuple(wrapped(operation)), kernel))
    return panels


def _draws(image: NDArray[np.uint8], seeds: Sequence[int], pipeline: Pipeline) -> list[Panel]:
    whole = mod_crop(image, pipeline.scale)
    panels = []
    for seed in seeds:
        degraded = pipeline.apply(whole, np.random.default_rng(seed))
        lines = [line for step in degraded.steps for line in wrapped(step)]
        panels.append(Panel(degraded.image, (f"seed {seed}", *lines)))
    return panels


def wrapped(operation: Operation | str) -> list[str]:
    """Lines of a caption that fit below a panel."""
    return textwrap.wrap(str(operation), _LETTERS, subsequent_indent="   ")


def _rows(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    return [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]


def _row_height(row: Sequence[Panel]) -> float:
    return _SIDE + _LINE * (max(len(panel.lines) for panel in row) + 1)


def _draw(figure: Figure, panel: Panel, place: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(place, anchor="N")
    axes.set_axis_off()
    axes.imshow(panel.pixels, interpolation="nearest")
    axes.text(0, -0.03, "\n".join(panel.lines), transform=axes.transAxes, va="top", fontsize=_FONT, linespacing=1.25)
    if panel.kernel is not None:
        peak = np.abs(panel.kernel).max()
        corner = axes.inset_axes((0.68, 0.68, 0.32, 0.32))
        # Black is the middle's value, white zero, red below zero; the root lets faint tails show.
        corner.imshow(np.sign(panel.kernel) * np.sqrt(np.abs(panel.kernel) / peak), cmap="RdGy", vmin=-1, vmax=1)
        corner.set(xticks=[], yticks=[])
