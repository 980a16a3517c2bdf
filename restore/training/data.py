"""What picture networks learn from and are chosen by: crops of photographs, degraded on the fly, and held-out photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hybrid.errors import InputError
from hybrid.training.loop import Sample
from restore.degradations.pipeline import Degraded, Pipeline
from restore.evaluation.metrics import psnr
from restore.evaluation.metrics_multi import output_scores, score_outputs
from restore.images import read_picture
from restore.images.resize import downscale, imresize, mod_crop
from restore.models.base import RestorationNetwork

MARGIN = 4
"""Low-resolution pixels cut from a crop that is shrunk: the bicubic kernel reaches two pixels beyond it."""

DEGRADED_SHARE = 64 / 100
"""Edge of a training crop as a share of what is shrunk at random, as in Real-ESRGAN: 256 of 400 pixels. Mirrored edges and
the grid of JPEG blocks then fall anywhere."""

BLOCK = 16
"""Pixels of the largest block of JPEG, with halved chroma: a crop of the same size lies anywhere on the grid of blocks."""

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


class PhotoCrops:
    """Pairs of a degraded crop and its original, cut at random from photographs held in memory.

    Args:
        photos: (H, W, 3) uint8 arrays.
        scale: Factor between the two.
        patch: Edge of the low-resolution crop.
        degradation: Made anew for each pair; None is MATLAB's antialiased bicubic shrinking.
        margin: At scale 1, pixels around a crop that are degraded with it and cut off: what the degradation reaches, so
            that no crop shows the mirrored edge of another. Photographs themselves go on beyond their edge.
        rounded: Degraded pixels as a file of 8 bits holds them. Without, they are neither rounded nor clipped.

    Raises:
        InputError: No photograph is as large as a crop.
    """

    def __init__(
        self,
        photos: Sequence[np.ndarray],
        scale: int,
        patch: int,
        degradation: Pipeline | None = None,
        *,
        margin: int = 0,
        rounded: bool = True,
    ) -> None:
        self.scale, self.patch, self.degradation, self.rounded = scale, patch, degradation, rounded
        if degradation is None:
            self.margin, self.slack = MARGIN, 0
        elif scale > 1:
            self.margin, self.slack = 0, math.ceil(patch / DEGRADED_SHARE) - patch
        else:
            self.margin, self.slack = margin, BLOCK - 1
        self.extent = patch + 2 * self.margin + self.slack
        edge = self.extent * scale
        self.photos = [photo for photo in photos if min(photo.shape[:2]) >= edge]
        if not self.photos:
            raise InputError(
                f"No photograph is as large as a training crop of {edge} pixels.", hint="Give larger ones or lower `data.patch`."
            )
        areas = np.array([photo.shape[0] * photo.shape[1] for photo in self.photos], dtype=float)
        self.shares = areas / areas.sum()

    def __call__(self, rng: np.random.Generator) -> Sample:
        """Draw (3, patch, patch) and (3, patch * scale, patch * scale) float32 in [0, 1]; flipped and turned at random."""
        photo = self.photos[rng.choice(len(self.photos), p=self.shares)]
        edge = self.extent * self.scale
        top, left = (int(rng.integers(0, side - edge + 1)) for side in photo.shape[:2])
        high = np.ascontiguousarray(photo[top : top + edge, left : left + edge])
        row = column = self.margin
        if self.degradation is None:
            low = _unit(downscale(high, self.scale))
        else:
            low = taken(self.degradation.apply(high, rng), self.rounded)
            row, column = (self.margin + int(rng.integers(0, self.slack + 1)) for _ in range(2))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        low = low[row : row + self.patch, column : column + self.patch]
        high = high[row * self.scale :, column * self.scale :][: self.patch * self.scale, : self.patch * self.scale]
        return _augmented(low, turns, flip), _augmented(_unit(high), turns, flip)


def taken(degraded: Degraded, rounded: bool) -> np.ndarray:
    """What a network is given of a degraded picture, (h, w, 3) float32: its 8 bits, or its values as they were before."""
    return _unit(degraded.image) if rounded else degraded.values


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(255)


def _augmented(pixels: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    pixels = np.rot90(pixels, turns)
    pixels = pixels[:, ::-1] if flip else pixels
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class HeldOut:
    """PSNR on Y of a network, and of bicubic enlargement, over the centre crops of photographs that are not trained on.

    A random degradation is drawn once a photograph, the same in every run.
    """

    def __init__(self, photos: Sequence[np.ndarray], scale: int, crop: int, degradation: Pipeline | None = None) -> None:
        self.scale = scale
        self.pairs = []
        for number, photo in enumerate(photos):
            high = mod_crop(centre(photo, crop), scale)
            rng = np.random.default_rng(number)
            low = downscale(high, scale) if degradation is None else degradation.apply(high, rng).image
            self.pairs.append((low, high))
        self.bicubic = self._mean(lambda low: imresize(low, scale, "uint8"))

    def __call__(self, network: nn.Module) -> dict[str, float]:
        def enlarge(low: np.ndarray) -> np.ndarray:
            y = _outputs(network, _unit(low))[0].clamp(0, 1).mul(255).round().byte()
            return y.permute(1, 2, 0).numpy()

        return {"psnr": self._mean(enlarge), "psnr_bicubic": self.bicubic}

    def _mean(self, enlarge: Callable[[np.ndarray], np.ndarray]) -> float:
        return float(np.mean([psnr(enlarge(low), high, border=self.scale) for low, high in self.pairs]))


class HeldOutSameSize:
    """PSNR in RGB of a network of scale 1, and of its input, over the centre crops of photographs that are not trained on.

    Of a network with several outputs `psnr` is that of the output with the best mean, `psnr_best` that of the best of each
    photograph, and `won_0`, `won_1` ... count the photographs that each output is the best of.
    """

    def __init__(self, photos: Sequence[np.ndarray], crop: int, degradation: Pipeline, *, margin: int, rounded: bool) -> None:
        self.pairs = []
        for number, photo in enumerate(photos):
            wide = np.ascontiguousarray(centre(photo, crop + 2 * margin))
            degraded = taken(degradation.apply(wide, np.random.default_rng(number)), rounded)
            inner = slice(margin, -margin or None)
            self.pairs.append((degraded[inner, inner], wide[inner, inner]))
        given = [score_outputs(low.transpose(2, 0, 1)[None], high)[0] for low, high in self.pairs]
        self.psnr_input = float(np.mean(given))

    def __call__(self, network: nn.Module) -> dict[str, float]:
        rows = []
        for low, high in self.pairs:
            outputs = _outputs(network, low)
            rows.append(score_outputs(outputs.reshape(-1, *outputs.shape[-3:]).numpy(), high))
        scores = output_scores(np.stack(rows))
        figures = {"psnr": scores.best_single, "psnr_input": self.psnr_input}
        if len(scores.single) > 1:
            figures |= {"psnr_best": scores.best_overall} | {f"won_{i}": float(wins) for i, wins in enumerate(scores.wins)}
        return figures


def _outputs(network: nn.Module, low: np.ndarray) -> torch.Tensor:
    """What a network makes of one picture (h, w, 3) in [0, 1]: (1, ..., 3, H, W) on the CPU, not clamped."""
    x = torch.from_numpy(np.ascontiguousarray(low.transpose(2, 0, 1)))[None].to(next(network.parameters()).device)
    with torch.inference_mode():
        return (network.result(x) if isinstance(network, RestorationNetwork) else network(x)).cpu()


def centre(photo: np.ndarray, crop: int) -> np.ndarray:
    """The middle (h, w, C) of a photograph (H, W, C), at most `crop` pixels along each side; a view."""
    top, left = ((side - min(side, crop)) // 2 for side in photo.shape[:2])
    return photo[top : top + crop, left : left + crop]


def read_photos(files: Sequence[Path], scales: Sequence[float] = (1.0,)) -> list[np.ndarray]:
    """Decode photographs to (H, W, 3) uint8, each once a scale.

    Raises:
        InputError: One cannot be read, or has more than 8 bits.
    """
    photos = []
    for file in files:
        colour = read_picture(file).colour
        if colour.dtype != np.uint8:
            raise InputError(f"{file.name} is a {colour.dtype} picture; training takes 8 bits.", hint="Convert or remove it.")
        colour = np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))
        photos += [colour if s == 1.0 else imresize(colour, s, "uint8") for s in scales]
    return photos
