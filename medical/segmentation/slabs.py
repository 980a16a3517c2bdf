"""From slabs of logits to a label map: back to a finer or coarser grid row by row, and one number a voxel.

Axes: logits are (classes, rows, ...) in the stream order of `medical.segmentation.sliding`; what is held does not grow
with the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medical.protocol import Protocol
from medical.segmentation.sliding import WriteSlab


class LabelPainter:
    """Writes the labels of slabs, and their probabilities where they are wanted, to arrays that lie ready.

    Args:
        labels: (rows, ...) to fill, in stream order; a view of the label map will do.
        protocol: What the channels mean: arg-max, ties to the lower label; or regions, each where its probability is
            above one half, painted in order.
        probabilities: (outputs, rows, ...) to fill with soft-max or sigmoid; None where they are not wanted.
    """

    def __init__(self, labels: np.ndarray, protocol: Protocol, probabilities: np.ndarray | None = None) -> None:
        self.labels, self.protocol, self.probabilities = labels, protocol, probabilities

    def __call__(self, first: int, block: Tensor) -> None:
        """Take a slab of logits whose first row is `first`."""
        for row in range(block.shape[1]):
            logits = block[:, row]
            self.labels[first + row] = painted(logits.numpy(), self.protocol, above=0)
            if self.probabilities is not None:
                self.probabilities[:, first + row] = shares_of(logits, self.protocol).numpy()


def shares_of(logits: Tensor, protocol: Protocol) -> Tensor:
    """The probability of each output (outputs, ...): soft-max, or sigmoid of regions."""
    return logits.sigmoid() if protocol.regions else logits.softmax(0)


def painted(scores: np.ndarray, protocol: Protocol, *, above: float) -> np.ndarray:
    """Labels of logits or probabilities (outputs, ...): the arg-max, ties to the lower; or regions, each where it is `above`."""
    if not protocol.regions:
        classes: np.ndarray = scores.argmax(0)
        return classes
    labels = np.zeros(scores.shape[1:], np.uint16)
    for region in protocol.regions:
        labels[scores[region.channel] > above] = region.value
    return labels


class RowInterpolator:
    """Brings slabs from one grid to another whose axes are parallel, linearly along each axis.

    Beyond the middles of the outermost voxels their values hold. Only the last row of a slab waits for the next slab.

    Args:
        positions: For each axis in stream order, where the voxels of the new grid lie, in voxels of the old one; rising.
        shape: Sides of the old grid in stream order.
        write: Receives the rows of the new grid, in order, one at a time.
    """

    def __init__(self, positions: Sequence[np.ndarray], shape: Sequence[int], write: WriteSlab) -> None:
        rows = np.clip(positions[0], 0, shape[0] - 1)
        self.lower = np.minimum(rows.astype(int), max(shape[0] - 2, 0))
        self.share = rows - self.lower
        self.last = shape[0] - 1
        self.sides = [_weights(where, n) for where, n in zip(positions[1:], shape[1:], strict=True)]
        self.write = write
        self.next = 0
        self.waiting: Tensor | None = None

    def __call__(self, first: int, block: Tensor) -> None:
        """Take a slab whose first row is `first`, and hand out the new rows that can be made."""
        end = first + block.shape[1]

        def row(at: int) -> Tensor:
            return self.waiting if self.waiting is not None and at < first else block[:, at - first]

        while self.next < len(self.lower) and min(self.lower[self.next] + 1, self.last) < end:
            low, share = int(self.lower[self.next]), float(self.share[self.next])
            plane = row(low) if share == 0 else torch.lerp(row(low), row(low + 1), share)
            self.write(self.next, (self.sides[0] @ plane @ self.sides[1].T)[:, None])
            self.next += 1
        self.waiting = row(end - 1).clone()


def _weights(positions: np.ndarray, n: int) -> Tensor:
    """(new, old) matrix of linear interpolation; products with it are faster than gathering the neighbours."""
    where = np.clip(positions, 0, n - 1)
    lower = np.minimum(where.astype(int), max(n - 2, 0))
    matrix = np.zeros((len(where), n), np.float32)
    rows = np.arange(len(where))
    matrix[rows, lower] = 1 - (where - lower)
    matrix[rows, np.minimum(lower + 1, n - 1)] += where - lower
    return torch.from_numpy(matrix)
