"""The command `restore compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from restore.evaluation.compare import Comparison, Result


def compare(
    input: Annotated[Path, typer.Argument(help="The picture to enlarge.", metavar="INPUT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet, a PNG file.")],
    reference: Annotated[Path | None, typer.Option(help="The true picture at the larger size; it adds PSNR and SSIM.")] = None,
    region: Annotated[str | None, typer.Option(help="x,y,width,height in pixels of the input. Default: all of it.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A name from `restore models list` or a checkpoint. Repeatable. Default: all whose weights are here."),
    ] = None,
    scale: Annotated[int, typer.Option(min=1, help="Enlargement.")] = 4,
    keep: Annotated[Path | None, typer.Option(help="Folder that takes each result as a picture of its own.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What networks compute in.")] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and skipped models only.")] = False,
) -> None:
    """Several models on one picture or region, as one labelled sheet.

    PSNR and SSIM are on Y, the outermost pixels (as many as the scale) left out. A model whose weights are absent is
    named as skipped; nothing runs in its place.
    """
    from hybrid.devices import choose_device, set_threads
    from hybrid.records import write_bytes
    from restore.evaluation.compare import Region, find_models, plan_case
    from restore.evaluation.compare import compare as run
    from restore.evaluation.compare_sheet import sheet
    from restore.images import check_output, read_picture

    sources = [input, *([reference] if reference else [])]
    part = Region.parse(region) if region else None
    picture, true = read_picture(input), read_picture(reference) if reference else None  # a wrong input is told first
    check_output(_png(output), sources, overwrite=overwrite)
    choose_device(device)  # one that is not there is an error, and no reason to skip every model
    set_threads()
    case = plan_case(picture, scale, part, true)
    models = list(find_models(model or [], scale))
    kept = _kept(keep, input, ["bicubic", *(name for name, _ in models)], scale, [*sources, output], overwrite)
    say = (lambda name: None) if quiet else (lambda name: typer.echo(f"{name} ...", err=True))
    comparison = run(case, models, device=device, precision=precision, on_model=say)
    write_bytes(output, sheet(comparison, input.name))
    for result in comparison.results if kept else ():
        _keep(kept[result.name], result)
    _tell(comparison, output, quiet)
    if model and comparison.skipped:
        raise typer.Exit(4)  # a model that was asked for by name is missing


def _png(output: Path) -> Path:
    from hybrid.errors import RequestError

    if output.suffix.lower() != ".png":
        raise RequestError(f"The sheet {output} is a PNG file.", hint=f"Name it {output.stem}.png.")
    return output


def _kept(folder: Path | None, input: Path, names: list[str], scale: int, others: list[Path], overwrite: bool) -> dict[str, Path]:
    """Where each result goes, checked before anything is run; nothing without --keep."""
    from hybrid.errors import OutputError, RequestError
    from restore.images import check_output

    if folder is None:
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}.", hint="Choose another --keep.") from error
    suffix = ".tif" if input.suffix.lower() in (".tif", ".tiff") else ".png"  # lossless, and the type of the samples stays
    paths = {name: folder / f"{input.stem}_{name}_x{scale}{suffix}" for name in names}
    for path in paths.values():
        if any(path.resolve() == other.resolve() for other in others):
            raise RequestError(f"A result would take the place of {path}.", hint="Choose another --keep.")
        check_output(path, overwrite=overwrite)
    return paths


def _keep(path: Path, result: Result) -> None:
    import json

    from restore.images import SaveOptions, write_picture

    facts = {"task": "compare", "title": result.name, "weights": result.weights, "weights_sha256": result.sha256}
    write_picture(path, result.picture, SaveOptions(description=json.dumps(facts)))


def _tell(comparison: Comparison, output: Path, quiet: bool) -> None:
    from restore.evaluation.compare_sheet import caption

    if not quiet:
        width = max(len(result.name) for result in comparison.results)
        for result in comparison.results:
            typer.echo(f"{result.name:<{width}}  {caption(result)}")
        typer.echo(str(output))
    for reason in dict.fromkeys(each.reason for each in comparison.skipped):
        names = ", ".join(each.name for each in comparison.skipped if each.reason == reason)
        typer.echo(f"skipped: {names}: {reason}", err=True)
