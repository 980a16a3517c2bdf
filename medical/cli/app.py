"""The command `medical`. Torch and MONAI are imported by what runs, not here, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hybrid.batch.options import Address, BatchOptions, Engine, RetryFailed, Threads, Workers
from hybrid.subcommands import with_subcommand
from medical.cli.compare import compare
from medical.cli.detection import detect_evaluate
from medical.cli.evaluate import evaluate
from medical.cli.export import export
from medical.cli.models import models
from medical.cli.pretrain import pretrain
from medical.cli.restore_evaluate import restore_evaluate
from medical.cli.stats import stats
from medical.cli.train import train
from medical.cli.train_compare import compare as train_compare
from medical.cli.transfer import transfer

app = typer.Typer(
    name="medical",
    help="Segment and restore scans with published networks. Research use, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OUTPUT_HELP = (
    "File for one scan, folder for many: there results keep the scans' own names, such as FOLDER/NAME.nii.gz. "
    "Default: NAME_seg.nii.gz beside the scan."
)
RESTORED_HELP = (
    "NIfTI file for one scan, folder for many: there results keep the scans' own names. "
    "Default: NAME_restored.nii.gz beside the scan."
)


@app.command()
def segment(
    inputs: Annotated[list[str], typer.Argument(help="NIfTI files, DICOM folders or zips, pictures, or folders of such.")],
    model: Annotated[str, typer.Option(help="A name from `medical models list`.")] = "hippocampus",
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file; takes the place of --model.")] = None,
    protocol: Annotated[
        Path | None, typer.Option(help="YAML file: modality, channels, spacing, intensity, patch, structures of a checkpoint.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="What a checkpoint does not tell, such as merging=merging15. Repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
    format: Annotated[
        Literal["nifti", "seg", "both"] | None, typer.Option(help="NIfTI, DICOM SEG or both. Default: both of DICOM scans.")
    ] = None,
    stack: Annotated[bool, typer.Option("--stack", help="The inputs are the channels of one scan, in order.")] = False,
    volume: Annotated[int | None, typer.Option(min=0, help="Which volume of a 4-D NIfTI file, from 0.")] = None,
    series: Annotated[str | None, typer.Option(help="Which series of a DICOM folder: number or UID.")] = None,
    any_modality: Annotated[
        bool, typer.Option("--any-modality", help="Take scans whose headers name another modality than the model's.")
    ] = False,
    roi: Annotated[
        str | None, typer.Option(help="Part to segment: i0:i1,j0:j1,k0:k1 in voxels, or a mask file, or MASK:STRUCTURE.")
    ] = None,
    overlap: Annotated[float | None, typer.Option(min=0, max=0.99, help="Overlap of windows. Default: the model's.")] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over mirror images: up to eight times as long.")] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Write how unsure the result is: maps, figures, slices that want a look. Members are mirror images, or, with "
            "--ensemble, several checkpoints (and their mirror images with --tta).",
        ),
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="A further checkpoint, or model, of the same protocol, for --uncertainty. Repeatable."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Overlap of a quarter, about three times as fast.")] = False,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Keep the largest piece of each structure.")
    ] = False,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="Fill background inside a structure.")] = False,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Write the probability of each class too.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write statistics, preview and report.")] = True,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Write DICOM SEG without the patient's identity, its UIDs replaced.")
    ] = False,
    deidentify_key: Annotated[
        Path | None,
        typer.Option(help="The same, by the key in a file, so that UIDs are always replaced alike. Default: a new one a run."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")] = False,
    memory: Annotated[str | None, typer.Option(help="Most memory the process may take, such as 4GB.")] = None,
    threads: Threads = None,
    engine: Engine = "local",
    workers: Workers = None,
    address: Address = None,
    retry_failed: RetryFailed = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What the network computes in; auto: bf16 where it gains.")
    ] = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Print geometry, windows, memory and time, and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per scan.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Segment scans: a label map on the scan's own grid, with statistics, preview, report and record.

    Pictures (PNG, TIFF, JPEG, single-frame DICOM) go through networks for slices: label PNG, overlay, statistics.

    Research use, not a medical device.
    """
    from medical.cli.segment import Request, run

    run(
        Request(
            inputs=tuple(inputs),
            source=weights if weights is not None else model,
            protocol=protocol,
            options=tuple(option or ()),
            output=output,
            format=format,
            stacked=stack,
            volume=volume,
            series=series,
            any_modality=any_modality,
            roi=roi,
            overlap=overlap,
            tta=tta,
            uncertainty=uncertainty,
            ensemble=tuple(ensemble or ()),
            fast=fast,
            largest_component=largest_component,
            fill_holes=fill_holes,
            probabilities=save_probabilities,
            report=report,
            deidentify=deidentify,
            deidentify_key=deidentify_key,
            overwrite=overwrite,
            memory=memory,
            device=device,
            precision=precision,
            plan_only=plan,
            json=json,
            quiet=quiet,
            batch=BatchOptions(engine, workers, address, threads, retry_failed),
        )
    )


@app.command()
def restore(
    inputs: Annotated[list[str], typer.Argument(help="NIfTI files, DICOM folders or zips, or folders of such.")],
    model: Annotated[str, typer.Option(help="A name from `medical models list`.")] = "denoise-mr-compact",
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file; takes the place of --model.")] = None,
    protocol: Annotated[
        Path | None, typer.Option(help="YAML file: modality, intensity, orientation, axis, neighbours of a checkpoint.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=RESTORED_HELP)] = None,
    volume: Annotated[int | None, typer.Option(min=0, help="Which volume of a 4-D NIfTI file, from 0.")] = None,
    series: Annotated[str | None, typer.Option(help="Which series of a DICOM folder: number or UID.")] = None,
    any_modality: Annotated[
        bool, typer.Option("--any-modality", help="Take scans whose headers name another modality than the model's.")
    ] = False,
    dtype: Annotated[
        Literal["source", "float32"], typer.Option(help="source: type and scaling of the scan's file; float32: nothing rounded.")
    ] = "source",
    tile: Annotated[
        int | None, typer.Option(min=1, help="Largest tile edge of a slice, in voxels. Default: what the memory allows.")
    ] = None,
    preview: Annotated[bool, typer.Option(help="Write a picture of before, after and what was taken away.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")] = False,
    memory: Annotated[str | None, typer.Option(help="Most memory the process may take, such as 4GB.")] = None,
    threads: Threads = None,
    engine: Engine = "local",
    workers: Workers = None,
    address: Address = None,
    retry_failed: RetryFailed = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What the network computes in; auto: bf16 where it gains.")
    ] = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Print slices, tiles, memory and time, and write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per scan.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Denoise scans: NIfTI on the scan's own grid and in its own units, with preview and record. DICOM is read, not written.

    Small details may be invented or removed. Research use, not a medical device.
    """
    from medical.cli.restore import Request, run

    run(
        Request(
            inputs=tuple(inputs),
            source=weights if weights is not None else model,
            protocol=protocol,
            output=output,
            volume=volume,
            series=series,
            any_modality=any_modality,
            dtype=dtype,
            tile=tile,
            preview=preview,
            overwrite=overwrite,
            memory=memory,
            device=device,
            precision=precision,
            plan_only=plan,
            json=json,
            quiet=quiet,
            batch=BatchOptions(engine, workers, address, threads, retry_failed),
        )
    )


app.add_typer(models, name="models")
app.command()(evaluate)
app.command("detect-evaluate")(detect_evaluate)
app.command("restore-evaluate")(restore_evaluate)
app.command()(compare)
app.command()(stats)
app.command()(pretrain)
app.command(cls=with_subcommand("compare", train_compare))(train)
app.command()(transfer)
app.command()(export)
