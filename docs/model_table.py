"""What loads, from where, under which licence, and how good it is: the tables of docs/models.md, from the catalogues.

    python docs/model_table.py         # writes the tables anew

A published number stands as the catalogue has it; its source is told by the data set's description (`data_specs/`) where that
has the number too. What was measured here is in `MEASURED`, each figure with the page whose table it is from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import data_specs
from data_specs import Published, PublishedRestoration, RestorationSpec, SuperResolutionSpec
from hybrid.weights.catalogue import Entry, WeightsFile, in_print
from medical.loading import catalogue as scan_models
from restore.loading import catalogue as picture_models

PAGE = Path(__file__).with_name("models.md")
BEGIN, END = "<!-- made by model_table.py -->", "<!-- end -->"

PARTS = {
    "Enlarging pictures": ("super-resolution",),
    "Sharpening": ("deblurring", "defocus"),
    "Denoising": ("denoising",),
    "JPEG, rain, light and colour": ("jpeg", "deraining", "enhancement"),
    "Faces": ("face",),
    "Networks that find faces or judge results": ("detection", "metric"),
}
"""Headings of the networks for pictures, with the tasks below them."""
SCANS, BEGINNINGS = "Scans", "To begin a training for scans with"

BENCHMARKS = {
    "brats21-fold0": "BraTS 2021, fold 0",
    "brats21-fold1": "BraTS 2021, fold 1",
    "brats21-fold2": "BraTS 2021, fold 2",
    "brats21-fold3": "BraTS 2021, fold 3",
    "brats21-fold4": "BraTS 2021, fold 4",
    "btcv": "BTCV",
    "cbsd68": "CBSD68",
    "dpdd": "DPDD",
    "fivek": "FiveK",
    "gopro": "GoPro",
    "imagenet-1k": "ImageNet",
    "lol": "LOL",
    "radimagenet": "RadImageNet",
    "realsr-x3": "RealSR x3",
    "realsr-x4": "RealSR x4",
    "reds-val-300": "REDS-val-300",
    "set5": "Set5",
    "set12": "Set12",
    "sidd": "SIDD",
    "test100": "Test100",
}
"""Data sets in print."""
UNCHECKED, MARK = re.compile(",? not checked against the print"), "†"
UNITS = {"dice": "% Dice", "accuracy": "% accuracy"}

SOURCES = {
    "cross_d_conv": "source not noted",
    "cswin_unet": "README of CSWin Transformer",
    "hat": "HAT paper, not checked against the print",
    "drct": "PSNR from the DRCT README, SSIM not checked against the print",
    "mirnet": "MIRNet paper, not checked against the print",
    "nafnet": "NAFNet README",
    "restormer": "Restormer paper, not checked against the print",
    "swin-unetr-brats21": "Swin UNETR README",
    "swin-unetr-btcv": "Swin UNETR README, windows that overlap by 0.5",
    "swin-unetr-btcv-bundle": "README of MONAI's bundle",
}
"""Whence a number is that no data set's description has, by the beginning of the model's name, or its family."""

MEASURED = {
    "denoise-compact": ("Kodak24 sigma 25 31.64 / 0.8687", "restoration_benchmarks.md#kodak24"),
    "deblur-compact": ("Kodak24 blurred 23.00 / 0.5828, input 22.58", "restoration_benchmarks.md#blur-on-kodak24"),
    "dejpeg-compact": ("Kodak24 quality 10 27.69 / 0.7807", "restoration_benchmarks.md#kodak24"),
    "face-compact": ("faces-synthetic 29.03 / 0.8190, input 26.35", "face_training.md#the-shipped-recipes"),
    "hippocampus": ("MSD Hippocampus, 40 scans, Dice 0.8851", "medical.md#evaluate"),
    "denoise-mr-compact": ("40 scans, noise of 6 % 28.38 / 0.9233, input 24.47", "medical_restoring.md#how-good-it-is"),
}
"""What the shipped networks reach that the catalogue has no number of: the figure, and where it is from."""
ENLARGING = "benchmarks.md"


def tables() -> str:
    """All tables, in Markdown."""
    pictures, scans = [*picture_models()], [*scan_models()]
    parts = [table(heading, [entry for entry in pictures if entry.task in tasks]) for heading, tasks in PARTS.items()]
    segmenting = [entry for entry in scans if entry.shipped or entry.protocol]
    parts.append(table(SCANS, segmenting))
    parts.append(table(BEGINNINGS, [entry for entry in scans if entry not in segmenting]))
    return "\n\n".join(parts)


def table(heading: str, entries: Iterable[Entry]) -> str:
    """One heading and a row for each model; those that ship first."""
    titles = ("name", "network", "parameters", "weights", "licence: weights; code", "published, by its authors", "measured here")
    rows = [row(entry) for entry in sorted(entries, key=lambda entry: not entry.shipped)]
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join([f"## {heading}", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def row(entry: Entry) -> tuple[str, ...]:
    """The cells of one model."""
    title = f"{entry.title} (`{entry.family}`)"
    licence = f"{entry.weights_licence}; {entry.code_licence}"
    told = "" if entry.shipped else published(entry)
    return f"`{entry.name}`", title, parameters(entry), origin(entry), licence, told, measured(entry)


def parameters(entry: Entry) -> str:
    """How many, over all scales; empty where it is not known."""
    counts = [file.parameters for file in entry.files.values() if file.parameters]
    return " to ".join(dict.fromkeys(_count(number) for number in (min(counts), max(counts)))) if counts else ""


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number / 10**6:.1f} M"


def origin(entry: Entry) -> str:
    """How each scale's file comes: shipped, from a direct address, or by hand from a page."""
    ways: dict[str, list[int]] = {}
    for scale, file in entry.files.items():
        ways.setdefault(_way(file), []).append(scale)
    if set(entry.files) == {1}:
        return next(iter(ways))
    return ", ".join(f"{way} ({', '.join(f'x{scale}' for scale in scales)})" for way, scales in ways.items())


def _way(file: WeightsFile) -> str:
    if file.shipped:
        return "shipped"
    return "direct address" if file.urls else f"[by hand]({file.page})"


def published(entry: Entry) -> str:
    """The first benchmark that its authors report, at the largest scale, and where the number is from."""
    scale, file = max(entry.files.items())
    if not file.published:
        return ""
    data, figures = next(iter(file.published.items()))
    told = UNCHECKED.sub(MARK, source(entry, data, scale, figures))
    return f"{in_print(BENCHMARKS[data], scale)} {_figures(figures)} ({told})"


def _figures(figures: dict[str, float]) -> str:
    """PSNR in dB and SSIM, or a share in per cent."""
    if "psnr" in figures:
        return f"{figures['psnr']:.2f}" + (f" / {figures['ssim']:.4f}".rstrip("0") if "ssim" in figures else "")
    name, value = next(iter(figures.items()))
    return f"{value:g} {UNITS[name]}"


def source(entry: Entry, data: str, scale: int, figures: dict[str, float]) -> str:
    """Where a published number is from: as the description of the data set has it, or by `SOURCES`."""
    for found in described(data):
        here = found.method == entry.name and getattr(found, "scale", scale) == scale
        if here and (found.psnr, found.ssim) == (round(figures["psnr"], 2), figures.get("ssim")):
            return str(found.source)
    keys = [key for key in SOURCES if entry.name.startswith(key)] or [entry.family]
    return SOURCES[max(keys, key=len)]


def described(data: str) -> Iterator[Published | PublishedRestoration]:
    """The published numbers of a data set for pictures, if it is described here."""
    if data in data_specs.available(SuperResolutionSpec):
        yield from data_specs.load_spec(data, SuperResolutionSpec).published
    if data in data_specs.available(RestorationSpec):
        yield from data_specs.load_spec(data, RestorationSpec).published


def measured(entry: Entry) -> str:
    """What the shipped network reaches; published ones could not be run."""
    if not entry.shipped:
        return "not run here"
    if entry.name in MEASURED:
        figure, page = MEASURED[entry.name]
        return f"[{figure}]({page})"
    scale, file = max(entry.files.items())
    score = file.published.get("set5")
    return f"[{in_print('Set5', scale)} {score['psnr']:.2f} / {score['ssim']:.4f}]({ENLARGING})" if score else ""


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n\n{tables()}\n\n{END}", page, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
