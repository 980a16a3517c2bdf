"""The command `restore`. Torch is imported by what runs, not here, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from restore.cli_bench import bench
from restore.cli_compare import compare
from restore.cli_interpolate import interpolate
from restore.cli_models import models
from restore.cli_train import train

app = typer.Typer(
    name="restore",
    help="Restore pictures with published hybrid convolution-attention networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models.command()(interpolate)
app.add_typer(models, name="models")
app.command()(bench)
app.command()(compare)
app.command()(train)

Format = Literal["png", "jpeg", "tiff", "webp", "avif"]
PrecisionName = Literal["auto", "float32", "bf16", "fp16"]


@app.command()
def sr(
    inputs: Annotated[list[str], typer.Argument(help="Pictures, folders (searched recursively) or quoted globs.")],
    model: Annotated[
        str, typer.Option(help="A name from `restore models list`, or auto: the best one that is here and quick enough.")
    ] = "auto",
    scale: Annotated[
        float | None, typer.Option(help="Enlargement, any number. One that the model lacks is reached by a resize. Default 4.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Final size in pixels in place of --scale: 3840x2160, or 3840x or x2160 to keep the ratio.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file; takes the place of --model.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for one input, folder for many.")] = None,
    format: Annotated[Format | None, typer.Option(help="Format of the outputs. Default: the input's.")] = None,
    quality: Annotated[int, typer.Option(help="Of JPEG, WebP and AVIF, 1 to 100.")] = 95,
    lossless: Annotated[bool, typer.Option("--lossless", help="Lossless WebP or AVIF.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")] = False,
    tile: Annotated[str, typer.Option(help="auto, off, or the largest tile edge in input pixels.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="Most memory the process may take, such as 2GB.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Accept pictures of up to this many pixels.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[PrecisionName, typer.Option(help="What the network computes in.")] = "auto",
    ensemble: Annotated[
        bool,
        typer.Option("--ensemble", help="Average over eight flips and turns: eight times as long."),
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print tiles, memory and time, and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Enlarge pictures: colour depth, alpha, profile and metadata stay as they are."""
    from restore.cli_sr import Request, run
    from restore.final_size import asked_size

    network_scale, final = asked_size(scale, size)
    run(
        Request(
            inputs=tuple(inputs),
            source=weights if weights is not None else model,
            scale=network_scale if network_scale is not None or weights is not None or final is not None else 4,
            final=final,
            output=output,
            format=format,
            quality=quality,
            lossless=lossless,
            overwrite=overwrite,
            tile=tile,
            memory=memory,
            max_pixels=max_pixels,
            device=device,
            precision=precision,
            ensemble=ensemble,
            plan_only=plan,
            json=json,
            quiet=quiet,
        )
    )


@app.command()
def doctor() -> None:
    """Print versions, devices, instruction sets, weights and write rights, ready to paste into a report."""
    from restore.doctor import report

    typer.echo(report())
