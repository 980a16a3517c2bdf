"""Benchmarks of super-resolution methods by the protocol of the papers. Pictures are uint8 ``(H, W, 3)`` in RGB order.

The protocol, unless a set's description says otherwise: the high-resolution (HR) picture is cut to a multiple of the
scale s; the low-resolution (LR) picture is MATLAB's bicubic one, stored in 8 bits; the result is quantised to 8 bits;
s pixels are left out on each side; PSNR and SSIM are taken on unrounded BT.601 luma; the score of the set is the plain
mean over its pictures. Grey files are read as three equal channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_specs import Checked, FoundImages, ImagePair, SuperResolutionSpec, check_files, find_images
from hybrid.errors import InputError, OutputError
from restore.evaluation.engine import (
    BenchmarkPlan,
    ImageScore,
    Method,
    Picture,
    PublishedScore,
    TestSet,
    as_rgb,
    check_names,
)
from restore.evaluation.files import read_8_bits, write_png
from restore.evaluation.metrics import psnr, rgb_to_y, ssim
from restore.images.resize import downscale, imresize, mod_crop, round_to_uint8

BICUBIC = "bicubic"
BICUBIC_8BIT = "bicubic (stored LR)"


def bicubic(scale: int) -> Method:
    """The bicubic baseline as the papers print it.

    It works on the luma plane alone: uint8 luma (a grey file's own plane), shrunk and enlarged without rounding in
    between, rounded to uint8 at the end.
    """

    def run(luma: Picture) -> Picture:
        return round_to_uint8(imresize(imresize(luma, 1 / scale), scale))

    return Method(BICUBIC, run, published="bicubic", takes="luma")


def bicubic_8bit(scale: int) -> Method:
    """MATLAB's bicubic enlargement of the 8-bit LR picture, fed and scored as a network is."""
    return Method(BICUBIC_8BIT, lambda lr: imresize(lr, scale, "uint8"))


@dataclass(frozen=True)
class Case:
    """One test picture, ready to be scored.

    Attributes:
        hr: ``(h * s, w * s, 1 or 3)`` uint8.
        lr: ``(h, w, 1 or 3)`` uint8.
        cut: True if the stored HR picture was larger.
        made: True if the LR picture was made from the HR one.
    """

    hr: Picture
    lr: Picture
    cut: bool
    made: bool


@dataclass(frozen=True)
class SuperResolutionTest(TestSet):
    """A data set at one scale, whose files are found."""

    spec: SuperResolutionSpec
    found: FoundImages
    checked: Checked | None
    scale: int
    base = BICUBIC
    base_method = BICUBIC_8BIT

    @property
    def level(self) -> str:
        return f"x{self.scale}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(pair.name for pair in self.found.pairs)

    def read(self, index: int) -> Case:
        return read_case(self.found.pairs[index], self.spec, self.scale)

    def given(self, case: Case, method: Method) -> Picture:
        return self._reference(case) if method.takes == "luma" else as_rgb(case.lr)

    def score(self, name: str, result: np.ndarray, case: Case, method: Method) -> ImageScore:
        reference = self._reference(case) if method.takes == "luma" else as_rgb(case.hr)
        if result.dtype != np.uint8 or result.shape != reference.shape:
            raise OutputError(
                f"{method.name} returned {result.dtype} of shape {result.shape} for {name}; uint8 {reference.shape} is needed."
            )
        border, channel = self.spec.protocol.border_at(self.scale), self.spec.protocol.channel
        return ImageScore(
            name,
            psnr(result, reference, border=border, channel=channel),
            ssim(result, reference, border=border, channel=channel),
            grey=case.hr.shape[2] == 1,
            cut=case.cut,
        )

    def as_file(self, result: np.ndarray) -> Picture:
        return result

    def keep(self, output: Path, method: Method, index: int, case: Case, result: np.ndarray) -> None:
        super().keep(output, method, index, case, result)
        if case.made:
            write_png(self.path(output, "LR", self.names[index]), case.lr)

    def shown(self, case: Case) -> tuple[Picture, Picture]:
        return as_rgb(case.hr), imresize(as_rgb(case.lr), self.scale, "uint8")

    def published(self, method: str | None) -> PublishedScore | None:
        row = self.spec.published_for(method, self.scale)
        return None if row is None else PublishedScore(row.method, row.psnr, row.ssim, row.source)

    def facts(self, scores: Sequence[ImageScore]) -> list[str]:
        protocol, scale = self.spec.protocol, self.scale
        made = any(pair.lr is None for pair in self.found.pairs)
        cut = f"{sum(score.cut for score in scores)} of {len(scores)} pictures cut"
        grey = sum(score.grey for score in scores)
        facts = [
            f"Files: {len(self.names)} pictures, layout: {self.found.layout.name}.",
            f"LR: made from HR by MATLAB bicubic, mode {protocol.lr}." if made else "LR: as stored.",
            f"HR: {cut}, to a multiple of {math.lcm(protocol.crop_at(scale), scale)}."
            if made
            else f"HR: {cut} to LR size times scale.",
            f"Scored on {'unrounded BT.601 luma (16 to 235)' if protocol.channel == 'y' else 'RGB'} without "
            f"{protocol.border_at(scale)} pixels on each side; plain mean over the pictures.",
            "Row bicubic: uint8 luma plane alone, shrunk and enlarged in double precision, rounded once.",
        ]
        if grey:
            facts.append(
                f"{grey} grey: networks get three equal channels, 1.32 dB above the plane itself; row bicubic the plane."
            )
        return facts + list(self.spec.notes)

    def described(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "title": self.spec.title,
            "scale": self.scale,
            "protocol": self.spec.protocol.model_dump(),
            "layout": self.found.layout.model_dump(),
        }

    @staticmethod
    def _reference(case: Case) -> Picture:
        """The luma plane that a classical method starts from and is compared with."""
        return case.hr[..., 0] if case.hr.shape[2] == 1 else rgb_to_y(case.hr, rounded=True).astype(np.uint8)


def plan_super_resolution(
    specs: Sequence[SuperResolutionSpec], methods: Sequence[Method], *, scale: int, data_dir: str | Path | None = None
) -> BenchmarkPlan:
    """Find all pictures before anything is run.

    Args:
        specs: Data sets, see `data_specs.load_spec` and `data_specs.folder_spec`.
        methods: What to compare, see `bicubic`, `bicubic_8bit` and `Method`.
        scale: Scale of the benchmark.
        data_dir: Folder that holds the folders of the data sets; not needed for sets that bring their pictures.

    Raises:
        RequestError: Nothing to do, a name given twice, or a scale that a set lacks.
        InputError: Pictures are missing; the message lists what was looked for.
    """
    check_names([spec.name for spec in specs], methods, reserved="lr")  # the folder of LR pictures
    sets = []
    for spec in specs:
        found = find_images(spec, data_dir, scale)
        sets.append(SuperResolutionTest(spec, found, check_files(spec, found), scale))
    return BenchmarkPlan(tuple(sets), tuple(methods))


def read_case(pair: ImagePair, spec: SuperResolutionSpec, scale: int) -> Case:
    """Read one test picture and bring its two sides to one size.

    A stored LR picture decides the size: the HR picture is cut to (LR height * s, LR width * s) at top left. Without
    one, the HR picture is mod-cropped and shrunk as the set's protocol says.

    Raises:
        InputError: A file cannot be read, has more than 8 bits, or the two sizes do not belong together.
    """
    stored = read_8_bits(pair.hr)
    crop = math.lcm(spec.protocol.crop_at(scale), scale)
    if pair.lr is None:
        hr = mod_crop(stored, crop)
        return Case(hr, downscale(hr, scale, spec.protocol.lr), hr.shape != stored.shape, made=True)
    lr = read_8_bits(pair.lr)
    height, width = lr.shape[0] * scale, lr.shape[1] * scale
    surplus = stored.shape[0] - height, stored.shape[1] - width
    # EDSR's download keeps the HR uncut; the rest of a division is the most that may be over.
    if not all(0 <= each < crop for each in surplus):
        raise InputError(
            f"{pair.lr} has {lr.shape[1]} x {lr.shape[0]} pixels, which x{scale} does not bring to the "
            f"{stored.shape[1]} x {stored.shape[0]} pixels of {pair.hr}.",
            hint="Check that both belong to this scale.",
        )
    return Case(stored[:height, :width], lr, surplus != (0, 0), made=False)
