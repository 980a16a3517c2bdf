"""The options that the commands for pictures share, as typer reads them. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hybrid.batch.options import Address, Engine, RetryFailed, Threads, Workers
from restore.tasks import BEST_IN_WORDS

__all__ = ["Address", "Engine", "RetryFailed", "Threads", "Workers"]  # of every command that takes many inputs

FormatName = Literal["png", "jpeg", "tiff", "webp", "avif"]
PrecisionName = Literal["auto", "float32", "bf16", "fp16"]

Inputs = Annotated[list[str], typer.Argument(help="Pictures, folders (searched recursively) or quoted globs.")]
Weights = Annotated[Path | None, typer.Option(help="A checkpoint file; takes the place of --model.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File for one input, folder for many.")]
Format = Annotated[FormatName | None, typer.Option(help="Format of the outputs. Default: the input's.")]
Quality = Annotated[int, typer.Option(help="Of JPEG, WebP and AVIF, 1 to 100.")]
Lossless = Annotated[bool, typer.Option("--lossless", help="Lossless WebP or AVIF.")]
Deidentify = Annotated[
    bool,
    typer.Option(
        "--deidentify",
        help="Leave out EXIF, XMP, IPTC and the names in colour profiles, which may tell persons, places and devices. The record "
        "says what was there.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")]
Tile = Annotated[str, typer.Option(help="auto, off, or the largest tile edge in input pixels.")]
Memory = Annotated[str | None, typer.Option(help="Most memory the process may take, such as 2GB.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Accept pictures of up to this many pixels.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[
    PrecisionName,
    typer.Option(help="What the network computes in; auto: bf16 where a check on one tile finds it near and faster."),
]
Ensemble = Annotated[bool, typer.Option("--ensemble", help="Average over eight flips and turns: eight times as long.")]
Plan = Annotated[bool, typer.Option("--plan", help="Print tiles, memory and time, and write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

Outputs = Annotated[
    int,
    typer.Option(
        min=0,
        help="Of networks with several outputs: also save this many of them, the best ones, as NAME_3.png for output 3 and so "
        "on. Those of single heads come before averages of two.",
    ),
]
Select = Annotated[
    str,
    typer.Option(
        help=f"Of networks with several outputs, which is the result: best ({BEST_IN_WORDS}), "
        "mean (of the heads: better in PSNR where measured, and softer), or the number of an output."
    ),
]
Uncertainty = Annotated[
    Path | None,
    typer.Option(
        help="Of networks with several outputs: write a 16-bit gray PNG, or a folder of them, of where the heads differ. "
        "Black: they agree; brighter: a larger standard deviation. The record says for what value white stands."
    ),
]
