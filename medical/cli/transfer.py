"""The command `medical transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from medical.training.transfer import Report


def transfer(
    source: Annotated[str, typer.Argument(help="A checkpoint file, or a name from `medical models list`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    to: Annotated[Literal["2d", "3d"] | None, typer.Option(help="Slices or volumes. Default: what it is not yet.")] = None,
    centre: Annotated[
        bool, typer.Option("--centre", help="To volumes: roll kernels so that what slices saw of them is their middle.")
    ] = False,
    protocol: Annotated[
        Path | None, typer.Option(help="YAML file with what must be said anew: orientation, patch, and spacing, mirror.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn a network of Cross-D Conv that was trained on slices into one for volumes, or back.

    Research use, not a medical device.
    """
    from medical.training.transfer import transfer_file

    fields = _fields(protocol) if protocol is not None else None
    dims: Literal[2, 3] | None = None if to is None else 3 if to == "3d" else 2
    report = transfer_file(source, output, to=dims, centre=centre, protocol=fields, overwrite=overwrite)
    if json:
        typer.echo(report.to_json(), nl=False)
        return
    typer.echo(str(output))
    for line in _lines(report):
        typer.echo(f"  {line}")


def _lines(report: Report) -> list[str]:
    from hybrid.weights.containers import few
    from medical.training.transfer import KINDS

    told = {
        "carried over": report.carried,
        "rolled": report.rolled,
        "reshaped": report.reshaped,
        "laid aside for the way back": report.laid_aside,
        "initialised": report.initialised,
        "left out": report.left_out,
    }
    lines = [f"{report.title} from {report.source}, now for {KINDS[report.spatial_dims]}; tensors:"]
    lines += [f"{what}: {len(names)} ({few(list(names), 2)})" for what, names in told.items() if names]
    if report.protocol:
        lines.append(f"protocol: {', '.join(report.protocol)}")
    elif report.anew:
        lines.append(f"protocol: none yet; say {', '.join(report.anew)} in a file for --protocol, or in a recipe")
    return [*lines, *(f"note: {note}" for note in report.notes)]


def _fields(path: Path) -> dict[str, Any]:
    """The fields of a protocol that a YAML file gives."""
    import yaml

    from hybrid.errors import InputError
    from hybrid.plain_yaml import read_yaml

    try:
        fields = read_yaml(path)
    except OSError as error:
        raise InputError(f"The protocol {path} cannot be read: {error.strerror}.", hint="Check the path.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is no YAML file.", hint="Write fields such as patch: [64, 64, 64].") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path.name} holds no fields.", hint="Write fields such as patch: [64, 64, 64].")
    return fields
