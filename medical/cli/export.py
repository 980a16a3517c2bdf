"""The command `medical export`. Torch is imported by what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restore.cli.export import Output, Overwrite, Quiet, To, asked_sides, report, say


def export(
    model: Annotated[str, typer.Argument(help="A name from `medical models list`, or a checkpoint file.")],
    to: To = "onnx",
    output: Output = None,
    size: Annotated[
        str | None,
        typer.Option(help="Window of the graph in voxels along the network's axes, such as 96x96x96. Default: the protocol's."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="What a checkpoint does not tell, such as merging=merging15. Repeatable.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a network as an ONNX file for other programs, compared with PyTorch in ONNX Runtime.

    Segmentation networks take one window of fixed size, networks that restore take slices of any size. Research use.
    """
    from hybrid.devices import set_threads
    from hybrid.onnx_export import check_target
    from hybrid.weights.checkpoints import read_checkpoint
    from medical.cli.segment import network_options
    from medical.exporting import export_network, export_restorer
    from medical.loading import build, find_weights
    from medical.restoration.loading import build_restorer, is_restorer

    target = output or Path(f"{Path(model).stem}.onnx")
    check_target(target, overwrite=overwrite)
    set_threads()
    found = find_weights(model)
    options = network_options(option or ())
    say(f"{Path(model).stem}: tracing, and comparing with ONNX Runtime ...", quiet)
    if is_restorer(read_checkpoint(found.path).metadata):
        restorer = build_restorer(found, device="cpu", **options)
        flat = asked_sides(size, 2)
        slices = (flat[0], flat[1]) if flat else None
        made = export_restorer(restorer, target, size=slices, entry=found.entry, overwrite=overwrite)
    else:
        network = build(found, device="cpu", **options)
        sides = asked_sides(size, network.card.spatial_dims)
        made = export_network(network, target, size=sides, entry=found.entry, overwrite=overwrite)
    report(made, quiet)
