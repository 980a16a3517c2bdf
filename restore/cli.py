"""The command `restore`. Torch is imported by what runs, not here, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from restore import cli_options as options
from restore.cli_bench import bench
from restore.cli_compare import compare
from restore.cli_interpolate import interpolate
from restore.cli_models import models
from restore.cli_train import train
from restore.tasks import DEBLUR, DEJPEG, DENOISE, SR, Command

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


@app.command()
def sr(
    inputs: options.Inputs,
    model: Annotated[
        str, typer.Option(help="A name from `restore models list`, or auto: the best one that is here and quick enough.")
    ] = "auto",
    scale: Annotated[
        float | None, typer.Option(help="Enlargement, any number. One that the model lacks is reached by a resize. Default 4.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Final size in pixels in place of --scale: 3840x2160, or 3840x or x2160 to keep the ratio.")
    ] = None,
    weights: options.Weights = None,
    output: options.Output = None,
    format: options.Format = None,
    quality: options.Quality = 95,
    lossless: options.Lossless = False,
    overwrite: options.Overwrite = False,
    tile: options.Tile = "auto",
    memory: options.Memory = None,
    max_pixels: options.MaxPixels = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    ensemble: options.Ensemble = False,
    plan: options.Plan = False,
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Enlarge pictures: colour depth, alpha, profile and metadata stay as they are."""
    from restore.cli_road import Request
    from restore.cli_sr import Enlargement, run
    from restore.final_size import asked_size

    network_scale, final = asked_size(scale, size)
    run(
        Request(
            command=SR,
            inputs=tuple(inputs),
            source=weights if weights is not None else model,
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
        ),
        Enlargement(network_scale if network_scale is not None or weights is not None or final is not None else 4, final),
    )


def _same_size(command: Command) -> Callable[..., None]:
    """The function behind a command that keeps the size of pictures."""

    def restore(
        inputs: options.Inputs,
        model: Annotated[str | None, typer.Option(help="A name from `restore models list`.")] = command.model,
        weights: options.Weights = None,
        output: options.Output = None,
        outputs: options.Outputs = 0,
        select: options.Select = "best",
        uncertainty: options.Uncertainty = None,
        format: options.Format = None,
        quality: options.Quality = 95,
        lossless: options.Lossless = False,
        overwrite: options.Overwrite = False,
        tile: options.Tile = "auto",
        memory: options.Memory = None,
        max_pixels: options.MaxPixels = None,
        device: options.Device = "auto",
        precision: options.Precision = "auto",
        ensemble: options.Ensemble = False,
        plan: options.Plan = False,
        json: options.AsJson = False,
        quiet: options.Quiet = False,
    ) -> None:
        from restore.cli_road import Request
        from restore.cli_same_size import asked_main, run
        from restore.one_output import Selection

        run(
            Request(
                command=command,
                inputs=tuple(inputs),
                source=command.source(model, weights),
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
                selection=Selection(asked_main(select), outputs, uncertainty),
            )
        )

    return restore


for _command, _help in (
    (DEBLUR, "Sharpen pictures blurred by a shaken camera, by motion or out of focus; all else stays as it is."),
    (DENOISE, "Remove noise from pictures; size, colour depth, alpha, profile and metadata stay as they are."),
    (DEJPEG, "Remove the blocks and halos that JPEG leaves; size, alpha, profile and metadata stay as they are."),
):
    app.command(_command.name, help=_help)(_same_size(_command))


@app.command()
def doctor() -> None:
    """Print versions, devices, instruction sets, weights and write rights, ready to paste into a report."""
    from restore.doctor import report

    typer.echo(report())
