"""The command `restore train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a shipped recipe such as hat-compact-x4 or denoise-compact, or a YAML file.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of photographs, searched recursively.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for log, checkpoints, weights and record.")],
    start: Annotated[
        str | None, typer.Option("--start-from", help="Begin with these weights, a name or a file, in place of the recipe's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Other number of steps than the recipe's.")] = None,
    devices: Annotated[int, typer.Option(help="Processes on this machine, one device each; leave it out under torchrun.")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a network by a recipe; a stopped training goes on from its last checkpoint in the output folder.

    `restore train compare` trains one network with several mixers and compares them; it has options of its own.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    from hybrid.training.processes import is_first_process
    from restore.faces.training import FaceRecipe, load_face_recipe, run_faces
    from restore.training.record import write_result
    from restore.training.run import StartPart, load_recipe, run

    chosen = load_face_recipe(recipe) or load_recipe(recipe)
    if steps is not None:
        chosen = chosen.model_copy(update={"training": chosen.training.model_copy(update={"steps": steps})})
    if start is not None:
        chosen = chosen.model_copy(update={"start_from": StartPart(model=start)})
    columns = (*Progress.get_default_columns()[:2], TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not is_first_process()) as progress:
        task = progress.add_task(chosen.name, total=chosen.training.steps, figures="")

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            text = f"step {done}  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if k != "seconds" and "won_" not in k)
            progress.update(task, completed=done, total=total, figures=text)

        if isinstance(chosen, FaceRecipe):
            network, facts = run_faces(chosen, data, output, devices=devices, accelerator=accelerator, on_progress=show)
        else:
            network, facts = run(chosen, data, output, devices=devices, accelerator=accelerator, on_progress=show)
    for path in write_result(network, facts, output, chosen.name):
        typer.echo(str(path))
