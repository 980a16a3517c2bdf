"""The command `restore`. Torch is imported by what runs, not here, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from hybrid.subcommands import with_subcommand
from restore.cli import options
from restore.cli.bench import bench
from restore.cli.compare import compare
from restore.cli.export import export
from restore.cli.interpolate import interpolate
from restore.cli.models import models
from restore.cli.train import train
from restore.cli.train_compare import compare as train_compare
from restore.tasks import DEBLUR, DEJPEG, DENOISE, FACE, SR, Command

DetectorName = Literal["yunet", "cascade"]

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
app.command(cls=with_subcommand("compare", train_compare))(train)
app.command()(export)


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
    deidentify: options.Deidentify = False,
    overwrite: options.Overwrite = False,
    tile: options.Tile = "auto",
    memory: options.Memory = None,
    max_pixels: options.MaxPixels = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    ensemble: options.Ensemble = False,
    threads: options.Threads = None,
    engine: options.Engine = "local",
    workers: options.Workers = None,
    address: options.Address = None,
    retry_failed: options.RetryFailed = False,
    plan: options.Plan = False,
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Enlarge pictures: colour depth, alpha, profile and metadata stay as they are.

    Fine details may be invented by the network.
    """
    from hybrid.batch.options import BatchOptions
    from restore.cli.road import Request
    from restore.cli.sr import Enlargement, run
    from restore.restoration.final_size import asked_size

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
            deidentify=deidentify,
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
            batch=BatchOptions(engine, workers, address, threads, retry_failed),
        ),
        Enlargement(network_scale if network_scale is not None or weights is not None or final is not None else 4, final),
    )


def _same_size(command: Command) -> Callable[..., None]:
    """The function behind a command that keeps the size of pictures."""

    def restore(
        inputs: options.Inputs,
        model: Annotated[str, typer.Option(help="A name from `restore models list`.")] = command.model,
        weights: options.Weights = None,
        output: options.Output = None,
        outputs: options.Outputs = 0,
        select: options.Select = "best",
        uncertainty: options.Uncertainty = None,
        format: options.Format = None,
        quality: options.Quality = 95,
        lossless: options.Lossless = False,
        deidentify: options.Deidentify = False,
        overwrite: options.Overwrite = False,
        tile: options.Tile = "auto",
        memory: options.Memory = None,
        max_pixels: options.MaxPixels = None,
        device: options.Device = "auto",
        precision: options.Precision = "auto",
        ensemble: options.Ensemble = False,
        threads: options.Threads = None,
        engine: options.Engine = "local",
        workers: options.Workers = None,
        address: options.Address = None,
        retry_failed: options.RetryFailed = False,
        plan: options.Plan = False,
        json: options.AsJson = False,
        quiet: options.Quiet = False,
    ) -> None:
        from hybrid.batch.options import BatchOptions
        from restore.cli.road import Request
        from restore.cli.same_size import asked_main, run
        from restore.restoration.one_output import Selection

        run(
            Request(
                command=command,
                inputs=tuple(inputs),
                source=command.source(model, weights),
                output=output,
                format=format,
                quality=quality,
                lossless=lossless,
                deidentify=deidentify,
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
                batch=BatchOptions(engine, workers, address, threads, retry_failed),
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
def face(
    inputs: options.Inputs,
    model: Annotated[str, typer.Option(help="A name from `restore models list`.")] = FACE.model,
    weights: options.Weights = None,
    detector: Annotated[DetectorName, typer.Option(help="yunet, or cascade: frontal faces, and many false ones.")] = "yunet",
    threshold: Annotated[float, typer.Option(help="Least score of a face, up to 1: lower finds more, and false ones.")] = 0.9,
    boxes: Annotated[
        Path | None, typer.Option(help="JSON file of known faces, boxes or boxes with landmarks; or a record of this command.")
    ] = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Inputs are aligned faces and nothing else; results have the network's size.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Numbers of the faces to restore, such as 1,3; --plan shows them.")] = None,
    fidelity: Annotated[float, typer.Option(help="Part of the input in restored faces: 0 is the network, 1 the input.")] = 0.0,
    match_colour: Annotated[
        bool, typer.Option("--match-colour", help="Give restored faces the colours and the contrast of the input.")
    ] = False,
    scale: Annotated[float, typer.Option(help="Enlargement of the whole picture, from 1.")] = 1.0,
    background: Annotated[
        str | None, typer.Option(help="Super-resolution network for what is no face, name or file; without it, bicubic.")
    ] = None,
    save_faces: Annotated[Path | None, typer.Option(help="Folder for the aligned faces, before and after, as PNG.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG with each face before and after; of many pictures, a folder of them.")
    ] = None,
    output: options.Output = None,
    format: options.Format = None,
    quality: options.Quality = 95,
    lossless: options.Lossless = False,
    deidentify: options.Deidentify = False,
    overwrite: options.Overwrite = False,
    memory: options.Memory = None,
    max_pixels: options.MaxPixels = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    engine: options.Engine = "local",
    workers: options.Workers = None,
    address: options.Address = None,
    retry_failed: options.RetryFailed = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the faces that are found, and write nothing.")] = False,
    json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Restore the faces of pictures: found, aligned, restored, put back. Details are invented.

    All else stays as it is, or is enlarged by --scale. A picture without a face is written too, and it is said.
    """
    from hybrid.batch.options import BatchOptions
    from hybrid.memory import parse_size
    from restore.cli.face import FaceRequest, asked_numbers, run
    from restore.faces.files import FaceRun
    from restore.faces.restoration import FaceSettings
    from restore.images import MAX_PIXELS, SaveOptions

    settings = FaceSettings(
        detector=detector,
        threshold=threshold,
        only=asked_numbers(only),
        fidelity=fidelity,
        match_colour=match_colour,
    )
    run(
        FaceRequest(
            inputs=tuple(inputs),
            source=FACE.source(model, weights),
            output=output,
            run=FaceRun(
                settings=settings,
                aligned=aligned,
                scale=scale,
                save=SaveOptions(format, quality, lossless, deidentify=deidentify),
                overwrite=overwrite,
                max_pixels=max_pixels or MAX_PIXELS,
                memory=parse_size(memory) if memory is not None else None,
                faces=save_faces,
            ),
            background=background,
            boxes=boxes,
            sheet=sheet,
            batch=BatchOptions(engine, workers, address, threads, retry_failed),
            device=device,
            precision=precision,
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
