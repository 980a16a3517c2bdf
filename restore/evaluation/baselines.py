"""Classical methods for the tables: the degraded picture itself, scikit-image's denoisers and deconvolutions, BM3D, and
re-application of JPEG. They are told what a user seldom knows: the strength of the noise, the kernel, the quality.

All take a case and give ``(H, W, C)`` floats in [0, 1], but for what noise and rounding leave outside.
Free numbers of a method were chosen once, on the pictures of `mini`, for the best mean PSNR; see each function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import RequestError
from restore.degradations.operations import linear_to_srgb, srgb_to_linear
from restore.evaluation.degraded import compressed
from restore.evaluation.engine import Method
from restore.evaluation.restoration import RestorationCase
from restore.images.resize import round_to_uint8

Values = NDArray[np.float32]
Run = Callable[[RestorationCase], np.ndarray]


@dataclass(frozen=True)
class Baseline:
    """A classical method.

    Attributes:
        run: From a case to ``(H, W, C)`` floats.
        needs: Module that it calls; None for none.
        install: What to type where that is missing.
        published: Key in the tables of published numbers.
        tasks: What it is for.
    """

    run: Run
    needs: str | None
    tasks: tuple[str, ...]
    install: str = "pip install scikit-image"
    published: str | None = None


def baseline(name: str, task: str) -> Method | None:
    """The row of a classical method, skipped where its package is missing; None if there is no such method.

    Raises:
        RequestError: The method is one for another task.
    """
    known = BASELINES.get(name.lower())
    if known is None:
        return None
    if task not in known.tasks:
        raise RequestError(f"{name} is for {' and '.join(known.tasks)}.", hint=f"For {task}: {', '.join(names(task))}.")
    if known.needs is not None:
        try:
            importlib.import_module(known.needs)
        except ImportError as error:
            package = known.needs.partition(".")[0]
            reason = f"{package} cannot be imported ({error}). To have this row: {known.install}"
            return Method(name.lower(), skipped=reason, published=known.published)

    def run(case: RestorationCase) -> Values:
        return np.asarray(known.run(case), np.float32).reshape(case.given.shape)

    return Method(name.lower(), run, takes="case", published=known.published, timed=known.run is not degraded)


def names(task: str) -> tuple[str, ...]:
    """The classical methods for a task.

    >>> names("jpeg")
    ('jpeg', 'shifted-jpeg')
    """
    return tuple(name for name, each in BASELINES.items() if task in each.tasks)


def degraded(case: RestorationCase) -> Values:
    """The degraded picture as it is; it is scored clipped and rounded, like every result."""
    return case.given


def nl_means(case: RestorationCase) -> np.ndarray:
    """Non-local means of colour patches, `skimage.restoration.denoise_nl_means`; h is 0.6, 0.5 and 0.4 sigma at 15, 25 and 50."""
    sigma = _sigma(case)
    h = float(np.interp(sigma * 255, (15, 25, 50), (0.6, 0.5, 0.4))) * sigma
    cleaned: np.ndarray = _restoration().denoise_nl_means(
        case.given, patch_size=5, patch_distance=8, h=h, sigma=sigma, channel_axis=-1
    )
    return cleaned


def tv_chambolle(case: RestorationCase) -> np.ndarray:
    """Total variation of all channels, `skimage.restoration.denoise_tv_chambolle`, weight 0.6, 0.65, 0.9 sigma at 15, 25, 50."""
    sigma = _sigma(case)
    weight = float(np.interp(sigma * 255, (15, 25, 50), (0.6, 0.65, 0.9))) * sigma
    cleaned: np.ndarray = _restoration().denoise_tv_chambolle(
        case.given.astype(np.float64), weight=weight, max_num_iter=100, channel_axis=-1
    )
    return cleaned


def wavelet(case: RestorationCase) -> np.ndarray:
    """BayesShrink of wavelets in YCbCr, `skimage.restoration.denoise_wavelet`, the mean over 3 x 3 shifts (cycle spinning)."""
    restoration, sigma = _restoration(), _sigma(case)
    colour = case.given.shape[2] == 3
    total = np.zeros(case.given.shape)
    for row in range(3):
        for column in range(3):
            moved = np.roll(case.given.astype(np.float64), (row, column), (0, 1))
            image = moved if colour else moved[..., 0]
            result = restoration.denoise_wavelet(
                image, sigma=sigma, wavelet="db2", convert2ycbcr=colour, channel_axis=-1 if colour else None, rescale_sigma=True
            )
            total += np.roll(np.reshape(result, moved.shape), (-row, -column), (0, 1))
    return total / 9


def bilateral(case: RestorationCase) -> np.ndarray:
    """Bilateral filter, `skimage.restoration.denoise_bilateral`: `BILATERAL` sigma in value, 1.5 pixels in place.

    It takes values above 0 alone, so that the noisy picture is clipped first.
    """
    clipped = np.clip(case.given, 0, 1).astype(np.float64)
    colour = clipped.shape[2] == 3
    image = clipped if colour else clipped[..., 0]
    cleaned: np.ndarray = _restoration().denoise_bilateral(
        image, win_size=7, sigma_color=BILATERAL * _sigma(case), sigma_spatial=1.5, channel_axis=-1 if colour else None
    )
    return cleaned


def bm3d(case: RestorationCase) -> np.ndarray:
    """BM3D, of colour pictures with the matches of luma, by its authors' package `bm3d`, whose licence is for non-commercial use.

    K. Dabov et al., TIP 2007, in the form of Y. Mäkinen et al., TIP 2020.
    """
    package = importlib.import_module("bm3d")
    given, colour = case.given.astype(np.float64), case.given.shape[2] == 3
    cleaned: np.ndarray = package.bm3d_rgb(given, _sigma(case)) if colour else package.bm3d(given[..., 0], _sigma(case))
    return cleaned


def richardson_lucy(case: RestorationCase) -> np.ndarray:
    """Richardson-Lucy in linear light with the true kernel, `skimage.restoration.richardson_lucy`, `LUCY` iterations."""
    lucy = _restoration().richardson_lucy
    return _deconvolved(
        case, lambda plane, kernel: lucy(plane.astype(np.float32), kernel.astype(np.float32), num_iter=LUCY, filter_epsilon=1e-4)
    )


def wiener(case: RestorationCase) -> np.ndarray:
    """Wiener deconvolution in linear light with the true kernel, `skimage.restoration.wiener`, balance `WIENER`."""
    filtered = _restoration().wiener
    return _deconvolved(case, lambda plane, kernel: filtered(plane, kernel, balance=WIENER))


def shifted_jpeg(case: RestorationCase) -> np.ndarray:
    """The mean over 8 x 8 shifts of the picture compressed once more at the same quality: blocks fall elsewhere each time.

    A. Nosratinia, "Enhancement of JPEG-compressed images by re-application of JPEG", Journal of VLSI Signal Processing 27, 2001.

    Raises:
        RequestError: The case does not say its quality.
    """
    if case.quality is None:
        raise RequestError("Re-application of JPEG needs the quality.", hint="Choose a set whose JPEG is made.")
    picture = round_to_uint8(np.asarray(case.given, np.float64) * 255)
    height, width = picture.shape[:2]
    total = np.zeros(picture.shape)
    for row in range(8):
        for column in range(8):
            moved = np.pad(picture, ((row, 8 - row), (column, 8 - column), (0, 0)), "symmetric")
            total += compressed(moved, case.quality, "4:4:4")[row : row + height, column : column + width]
    return total / (64 * 255)


BILATERAL = 0.6
LUCY = 50
WIENER = 1.0

BASELINES = {
    "noisy": Baseline(degraded, None, ("denoising",)),
    "bilateral": Baseline(bilateral, "skimage.restoration", ("denoising",)),
    "tv-chambolle": Baseline(tv_chambolle, "skimage.restoration", ("denoising",)),
    "wavelet": Baseline(wavelet, "pywt", ("denoising",), "pip install scikit-image PyWavelets"),
    "nl-means": Baseline(nl_means, "skimage.restoration", ("denoising",)),
    "bm3d": Baseline(bm3d, "bm3d", ("denoising",), "pip install bm3d (non-commercial use alone)", "bm3d"),
    "blurred": Baseline(degraded, None, ("deblurring",)),
    "richardson-lucy": Baseline(richardson_lucy, "skimage.restoration", ("deblurring",)),
    "wiener": Baseline(wiener, "skimage.restoration", ("deblurring",)),
    "jpeg": Baseline(degraded, None, ("jpeg",), published="jpeg"),
    "shifted-jpeg": Baseline(shifted_jpeg, None, ("jpeg",)),
}


def _deconvolved(case: RestorationCase, restore: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Each channel in linear light; the picture goes on beyond its edges as its mirror image, which is cut off again."""
    if case.kernel is None:
        raise RequestError("Deconvolution needs the true kernel.", hint="Choose a set whose blur is made: kodak24-blur or mini.")
    reach = 2 * len(case.kernel)
    planes = []
    for plane in np.moveaxis(srgb_to_linear(case.given), 2, 0):
        padded = np.pad(plane, reach, "symmetric")
        planes.append(np.clip(restore(padded, case.kernel), 0, 1)[reach:-reach, reach:-reach])
    return linear_to_srgb(np.stack(planes, -1))


def _sigma(case: RestorationCase) -> float:
    if case.sigma is None:
        raise RequestError("Classical denoisers need the strength of the noise.", hint="Choose a set whose noise is made.")
    return case.sigma


def _restoration() -> Any:
    return importlib.import_module("skimage.restoration")
