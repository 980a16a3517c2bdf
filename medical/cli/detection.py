"""The command `medical detect-evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from data_specs import SegmentationSpec
    from medical.detection.evaluation import DetectionEvaluation
    from medical.detection.lesions import DetectionRules, Extra, Extraction


def detect_evaluate(
    maps: Annotated[Path | None, typer.Argument(help="Folder of probability or detection maps to score; or --model.")] = None,
    references: Annotated[Path | None, typer.Argument(help="Folder of reference masks of the same names; or --data.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `medical models list`, or a checkpoint.")] = None,
    protocol: Annotated[
        Path | None, typer.Option(help="YAML file: modality, channels, spacing, intensity, patch, structures of a checkpoint.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="What a checkpoint does not tell, such as merging=merging15. Repeatable.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the data set's folder, or that folder itself.")] = None,
    spec: Annotated[str | None, typer.Option(help="A data set's name, or a YAML description.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set, such as val; all for every case.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for tables and plot.")] = None,
    lesion: Annotated[
        list[int] | None, typer.Option(help="Value of the references that is a lesion; all above 0 if left out. Repeatable.")
    ] = None,
    channel: Annotated[
        int | None, typer.Option(min=0, help="Which class of 4-D maps is the lesion, from 0; the second of two if left out.")
    ] = None,
    candidates: Annotated[
        Literal["dynamic", "dynamic-fast", "static", "map"],
        typer.Option(help="How candidates are made; map: the maps hold candidates already."),
    ] = "dynamic",
    threshold: Annotated[float | None, typer.Option(help="Lowest confidence of static candidates; 0.5 if left out.")] = None,
    min_voxels: Annotated[int | None, typer.Option(help="Smaller candidates are dropped; 11 if left out.")] = None,
    iou: Annotated[float | None, typer.Option(help="Least intersection over union of a hit; 0.1 if left out.")] = None,
    distance: Annotated[float | None, typer.Option(help="Instead: most mm between the centres of a hit.")] = None,
    extra: Annotated[
        Literal["ignore", "false-positive"], typer.Option(help="What a further candidate on a lesion counts.")
    ] = "ignore",
    overlap: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Overlap of windows; the model's own if left out.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over mirror images.")] = False,
    any_modality: Annotated[
        bool, typer.Option("--any-modality", help="Take scans whose headers name another modality than the model's.")
    ] = False,
    memory: Annotated[str | None, typer.Option(help="Peak memory to stay under, such as 4GB.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What the network computes in.")
    ] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell how far it is.")] = False,
) -> None:
    """Score how lesions are found: FROC, average precision and AUROC of maps, or of a model, against reference masks.

    Give two folders, a folder and a data set, or a model and a data set. Research use, not a medical device.
    """
    from hybrid.console import counted, messages
    from medical.cli.evaluate import check_model_options, check_output, check_request, load_network, read_spec, settings_of
    from medical.detection.evaluation import DetectionNetwork, DetectionPlan, MapFolder, run_detection
    from medical.detection.report import write_detection
    from medical.evaluation.engine import plan_data_set, plan_folders
    from medical.evaluation.metrics import Conventions

    check_request(maps, references, model, data, spec, split, what="maps")
    given = {"--protocol": protocol, "--option": option, "--overlap": overlap, "--tta": tta or None, "--memory": memory}
    given |= {"--any-modality": any_modality or None}
    check_model_options(model, [name for name, value in given.items() if value is not None], what="maps")
    check_output(output, None)
    if model is not None:
        _refuse_channel(channel)
    rules = _rules(candidates, threshold, min_voxels, iou, distance, extra)
    described = read_spec(spec) if spec is not None else None
    values = _lesion(lesion or (), described)
    folder = MapFolder(maps, channel) if maps is not None else None
    if folder is not None and references is not None:
        cases = plan_folders(folder, references, Conventions())
    else:
        assert described is not None and data is not None and split is not None
        title = folder.folder.resolve().name if folder is not None else Path(str(model)).stem
        cases = plan_data_set(described, data, split, title=title)
    plan = DetectionPlan(cases, values, rules)
    network = None
    if model is not None:
        loaded = load_network(model, protocol, option or (), device, precision, settings_of(overlap, tta, memory, any_modality))
        network = DetectionNetwork(loaded, values)
    maker = folder or network
    assert maker is not None
    with counted(messages(quiet=quiet), "cases", len(cases.cases)) as on_progress:
        made = network.made() if network is not None else None
        result = run_detection(plan, maker.map_of, made=made, on_progress=on_progress)
    _show(result)
    if output is not None:
        for path in write_detection(result, output):
            typer.echo(str(path))
    raise typer.Exit(result.exit_code)


def _rules(
    candidates: Extraction,
    threshold: float | None,
    min_voxels: int | None,
    iou: float | None,
    distance: float | None,
    extra: Extra,
) -> DetectionRules:
    """What was asked for, and what counts where nothing was."""
    from hybrid.errors import RequestError
    from medical.detection.lesions import DetectionRules

    if threshold is not None and candidates != "static":
        raise RequestError(f"--threshold says nothing of {candidates} candidates.", hint="Add --candidates static.")
    if min_voxels is not None and candidates == "map":
        raise RequestError("Candidates that are in the maps already keep their size.", hint="Leave --min-voxels out.")
    if iou is not None and distance is not None:
        raise RequestError("A hit is told by overlap or by distance.", hint="Give --iou or --distance.")
    chosen = {"threshold": threshold, "min_voxels": min_voxels, "overlap": iou, "distance": distance}
    return DetectionRules(candidates, extra=extra, **{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]


def _lesion(given: list[int] | tuple[()], spec: SegmentationSpec | None) -> tuple[int, ...]:
    """Values of lesions as given, or the one structure of the data set."""
    from hybrid.errors import RequestError

    if given or spec is None:
        return tuple(sorted(set(given)))
    if len(spec.scored) > 1:
        names = ", ".join(f"{each.name} ({', '.join(map(str, each.values))})" for each in spec.scored)
        raise RequestError(f"{spec.title} has several structures: {names}.", hint="Say which values are lesions with --lesion.")
    return spec.scored[0].values


def _refuse_channel(channel: int | None) -> None:
    from hybrid.errors import RequestError

    if channel is not None:
        raise RequestError("--channel is for maps in a folder.", hint="Name the values of the lesion with --lesion.")


def _show(result: DetectionEvaluation) -> None:
    from medical.cli.evaluate import print_remarks, print_table
    from medical.detection.report import HEADER, facts, table_rows
    from medical.notice import RESEARCH_USE

    print_table(f"Detection: {result.plan.cases.title}", HEADER, table_rows(result))
    for fact in facts(result):
        typer.echo(fact)
    typer.echo(RESEARCH_USE + ".")
    print_remarks(result.results)
