"""The command `medical pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe such as pretrain-hippocampus, or a YAML file.")],
    data: Annotated[
        Path,
        typer.Option(help="Folder of NIfTI files, searched with all below it; with a dataset.json, its split train alone."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for log, checkpoints, encoder and record.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Other number of steps than the recipe's.")] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine, one device each; leave it out under torchrun.")
    ] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and nothing told of the data.")] = False,
) -> None:
    """Train the encoder of a network on scans without labels, for `medical train --start-from` to begin with.

    A stopped training goes on from its last checkpoint in the output folder. Research use, not a medical device.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    from hybrid.training.processes import is_first_process
    from medical.training.pretraining import load_recipe, run, write_result

    chosen = load_recipe(recipe)
    if steps is not None:
        chosen = chosen.model_copy(update={"training": chosen.training.model_copy(update={"steps": steps})})
    shown = ("loss", "rotation_accuracy", "pair_accuracy", "in_painting")
    columns = (*Progress.get_default_columns()[:2], TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not is_first_process()) as progress:
        task = progress.add_task(chosen.name, total=chosen.training.steps, figures="")

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            text = f"step {done}  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if k in shown)
            progress.update(task, completed=done, total=total, figures=text)

        def tell(line: str) -> None:
            if not quiet and is_first_process():
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

        network, facts = run(chosen, data, output, devices=devices, accelerator=accelerator, on_start=tell, on_progress=show)
    for name, reason in facts["left_out"].items() if is_first_process() else ():
        typer.echo(f"Warning: {name} is left out: {reason}", err=True)
    for path in write_result(network, facts, output, chosen.name):
        typer.echo(str(path))
