"""Which of several outputs is the best, told without the true picture: two criteria, each a score of which less is better.

*Agreement*: the output nearest to the mean of all. Of several guesses at one picture, the mean has the least expected squared
error, and the output nearest to it is the safest that is no average of all.

*Re-blur*: the output that, blurred again, is nearest to the input. The kernel is not known; for each output and each region of
the picture it is the non-negative one of small support that fits best in least squares, on gradients, as in S. Cho and S. Lee,
"Fast motion deblurring", ACM TOG 28(5), 2009, equation 8. The input itself would win, with a kernel of one pixel. Two terms
stand against that. The residual should be what the input's noise leaves, no more and no less (V. A. Morozov's discrepancy
principle, 1966); the noise is estimated as J. Immerkaer does (CVIU 64(2), 1996). And with a weight counts the normalised
sparsity ||g||_1 / ||g||_2 of the output's gradients over that of the input's: blur raises it, and of all versions of a picture
the sharp one has the least (D. Krishnan, T. Tay, R. Fergus, "Blind deconvolution using a normalized sparsity measure", CVPR
2011, equation 2).

A picture is scored region by region, so that memory does not grow with it. Axes: m outputs, H and W rows and columns, C colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.signal.windows import tukey

from restore.tasks import BEST

Array = NDArray[np.float64]
Box = tuple[slice, slice]
Score = Callable[[Array, Array], tuple[Array, float]]
"""The input (H, W, C) and the outputs (m, H, W, C) of a region to a score for each output and the region's weight."""

RADIUS = 12
"""Of the largest blur kernel that re-blur looks for, in pixels: it has 25 x 25."""
SMOOTHING = 1.0
"""Standard deviation, in pixels, of the Gaussian before gradients are taken: noise lies above what blur leaves."""
SPARSITY_WEIGHT = 0.1
"""What the sparsity of an output, over that of the input, counts beside the share of the input that re-blurring misses."""
RIDGE = 1e-3
"""Added to the normal equations of the kernel, as a share of the gradients' energy."""
STEPS = 60
"""Of the projected descent to a kernel without negative values."""


@dataclass(frozen=True)
class Criterion:
    """A way to score.

    Attributes:
        name: For the record.
        score: See `Score`.
        edge: Longer side of a region, in pixels.
        most: Regions that are looked at; more are thinned out evenly.
    """

    name: str
    score: Score
    edge: int = 256
    most: int = 10**9


def agreement(observed: Array, outputs: Array) -> tuple[Array, float]:
    """Mean squared distance of each output to the mean of all, (m,); arguments as of `reblur`."""
    distance = outputs - outputs.mean(0)
    return np.square(distance).mean((1, 2, 3)), float(observed[..., 0].size)


def reblur(observed: Array, outputs: Array) -> tuple[Array, float]:
    """How far what no blur of an output explains is from the input's noise, and the output's sparsity beside it.

    Args:
        observed: The input, (H, W, C) in [0, 1].
        outputs: (m, H, W, C).

    Returns:
        (m,) scores, least the best, and the weight of this picture's or tile's scores in a mean.
    """
    plane = observed.mean(-1)
    blurred = _gradients(plane)
    energy = float(np.square(_inner(blurred)).sum())
    if min(blurred.shape[1:]) <= 4 * RADIUS or energy < 1e-6 * blurred[0].size:  # nothing to see a blur by
        return np.zeros(len(outputs)), 0.0
    spread, expected = _sparsity(blurred), _noise(plane) ** 2 * _inner(blurred).size * _NOISE_GAIN
    scores = []
    for output in outputs:
        sharp = _gradients(output.mean(-1))
        missed = float(np.square(_inner(_convolve(sharp, fit_kernel(sharp, blurred)) - blurred)).sum())
        scores.append(abs(missed - expected) / energy + SPARSITY_WEIGHT * _sparsity(sharp) / spread)
    return np.array(scores), energy


AGREEMENT = Criterion("agreement", agreement)
REBLUR = Criterion("re-blur", reblur, most=24)
CRITERION = {each.name: each for each in (AGREEMENT, REBLUR)}[BEST]
"""What ``best`` means."""


def score_outputs(
    read: Callable[[Box], tuple[Array, Array]], height: int, width: int, criterion: Criterion = CRITERION
) -> NDArray[np.float64]:
    """The score of each output of a whole picture; the least is the best.

    Args:
        read: Gives the input (h, w, C) and the outputs (m, h, w, C) of a region, in [0, 1].
        height, width: Of the picture.
        criterion: How to score.

    Returns:
        (m,): the mean over regions by their weight; the same for all where no region tells anything.
    """
    total, weights = np.zeros(1), 0.0
    for box in regions(height, width, criterion):
        observed, outputs = read(box)
        scores, weight = criterion.score(np.asarray(observed, np.float64), np.asarray(outputs, np.float64))
        total, weights = total + weight * scores, weights + weight
    return total / (weights or 1.0)


def score_picture(observed: Array, outputs: Array, criterion: Criterion = CRITERION) -> NDArray[np.float64]:
    """As `score_outputs`, of arrays: the input (H, W, C) and the outputs (m, H, W, C), in [0, 1].

    >>> rng = np.random.default_rng(0)
    >>> truth = rng.random((32, 32, 3))
    >>> off = np.array([0.1, 0.0, -0.2])[:, None, None, None]
    >>> int(score_picture(truth, truth + off, AGREEMENT).argmin())
    1
    """
    height, width, _ = observed.shape
    return score_outputs(lambda box: (observed[box], outputs[:, box[0], box[1]]), height, width, criterion)


def regions(height: int, width: int, criterion: Criterion) -> Iterator[Box]:
    """The regions that a criterion looks at: a grid of equal ones over the picture, thinned where there are too many."""
    rows, columns = (_cut(side, criterion.edge) for side in (height, width))
    share = min(1.0, math.sqrt(criterion.most / (len(rows) * len(columns))))
    yield from product(_thinned(rows, share), _thinned(columns, share))


def fit_kernel(sharp: Array, blurred: Array) -> Array:
    """The blur kernel that takes the gradients of one picture to those of another.

    Args:
        sharp, blurred: (2, H, W), both gradients of a region.

    Returns:
        (2 * RADIUS + 1, 2 * RADIUS + 1), not negative, its sum 1.
    """
    height, width = sharp.shape[1:]
    window = tukey(height, 0.25)[:, None] * tukey(width, 0.25)
    shape = tuple(fft.next_fast_len(side + 4 * RADIUS, real=True) for side in (height, width))  # no wrap-around
    s, b = (fft.rfft2(window * each, shape) for each in (sharp, blurred))
    own = fft.irfft2(np.square(np.abs(s)).sum(0), shape)
    cross = fft.irfft2((np.conj(s) * b).sum(0), shape)
    side = 2 * RADIUS + 1
    offsets = np.arange(-RADIUS, RADIUS + 1)
    right = cross[np.ix_(offsets, offsets)].ravel()
    apart = np.subtract.outer(np.arange(side), np.arange(side))
    # Place (i, j) of the kernel meets (k, l) by the picture's likeness to itself moved by (i - k, j - l).
    normal = own[apart[:, None, :, None], apart[None, :, None, :]].reshape(side**2, side**2)
    normal[np.diag_indices(side**2)] += RIDGE * own[0, 0]
    kernel = _not_negative(normal, right)
    total = kernel.sum()
    if total <= 0:  # nothing in common: the picture as it is
        kernel[len(kernel) // 2] = total = 1.0
    scaled: Array = (kernel / total).reshape(side, side)
    return scaled


def _not_negative(normal: Array, right: Array) -> Array:
    """min k' N k / 2 - r' k over k >= 0, by Nesterov's projected descent (Beck and Teboulle, FISTA, 2009)."""
    vector = np.ones(len(right))
    for _ in range(12):  # the largest eigenvalue, to which the step is the inverse
        vector = normal @ vector
        vector /= np.linalg.norm(vector)
    step = 1 / (1.05 * float(vector @ normal @ vector))
    kernel: Array = np.maximum(np.linalg.solve(normal, right), 0)
    ahead = kernel
    momentum = 1.0
    for _ in range(STEPS):
        after = np.maximum(ahead - step * (normal @ ahead - right), 0)
        grown = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + (momentum - 1) / grown * (after - kernel)
        kernel, momentum = after, grown
    return kernel


def _convolve(planes: Array, kernel: Array) -> Array:
    """(2, H, W) convolved with a kernel, of the same size; right at `RADIUS` pixels from the border and beyond."""
    height, width = planes.shape[1:]
    shape = tuple(fft.next_fast_len(side + 2 * RADIUS, real=True) for side in (height, width))
    full = fft.irfft2(fft.rfft2(planes, shape) * fft.rfft2(kernel, shape), shape)
    inner: Array = full[:, RADIUS : RADIUS + height, RADIUS : RADIUS + width]
    return inner


def _gradients(plane: Array) -> Array:
    """(H, W), smoothed, to differences to the right and downwards, (2, H - 1, W - 1)."""
    plane = ndimage.gaussian_filter(plane, SMOOTHING)
    return np.stack([plane[:-1, 1:] - plane[:-1, :-1], plane[1:, :-1] - plane[:-1, :-1]])


_NOISE_GAIN = float(np.square(_gradients(np.eye(33)[16][:, None] * np.eye(33)[16])).sum() / 2)
"""Variance of a gradient of white noise of variance 1."""


def _noise(plane: Array) -> float:
    """Standard deviation of the white noise in a plane, by the mean size of a second difference along both axes."""
    second = np.diff(np.diff(plane, 2, 0), 2, 1)
    return math.sqrt(math.pi / 2) / 6 * float(np.abs(second).mean())


def _inner(planes: Array) -> Array:
    return planes[:, RADIUS:-RADIUS, RADIUS:-RADIUS]


def _sparsity(gradients: Array) -> float:
    """Norm 1 over norm 2, at most 1: that of gradients that are equal everywhere."""
    root = math.sqrt(float(np.square(gradients).mean()))
    return float(np.abs(gradients).mean()) / root if root > 0 else 1.0


def _thinned(parts: list[slice], share: float) -> list[slice]:
    """About that share of the parts, evenly spread and never none."""
    count = max(1, int(len(parts) * share))
    return [parts[(2 * place + 1) * len(parts) // (2 * count)] for place in range(count)]


def _cut(side: int, edge: int) -> list[slice]:
    """A side in equal parts of at most `edge`."""
    count = math.ceil(side / edge)
    ends = [round(side * part / count) for part in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]
