"""Benchmarks of restoration at the picture's own size: deblurring, denoising, removal of JPEG's traces.

The set's description says how its degraded pictures come about and how results are scored (`data_specs`
`RestorationSpec`). Pictures are ``(H, W, 1 or 3)`` in RGB order; what methods take and return is float32 with 1 as white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs import Checked, FoundRestoration, RestorationItem, RestorationSpec, check_files, find_restoration
from data_specs.restoration_schema import Blurred, BoxLayout, Compressed, Noise, Stored
from hybrid.errors import InputError, OutputError, RequestError
from restore.evaluation import mat as evaluation_mat
from restore.evaluation.alignment import align, masked_scores, require_opencv
from restore.evaluation.degraded import BenchmarkKernel, blurred, compressed, noisy, read_kernels
from restore.evaluation.engine import BenchmarkPlan, ImageScore, Method, Picture, PublishedScore, TestSet, as_rgb, check_names
from restore.evaluation.files import read_8_bits
from restore.evaluation.metrics import psnr, rgb_to_y, ssim
from restore.evaluation.metrics_restoration import psnr_b, ssim_3d
from restore.images.resize import round_to_uint8

BASES = {"deblurring": "blurred", "denoising": "noisy", "jpeg": "JPEG"}
"""What the degraded picture of a task is called."""
LEVELS = {Noise: "sigma", Compressed: "quality"}


@dataclass(frozen=True)
class RestorationCase:
    """One test picture, and what a method may be told of it.

    Attributes:
        reference: ``(H, W, C)`` uint8; None where the authors keep it.
        given: ``(H, W, C)`` float32, the degraded picture. Noise that was added is neither clipped nor rounded.
        sigma: Standard deviation of its noise in [0, 1], where it is known.
        kernel: (size, size) float64, of the blur in linear light, where it is known.
        quality: Of the JPEG file.
    """

    reference: Picture | None
    given: NDArray[np.float32]
    sigma: float | None = None
    kernel: NDArray[np.float64] | None = None
    quality: int | None = None


@dataclass(frozen=True)
class RestorationTest(TestSet):
    """A data set at one level, whose files are found.

    Attributes:
        number: Sigma or quality; None where the set has no such choice.
        kernels: Of a blur that is made.
    """

    spec: RestorationSpec
    found: FoundRestoration
    checked: Checked | None
    number: float | None
    kernels: tuple[BenchmarkKernel, ...] = ()

    @property
    def base(self) -> str:  # type: ignore[override]
        """Title of what the sheet shows as the starting point, by the task."""
        return BASES[self.spec.task]

    @property
    def base_method(self) -> str:  # type: ignore[override]
        """The method that returns its input."""
        return self.base.lower()

    @property
    def level(self) -> str:
        return "" if self.number is None else f"{LEVELS[type(self.spec.degradation)]} {self.number:g}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.found.items)

    @property
    def scored(self) -> bool:
        return self.spec.scored

    def read(self, index: int) -> RestorationCase:
        item, rule = self.found.items[index], self.spec.degradation
        if isinstance(rule, Stored):
            return self._stored(item)
        assert item.clean is not None
        clean = read_8_bits(item.clean)
        if self.spec.gray and clean.shape[2] == 3:
            clean = _one_plane(clean)
        if isinstance(rule, Noise):
            assert self.number is not None
            return RestorationCase(clean, noisy(clean, self.number, rule.seed), sigma=self.number / 255)
        if isinstance(rule, Compressed):
            assert self.number is not None
            if rule.colour == "luma" and clean.shape[2] == 3:
                clean = rgb_to_y(clean, rounded=True)[..., None].astype(np.uint8)
            file = compressed(clean, int(self.number), rule.chroma)
            return RestorationCase(clean, _unit(file), quality=int(self.number))
        kernel = self.kernels[index % len(self.kernels)]
        if min(clean.shape[:2]) <= len(kernel.weights) // 2:
            raise InputError(f"{item.clean} is smaller than the blur kernels.", hint="Take larger pictures.")
        given = _unit(blurred(clean, kernel, rule.sigma, rule.seed + index))
        return RestorationCase(clean, given, sigma=rule.sigma / 255, kernel=kernel.array)

    def given(self, case: RestorationCase, method: Method) -> Any:
        return case if method.takes == "case" else case.given

    def score(self, name: str, result: np.ndarray, case: RestorationCase, method: Method) -> ImageScore:
        if result.dtype != np.float32 or result.shape != case.given.shape or not np.isfinite(result).all():
            raise OutputError(
                f"{method.name} returned {result.dtype} of shape {result.shape} for {name}; finite float32 "
                f"{case.given.shape} is needed."
            )
        protocol = self.spec.protocol
        grey = case.given.shape[2] == 1
        if case.reference is None:
            return ImageScore(name, grey=grey)
        reference: np.ndarray = case.reference
        values: np.ndarray = self.as_file(result) if protocol.values == "8-bit" else np.clip(result, 0, 1) * np.float64(255)
        if protocol.align == "ecc":
            values, reference, mask = align(values, reference)
            return ImageScore(name, *masked_scores(values, reference, mask), grey=grey)
        border, channel = protocol.border, protocol.channel
        likeness = ssim_3d(values, reference, border=border) if protocol.ssim == "3-d" else None
        return ImageScore(
            name,
            psnr(values, reference, border=border, channel=channel),
            ssim(values, reference, border=border, channel=channel) if likeness is None else likeness,
            psnr_b=psnr_b(values, reference) if protocol.psnr_b else None,
            grey=grey,
        )

    def as_file(self, result: np.ndarray) -> Picture:
        return round_to_uint8(np.asarray(result, np.float64) * 255)

    def keep(self, output: Path, method: Method, index: int, case: RestorationCase, result: np.ndarray) -> None:
        super().keep(output, method, index, case, result)
        if isinstance(self.found.layout, BoxLayout):
            values = np.clip(result, 0, 1).astype(np.float32)
            evaluation_mat.add_to_submission(output / self.folder / f"{method.name}-submission", self.names, index, values)

    def shown(self, case: RestorationCase) -> tuple[Picture, Picture]:
        given = as_rgb(self.as_file(case.given))
        return (given if case.reference is None else as_rgb(case.reference)), given

    def published(self, method: str | None) -> PublishedScore | None:
        row = self.spec.published_for(method, self.number)
        return None if row is None else PublishedScore(row.method, row.psnr, row.ssim, row.source, row.psnr_b)

    def facts(self, scores: Sequence[ImageScore]) -> list[str]:
        protocol = self.spec.protocol
        channel = "unrounded BT.601 luma (16 to 235), gray pictures as they are" if protocol.channel == "y" else "all channels"
        values = "rounded to 8 bits" if protocol.values == "8-bit" else "not rounded"
        window = "over rows, columns and colours (3-D)" if protocol.ssim == "3-d" else "of each channel, the mean of them"
        facts = [f"Files: {len(self.names)} pictures, layout: {self.found.layout.name}.", self._rule()]
        if not self.scored:
            facts.append("No reference: results are written for the authors' server, clipped, not rounded.")
        else:
            facts.append(f"Scored on {channel}, results clipped and {values}, without {protocol.border} pixels on each side.")
            facts.append(f"SSIM: Gaussian window of 11, {window}. Means over the pictures.")
        if protocol.psnr_b:
            facts.append("PSNR-B: the block edges of the result raise its error; no published software is behind our numbers.")
        return facts + list(self.spec.notes)

    def described(self) -> dict[str, Any]:
        rule = self.spec.degradation.model_dump(mode="json")
        if "kernels" in rule:
            rule["kernels"] = Path(rule["kernels"]).name
        return {
            "name": self.spec.name,
            "title": self.spec.title,
            "task": self.spec.task,
            "level": self.number,
            "degradation": rule,
            "protocol": self.spec.protocol.model_dump(),
            "layout": self.found.layout.model_dump(),
        }

    def _rule(self) -> str:
        """How the degraded pictures come about."""
        rule = self.spec.degradation
        if isinstance(rule, Noise):
            return (
                f"Noise: numpy.random.RandomState({rule.seed}).normal(0, {self.number:g} / 255), seeded anew for each picture; "
                "methods get it neither clipped nor rounded, row noisy is clipped and rounded like every result."
            )
        if isinstance(rule, Compressed):
            what = "the luma plane as a gray picture" if rule.colour == "luma" else f"colour, chroma {rule.chroma}"
            return f"JPEG: libjpeg, quality {self.number:g}, {what}."
        if isinstance(rule, Blurred):
            return (
                f"Blur: {len(self.kernels)} kernels in turn, in linear light; noise of sigma {rule.sigma:g} / 255 on the sRGB "
                "values, 8 bits."
            )
        return "Degraded pictures: as stored."

    def _stored(self, item: RestorationItem) -> RestorationCase:
        if isinstance(self.found.layout, BoxLayout):
            layout, folder = self.found.layout, self.found.folder
            assert item.degraded is not None and item.block is not None
            return RestorationCase(
                None, evaluation_mat.read_box(item.degraded, layout.variable, folder / layout.boxes, *item.block)
            )
        assert item.clean is not None and item.degraded is not None
        if item.block is not None:
            clean, degraded = (evaluation_mat.read_block(path, item.block) for path in (item.clean, item.degraded))
        else:
            clean, degraded = read_8_bits(item.clean), read_8_bits(item.degraded)
        if clean.shape != degraded.shape:
            raise InputError(
                f"{item.clean} has the shape {clean.shape} and {item.degraded} {degraded.shape}.",
                hint="Check that both are the same picture.",
            )
        return RestorationCase(clean, _unit(degraded))


def plan_restoration(
    specs: Sequence[RestorationSpec],
    methods: Sequence[Method],
    *,
    levels: Sequence[float] = (),
    data_dir: str | Path | None = None,
) -> BenchmarkPlan:
    """Find all pictures before anything is run.

    Args:
        specs: Data sets of one task, see `data_specs.load_spec` and `data_specs.folder_restoration_spec`.
        methods: What to compare, see `restore.evaluation.baselines` and `restore.evaluation.networks`.
        levels: Sigmas or qualities; none for those of each set.
        data_dir: Folder that holds the folders of the data sets; not needed for sets that bring their pictures.

    Raises:
        RequestError: Nothing to do, a name given twice, or a level for a set that has none.
        InputError: Pictures are missing; the message lists what was looked for.
        ResourceError: A set's protocol needs a package that is not installed.
    """
    check_names([spec.name for spec in specs], methods)
    if len(set(levels)) < len(levels):
        raise RequestError("A sigma or quality is given twice.", hint="Give each once.")
    sets: list[TestSet] = []
    for spec in specs:
        if levels and spec.levels == (None,):
            raise RequestError(f"{spec.title} has no levels.", hint="Leave out --sigma and --quality.")
        if spec.protocol.align == "ecc":
            require_opencv(spec.title)
        found = find_restoration(spec, data_dir)
        checked = check_files(spec, [path for item in found.items for path in item.files])
        rule = spec.degradation
        kernels = read_kernels(rule.kernels) if isinstance(rule, Blurred) else ()
        sets += [RestorationTest(spec, found, checked, level, kernels) for level in levels or spec.levels]
    return BenchmarkPlan(tuple(sets), tuple(methods))


def _unit(picture: Picture) -> NDArray[np.float32]:
    return picture.astype(np.float32) / np.float32(255)


def _one_plane(picture: Picture) -> Picture:
    """A gray picture that is stored as colour; another one as its luma."""
    if (picture == picture[..., :1]).all():
        return np.ascontiguousarray(picture[..., :1])
    return rgb_to_y(picture, rounded=True)[..., None].astype(np.uint8)
