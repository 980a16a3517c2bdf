"""The command `restore models interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def interpolate(
    first: Annotated[Path, typer.Argument(help="A checkpoint file.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same configuration.")],
    weight: Annotated[float, typer.Option(help="Share of the second file, 0 to 1.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
) -> None:
    """Write the weights between two checkpoints: (1 - weight) FIRST + weight SECOND."""
    from restore.weight_interpolation import interpolate_files

    interpolate_files(first, second, output, weight, overwrite=overwrite)
    typer.echo(str(output))
