"""Several models on one picture or region, side by side: `restore compare`.

Each model gets the same pixels: the region, and around it as much of the picture as a tile would share with its
neighbours, which is cut off again. A model that cannot run is named with the reason; nothing ever runs in its place.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import HybridError, InputError, RequestError, ResourceError, WeightsError
from hybrid.weights.find import Resolved, Store, resolve
from restore.evaluation.metrics import SSIM_WINDOW, psnr, ssim
from restore.images import Picture, from_unit, to_unit
from restore.images.resize import imresize
from restore.loading import build, catalogue
from restore.models.base import RestorationNetwork
from restore.restoration.run import RunSettings, restore_picture

BICUBIC = "bicubic"
ABSENT = "weights not here (see `restore models list`)"
BICUBIC_CONTEXT = 4  # input pixels that the cubic kernel reaches over, rounded up


@dataclass(frozen=True)
class Region:
    """A part of the input, in its pixels from the top left corner."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read ``x,y,w,h``.

        Raises:
            RequestError: It is not of that form, or holds no pixel.

        >>> Region.parse("10,20,64,48")
        Region(x=10, y=20, width=64, height=48)
        """
        if not re.fullmatch(r"\d{1,9}(,\d{1,9}){3}", text.replace(" ", ""), re.ASCII):
            raise RequestError(
                f"--region {text} is not understood.", hint="Give x,y,width,height in pixels, such as 10,20,64,48."
            )
        region = cls(*map(int, text.split(",")))
        if 0 in (region.width, region.height):
            raise RequestError(f"--region {text} holds no pixel.", hint="Give a width and a height of at least 1.")
        return region

    def grown(self, by: int, shape: tuple[int, ...]) -> Region:
        """With `by` pixels more on each side, as far as a picture (H, W, ...) has them."""
        left, top = max(0, self.x - by), max(0, self.y - by)
        right, bottom = min(shape[1], self.x + self.width + by), min(shape[0], self.y + self.height + by)
        return Region(left, top, right - left, bottom - top)

    def within(self, outer: Region) -> Region:
        """The same region in the coordinates of one around it."""
        return Region(self.x - outer.x, self.y - outer.y, self.width, self.height)

    def times(self, scale: int) -> Region:
        """The same region of the enlarged picture."""
        return Region(self.x * scale, self.y * scale, self.width * scale, self.height * scale)

    def cut(self, picture: Picture) -> Picture:
        """That part of a picture."""
        part = slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)
        alpha = None if picture.alpha is None else np.ascontiguousarray(picture.alpha[part])
        return Picture(np.ascontiguousarray(picture.colour[part]), alpha, picture.metadata)


@dataclass(frozen=True)
class Result:
    """What one method made of the region.

    Attributes:
        name: Name of the method.
        picture: The enlarged region, in the input's sample type.
        psnr, ssim: On Y of 8-bit RGB, `scale` pixels left out on each side; None without a reference (SSIM also where
            fewer than 11 x 11 pixels are left).
        seconds: Time of the run.
        weights, sha256: File name and hash of the weights; empty for bicubic.
    """

    name: str
    picture: Picture
    psnr: float | None
    ssim: float | None
    seconds: float
    weights: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Skipped:
    """A model that did not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Case:
    """What is compared: the picture, the part of it that is shown, the scale, and the true enlarged part if known."""

    picture: Picture
    region: Region
    scale: int
    reference: Picture | None = None


@dataclass(frozen=True)
class Comparison:
    """Results, bicubic first, and the models that did not run."""

    case: Case
    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...]


def plan_case(picture: Picture, scale: int, region: Region | None = None, reference: Picture | None = None) -> Case:
    """Check that region and reference fit the picture.

    Args:
        picture: The input.
        scale: Enlargement.
        region: Part to compare; None for the whole.
        reference: The whole picture at the larger size. A rim of less than `scale` pixels that it has more, right and
            bottom, is left out, as where the input was made from a picture cut to a multiple of the scale.

    Raises:
        RequestError: The region lies outside the picture.
        InputError: The reference has another size.
    """
    height, width = picture.colour.shape[:2]
    part = region or Region(0, 0, width, height)
    if part.x + part.width > width or part.y + part.height > height:
        raise RequestError(
            f"The region {part.x},{part.y},{part.width},{part.height} reaches beyond the picture of {width} x {height} pixels.",
            hint="Give x,y,width,height inside it.",
        )
    if reference is None:
        return Case(picture, part, scale)
    rows, columns = reference.colour.shape[:2]
    if not (0 <= rows - height * scale < scale and 0 <= columns - width * scale < scale):
        raise InputError(
            f"The reference has {columns} x {rows} pixels; {width} x {height} enlarged by {scale} has "
            f"{width * scale} x {height * scale}.",
            hint="Give the picture that the input was made from, or another --scale.",
        )
    return Case(picture, part, scale, part.times(scale).cut(reference))


def find_models(names: Sequence[str], scale: int) -> Iterator[tuple[str, Resolved | Skipped]]:
    """Find the weights of models, one after the other: each name with its file, or with the reason why it is skipped.

    Args:
        names: Names of the catalogue or checkpoint files; nothing for all of the catalogue that have the scale and
            whose weights are here. Only a model that is named is downloaded.
        scale: Enlargement.

    Raises:
        RequestError: There is no model of a name, or one is named twice.
    """
    known, store = catalogue(), Store.from_environment()
    asked = list(names) or [entry.name for entry in known if scale in entry.files]
    titles = [name.lower() if name.lower() in known else Path(name).stem for name in asked]
    if twice := sorted({title for title in (BICUBIC, *titles) if (BICUBIC, *titles).count(title) > 1}):
        raise RequestError(f"{twice[0]} is named twice.", hint=f"Name each model once; {BICUBIC} is always there.")
    for name, title in zip(asked, titles, strict=True):
        try:
            if not names and not weights_here(title, scale):
                yield title, Skipped(title, ABSENT)
                continue
            yield title, resolve(name, scale, known, store, allow_download=bool(names) and not store.offline)
        except (WeightsError, ResourceError) as error:
            yield title, Skipped(title, str(error))
        except RequestError as error:
            if title not in known:
                raise
            yield title, Skipped(title, str(error))  # the model is known, but not at this scale


def weights_here(name: str, scale: int) -> bool:
    """Whether a model of the catalogue is shipped or in the cache; a damaged file of the cache is an error."""
    entry = catalogue().entry(name)
    return entry.file(scale)[1].shipped is not None or Store.from_environment().find(entry, scale) is not None


def run_bicubic(case: Case) -> Result:
    """MATLAB's bicubic enlargement; of 8-bit pictures in 8 bits, as in the benchmarks."""
    started = time.perf_counter()
    outer = case.region.grown(BICUBIC_CONTEXT, case.picture.colour.shape)
    part = outer.cut(case.picture)
    colour = _bicubic(part.colour, case.scale)
    alpha = None if part.alpha is None else _bicubic(part.alpha, case.scale)
    return _result(BICUBIC, Picture(colour, alpha, part.metadata), outer, case, time.perf_counter() - started)


def run_model(
    name: str,
    found: Resolved,
    case: Case,
    *,
    device: str = "auto",
    precision: str = "float32",
) -> Result | Skipped:
    """Run one model on the case; a model that fails for a reason of its own is skipped."""
    try:
        network = build(found, scale=case.scale, device=device, precision=precision)
        return _run(name, network, case)
    except HybridError as error:
        return Skipped(name, str(error))


def compare(
    case: Case,
    models: Iterable[tuple[str, Resolved | Skipped]],
    *,
    device: str = "auto",
    precision: str = "float32",
    on_model: Callable[[str], None] | None = None,
) -> Comparison:
    """Run bicubic and then each model of `find_models`, one at a time; `on_model` is called with the name of each that runs."""
    results, skipped = [run_bicubic(case)], []
    for name, found in models:
        if on_model is not None and not isinstance(found, Skipped):
            on_model(name)
        made = found if isinstance(found, Skipped) else run_model(name, found, case, device=device, precision=precision)
        if isinstance(made, Skipped):
            skipped.append(made)
        else:
            results.append(made)
    return Comparison(case, tuple(results), tuple(skipped))


def rgb8(picture: Picture) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a picture as it is shown and scored. Gray is repeated, alpha laid on white."""
    colour = to_unit(picture.colour)
    if picture.alpha is not None:
        alpha = to_unit(picture.alpha)[..., None]
        colour = colour * alpha + (1 - alpha)
    return from_unit(np.repeat(colour, 3 // colour.shape[2], axis=2), "uint8")


def _run(name: str, network: RestorationNetwork, case: Case) -> Result:
    started = time.perf_counter()
    outer = case.region.grown(network.card.overlap, case.picture.colour.shape)
    large = restore_picture(network, outer.cut(case.picture), RunSettings())
    assert network.source is not None
    facts = (network.source.file, network.source.sha256)
    return _result(name, large, outer, case, time.perf_counter() - started, *facts)


def _result(name: str, large: Picture, outer: Region, case: Case, seconds: float, weights: str = "", sha256: str = "") -> Result:
    shown = case.region.within(outer).times(case.scale).cut(large)
    fidelity, similarity = (None, None) if case.reference is None else _scores(rgb8(shown), rgb8(case.reference), case.scale)
    return Result(name, shown, fidelity, similarity, seconds, weights, sha256)


def _scores(shown: NDArray[np.uint8], reference: NDArray[np.uint8], border: int) -> tuple[float | None, float | None]:
    inner = min(shown.shape[:2]) - 2 * border
    fidelity = psnr(shown, reference, border=border) if inner > 0 else None
    return fidelity, ssim(shown, reference, border=border) if inner >= SSIM_WINDOW else None


def _bicubic(plane: np.ndarray, scale: int) -> np.ndarray:
    if plane.dtype == np.uint8:
        return imresize(plane, scale, "uint8")
    return from_unit(imresize(to_unit(plane), scale), plane.dtype)
