"""The command `restore bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from restore.evaluation import Benchmark, Method, Picture


def bench(
    sets: Annotated[list[str], typer.Argument(help="Data sets such as set5 or mini, YAML descriptions, or folders of pictures.")],
    model: Annotated[list[str], typer.Option(help="bicubic, a name from `restore models list`, or a checkpoint. Repeatable.")],
    scale: Annotated[int, typer.Option(help="Enlargement.")] = 4,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the folders of the data sets.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for tables, pictures and plots.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What networks compute in; the papers in float32.")
    ] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Score models on benchmark pictures by the papers' protocol, beside the published numbers."""
    from rich.console import Console
    from rich.progress import Progress

    from hybrid.devices import choose_device
    from restore.evaluation import plan_benchmark, run_benchmark
    from restore.evaluation_report import write_report

    choose_device(device)  # one that is not there is an error, and no reason to skip every row
    methods = [method for name in model for method in _methods(name, scale, device, precision)]
    plan = plan_benchmark([_spec(name) for name in sets], methods, scale=scale, data_dir=data)
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("pictures", total=plan.runs)
        result = run_benchmark(plan, output=output, on_progress=lambda done, _: progress.update(task, completed=done))
    _show(result)
    if output is not None:
        for path in write_report(result, output):
            typer.echo(str(path))
    raise typer.Exit(result.exit_code)


def _spec(name: str) -> Any:
    from data_specs import folder_spec, load_spec

    return folder_spec(name) if Path(name).is_dir() else load_spec(name)


def _methods(name: str, scale: int, device: str, precision: str) -> list[Method]:
    """The rows that one --model asks for. Absent weights make a skipped row: nothing stands in for a model in a table."""
    from hybrid.errors import RequestError, ResourceError, WeightsError
    from restore.evaluation import Method, bicubic, bicubic_8bit
    from restore.loading import catalogue, load_model

    if name == "bicubic":
        return [bicubic(scale), bicubic_8bit(scale)]
    known = name.lower() in catalogue()
    title = name.lower() if known else Path(name).stem
    try:
        network = load_model(name, scale=scale, device=device, precision=precision)
    except (WeightsError, ResourceError) as error:
        return [Method(title, skipped=str(error), published=title)]
    except RequestError as error:
        if known:  # the model is known, but not at this scale
            return [Method(title, skipped=str(error), published=title)]
        raise

    def run(low: Picture) -> Picture:
        from restore.images import Picture as WholePicture
        from restore.super_resolution import enlarge

        return enlarge(network, WholePicture(low)).colour

    assert network.source is not None
    facts = {
        "weights": network.source.file,
        "sha256": network.source.sha256,
        "device": str(next(network.parameters()).device),
        "precision": network.precision,
    }
    parameters = sum(p.numel() for p in network.parameters())
    return [Method(title, run, parameters=parameters, published=title, facts=facts)]


def _show(result: Benchmark) -> None:
    from rich.console import Console
    from rich.table import Table

    from restore.evaluation_report import HEADER, table_rows

    table = Table(*HEADER)
    for cells in table_rows(result):
        table.add_row(*cells)
    Console(soft_wrap=False, width=None if Console().is_terminal else 160).print(table)
    for row in result.rows:
        if row.method.skipped:
            typer.echo(f"{row.method.name}: skipped: {row.method.skipped}")
        for failure in row.failures:
            typer.echo(f"{row.method.name} on {failure.image}: {failure.error}", err=True)
