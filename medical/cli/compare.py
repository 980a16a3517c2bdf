"""The command `medical compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders that `medical evaluate` wrote, on the same cases.")],
    run: Annotated[
        list[Path] | None, typer.Option(help="Folder of `medical train`, for time and learning curves. Repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for systems.md, systems.csv, curves.png.")] = None,
) -> None:
    """Put several models, evaluated on the same cases, into one table.

    Research use, not a medical device.
    """
    from medical.evaluation.system_table import read_systems, to_markdown, write_table

    systems = read_systems(evaluations, run or ())
    typer.echo(to_markdown(systems), nl=False)
    if output is not None:
        for path in write_table(systems, output):
            typer.echo(str(path))
