"""The command `restore export`, and what it shares with `medical export`. Torch is imported by what runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from hybrid.onnx_export import Exported

To = Annotated[Literal["onnx"], typer.Option(help="The format.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file. Default: named after the model, here.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the file's name.")]


def export(
    model: Annotated[str, typer.Argument(help="A name from `restore models list`, or a checkpoint file.")],
    to: To = "onnx",
    output: Output = None,
    scale: Annotated[int | None, typer.Option(help="Which scale, where the model has several.")] = None,
    size: Annotated[
        str | None,
        typer.Option(help="One size for the graph, WIDTHxHEIGHT in pixels. Default: any size, where the network can."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a network as an ONNX file for other programs, compared with PyTorch in ONNX Runtime.

    What cannot be exported, or gives other values than PyTorch, is not written.
    """
    from hybrid.devices import set_threads
    from hybrid.onnx_export import check_target
    from restore.cli.models import Pictures
    from restore.exporting import export_network

    pictures, sides = Pictures(), asked_sides(size, 2)
    name = Path(model).stem if scale is None else f"{Path(model).stem}-x{scale}"
    target = output or Path(f"{name}.onnx")
    check_target(target, overwrite=overwrite)
    set_threads()
    found = pictures.find(model, scale)
    network = pictures.build(found)
    say(f"{name}: tracing, and comparing with ONNX Runtime ...", quiet)
    fixed = (sides[1], sides[0]) if sides else None
    report(export_network(network, target, size=fixed, entry=found.entry, overwrite=overwrite), quiet)


def asked_sides(text: str | None, axes: int) -> tuple[int, ...] | None:
    """Read --size, as many numbers as axes.

    >>> asked_sides("64x48", 2), asked_sides(None, 3)
    ((64, 48), None)

    Raises:
        RequestError: It is no size.
    """
    from hybrid.errors import RequestError

    if text is None:
        return None
    if not re.fullmatch("x".join([r"[1-9]\d{0,5}"] * axes), text, re.ASCII):
        raise RequestError(f"--size {text} is not understood.", hint=f"Give {axes} numbers, such as {'x'.join(['96'] * axes)}.")
    return tuple(int(number) for number in text.split("x"))


def say(text: str, quiet: bool) -> None:
    """For people."""
    from hybrid.console import messages

    messages(quiet=quiet).print(text, style="dim")


def report(made: Exported, quiet: bool) -> None:
    """Tell of a file."""
    from hybrid.console import results
    from hybrid.memory import format_size

    sizes = ", ".join(" x ".join(map(str, size)) for size in made.differences)
    say(
        f"{format_size(made.bytes)}; takes {made.sides.describe()}; largest difference from PyTorch {made.largest:.1e} "
        f"(compared: {sizes})",
        quiet,
    )
    results().out(str(made.path))
