"""Any final size from networks of whole scales: the network first, then one resize of its rows as they come.

The resize is the antialiased bicubic of `restore.images.interpolation`, one sparse matrix an axis: each block of rows is resized
across at once, and down as soon as all rows that an output row reads are there. So only a strip is held.
Axes: (H, W, P), P planes being the colours and alpha.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import RequestError
from restore.images.interpolation import resize_matrix

BLOCK_VALUES = 2**20
"""float32 values of a block, before or after its resize: 4 MiB."""


@dataclass(frozen=True)
class FinalSize:
    """The size that a result shall have: a factor, or a width or a height or both in pixels.

    Attributes:
        factor: Output pixels per input pixel along both axes; the sides are rounded.
        width, height: Exact; one that is None keeps the picture's ratio.
    """

    factor: float | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        if self.factor is not None and not (math.isfinite(self.factor) and self.factor > 0):
            raise RequestError(f"--scale {self.factor:g} is no enlargement.", hint="Give a positive number, such as 2 or 2.7.")
        if (self.factor is None) == (self.width is None and self.height is None):
            raise RequestError("A final size is a factor, or a width or height.", hint="Give --scale or --size.")

    @classmethod
    def parse(cls, text: str) -> FinalSize:
        """Read ``3840x2160``, ``3840x`` or ``x2160``.

        Raises:
            RequestError: It is not of that form.

        >>> FinalSize.parse("3840x")
        FinalSize(factor=None, width=3840, height=None)
        """
        sides = re.fullmatch(r"([1-9]\d{0,6})?x([1-9]\d{0,6})?", text.strip().lower(), re.ASCII)
        if sides is None or not any(sides.groups()):
            raise RequestError(f"--size {text} is not understood.", hint="Give pixels, such as 3840x2160, 3840x or x2160.")
        width, height = (int(side) if side else None for side in sides.groups())
        return cls(width=width, height=height)

    @property
    def tag(self) -> str:
        """What stands behind the names of results that lie beside their input, such as ``_x2.7``."""
        return f"_x{self.factor:g}" if self.factor is not None else f"_{self.width or ''}x{self.height or ''}"

    def wanted(self, width: int, height: int) -> float:
        """The enlargement of a picture of `width` x `height`, of its more enlarged side where the ratio changes."""
        if self.factor is not None:
            return self.factor
        return max((self.width or 0) / width, (self.height or 0) / height)

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result of a picture of `width` x `height`.

        >>> FinalSize(2.7).of(100, 75), FinalSize(height=150).of(100, 75), FinalSize(None, 90, 10).of(100, 75)
        ((270, 203), (200, 150), (90, 10))
        """
        factor = self.wanted(width, height)
        return self.width or _rounded(width * factor), self.height or _rounded(height * factor)


def asked_size(scale: float | None, size: str | None) -> tuple[int | None, FinalSize | None]:
    """From --scale and --size to the scale that the network must have, or the final size; at most one of the two.

    A whole number asks for the network of that scale first.

    >>> asked_size(4.0, None), asked_size(2.5, None)
    ((4, None), (None, FinalSize(factor=2.5, width=None, height=None)))

    Raises:
        RequestError: Both are given, or one makes no sense.
    """
    if scale is not None and size is not None:
        raise RequestError("--scale and --size are two ways to say one thing.", hint="Give one of them.")
    if size is not None:
        return None, FinalSize.parse(size)
    if scale is None or scale.is_integer():
        return None if scale is None else int(scale), None
    return None, FinalSize(scale)


def suitable_scales(wanted: float, scales: Collection[int]) -> tuple[int, ...]:
    """Scales of a model from which a size is reached by shrinking, the smallest first; else its largest alone.

    >>> suitable_scales(2.7, (2, 3, 4)), suitable_scales(6.5, (2, 3, 4))
    ((3, 4), (4,))
    """
    return tuple(sorted(scale for scale in scales if scale >= wanted)) or (max(scales),)


def resize_note(source: tuple[int, int], target: tuple[int, int]) -> str:
    """The sentence of a record about the resize; sizes are width and height."""
    return f"The network's result of {source[0]} x {source[1]} was resized to {target[0]} x {target[1]} by antialiased bicubic."


class RowResizer:
    """Resizes a picture whose rows come from top to bottom, and hands out rows of the result as they become known.

    Args:
        source: Height and width of what comes.
        target: Height and width of the result.
        planes: Values per pixel.
        write: Receives (first row, rows (h, W, planes) float32), in order, each row once.
    """

    def __init__(
        self, source: tuple[int, int], target: tuple[int, int], planes: int, write: Callable[[int, NDArray[np.float32]], None]
    ) -> None:
        self.write = write
        self.down, self.across = (resize_matrix(*sides, "bicubic", True) for sides in zip(source, target, strict=True))
        starts, ends = self.down.indptr[:-1], self.down.indptr[1:] - 1
        # A tap of weight 0 is not stored, so that the ends of neighbouring rows may go back by one: made monotonic.
        self.first = np.minimum.accumulate(self.down.indices[starts][::-1])[::-1]
        self.last = np.maximum.accumulate(self.down.indices[ends])
        widest = max(source[1], target[1]) * planes
        self.step = max(1, int(BLOCK_VALUES / widest / max(1.0, target[0] / source[0])))
        self.held = np.empty((0, target[1], planes), np.float32)
        self.held_from = self.next_row = 0

    def add(self, top: int, rows: NDArray[np.float32]) -> None:
        """Take the rows (h, W, planes) from `top` on; they must follow those that came before."""
        if top != self.held_from + len(self.held):
            raise ValueError(f"Got rows at {top}; row {self.held_from + len(self.held)} is next.")
        for start in range(0, len(rows), self.step):
            self._add(rows[start : start + self.step])

    @property
    def bytes(self) -> int:
        """Most bytes that are held beside the rows that come in."""
        (rows, height), columns, planes = self.down.shape, self.across.shape[0], self.held.shape[2]
        strip = int((self.last - self.first).max()) + 1 + self.step
        block = self.step * max(self.across.shape[1], columns) + math.ceil(self.step * rows / height) * columns
        return int(4 * planes * (2 * strip * columns + 4 * block))

    def _add(self, rows: NDArray[np.float32]) -> None:
        count, width, planes = rows.shape
        turned = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(width, count * planes)
        narrow = (self.across @ turned).reshape(-1, count, planes).transpose(1, 0, 2)
        self.held = np.concatenate((self.held, narrow))
        end = self.held_from + len(self.held)
        ready = int(np.searchsorted(self.last, end))  # output rows that read nothing from `end` on
        if ready == self.next_row:
            return
        weights = self.down[self.next_row : ready, self.held_from : end]
        block = weights @ self.held.reshape(len(self.held), -1)
        top, self.next_row = self.next_row, ready
        self.write(top, block.reshape(-1, *self.held.shape[1:]))
        keep_from = min(int(self.first[ready]), end) if ready < len(self.first) else end
        self.held = self.held[keep_from - self.held_from :].copy()
        self.held_from = keep_from


def _rounded(length: float) -> int:
    return max(1, math.floor(length + 0.5))
