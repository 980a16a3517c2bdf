"""The command `medical restore-evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def restore_evaluate(
    data: Annotated[Path, typer.Option(help="Folder with dataset.json (its splits) and imagesTr.")],
    model: Annotated[str, typer.Option(help="A name from `medical models list`, or a checkpoint.")] = "denoise-mr-compact",
    protocol: Annotated[
        Path | None, typer.Option(help="YAML file: modality, intensity, orientation, axis, neighbours of a checkpoint.")
    ] = None,
    split: Annotated[Literal["train", "val"], typer.Option(help="Part of the data set.")] = "val",
    sigma: Annotated[
        list[float] | None,
        typer.Option(help="Strength of the noise, a share of the 99th percentile. Repeatable. Default: 0.03, 0.06, 0.1."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="A classical method to compare with: nl-means (of scikit-image), or bm4d. Repeatable."),
    ] = None,
    cases: Annotated[int | None, typer.Option(min=1, help="How many scans, the first of the split. Default: all.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for table, figure and facts.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What the network computes in.")
    ] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell how far it is.")] = False,
) -> None:
    """Score a denoiser on scans that are given Rician noise: PSNR and SSIM against the noisy scans and classical methods.

    The same noise in every run. Classical methods are told its strength, the network is not. Research use, not a medical device.
    """
    from hybrid.console import counted, messages
    from hybrid.devices import set_threads
    from hybrid.errors import RequestError
    from medical.cli.evaluate import print_table
    from medical.notice import RESEARCH_USE
    from medical.restoration.evaluation import HEADER, check_classical, evaluate_denoising, write_evaluation
    from medical.restoration.loading import load_restorer, read_restoration_protocol

    if output is not None and output.exists() and not output.is_dir():
        raise RequestError(f"{output} is a file.", hint="Name a folder with -o.")
    check_classical(against or ())
    set_threads(threads)
    given = read_restoration_protocol(protocol) if protocol is not None else None
    restorer = load_restorer(model, protocol=given, device=device, precision=precision)
    with counted(messages(quiet=quiet), "volumes") as on_progress:
        result = evaluate_denoising(
            restorer,
            data,
            split,
            sigmas=tuple(sigma or (0.03, 0.06, 0.1)),
            classical=against or (),
            cases=cases,
            on_progress=on_progress,
        )
    print_table(f"{model}, {len(result.facts['cases'])} scans of {data.resolve().name}, split {split}", HEADER, result.table())
    typer.echo("Noise: Rician, of the original's 99th percentile, which is the peak of PSNR and SSIM too.")
    typer.echo(f"{RESEARCH_USE}.")
    if output is not None:
        for path in write_evaluation(result, output):
            typer.echo(str(path))
