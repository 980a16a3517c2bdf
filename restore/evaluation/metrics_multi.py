"""Scores of networks with several outputs: the best of each picture, which needs the label, and the best output overall.

S. Liu, P. Qiao, Y. Dou, "Multi-Outputs Is All You Need For Deblur", arXiv 2208.13029. Axis letters: M pictures, m outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from restore.evaluation.metrics import psnr
from restore.images.resize import round_to_uint8

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Of a picture and its label, (H, W, C) uint8; more is better."""


@dataclass(frozen=True)
class OutputScores:
    """What the scores of every output of every picture say. Each metric is read by itself.

    Attributes:
        best_overall: Mean over pictures of their best output: an oracle, since only the label tells which that is.
        worst_overall: Mean over pictures of their worst output.
        single: Mean over pictures of each output.
        wins: Pictures whose best output each is, the first of equal ones.
    """

    best_overall: float
    worst_overall: float
    single: tuple[float, ...]
    wins: tuple[int, ...]

    @property
    def best_output(self) -> int:
        """The output with the best mean: on validation pictures, the one to use where one is wanted."""
        return int(np.argmax(self.single))

    @property
    def best_single(self) -> float:
        """The mean of that output; honest where it was chosen on other pictures, see `single`."""
        return max(self.single)


def output_scores(scores: np.ndarray) -> OutputScores:
    """Read a table of scores.

    Args:
        scores: (M, m), more is better.

    Raises:
        ValueError: It is no table, or an empty one.

    >>> found = output_scores(np.array([[30.0, 32.0], [35.0, 31.0]]))
    >>> found.best_overall, found.best_single, found.best_output, found.wins
    (33.5, 32.5, 0, (1, 1))
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores are (pictures, outputs), not {scores.shape}")
    return OutputScores(
        best_overall=float(scores.max(1).mean()),
        worst_overall=float(scores.min(1).mean()),
        single=tuple(map(float, scores.mean(0))),
        wins=tuple(np.bincount(scores.argmax(1), minlength=scores.shape[1]).tolist()),
    )


def score_outputs(outputs: np.ndarray, label: np.ndarray, metric: Metric | None = None) -> NDArray[np.float64]:
    """Score each output of one picture by the paper's protocol: clamped, rounded to 8 bits, no border, RGB.

    Args:
        outputs: (m, C, H, W) float in [0, 1], as a network returns them, not clamped.
        label: (H, W, C) uint8.
        metric: PSNR in RGB where it is left out.

    Returns:
        (m,), one row for `output_scores`.
    """
    measure = metric or (lambda picture, truth: psnr(picture, truth, channel="rgb"))
    return np.array([measure(round_to_uint8(output.transpose(1, 2, 0) * 255.0), label) for output in outputs])
