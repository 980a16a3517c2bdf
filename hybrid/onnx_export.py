"""A network as an ONNX file: traced, annotated, compared with itself in ONNX Runtime, and only then put in its place.

The graph is that of the plain forms of `hybrid.blocks.exportable`, traced with gradients enabled, in float32 and with a batch of
one. What a file says of itself stands in its metadata, as text; a record lies beside it.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hybrid.errors import HybridError, OutputError, RequestError
from hybrid.records import Record, record_path, replacing, timestamp, versions, write_record

if TYPE_CHECKING:
    from hybrid.loading import WeightsSource

OPSET = 20
"""Of the files: ONNX 1.15 of October 2023, which ONNX Runtime reads since 1.17."""
TOLERANCE = 1e-4
"""Largest difference from PyTorch that a file may show, as a share of the largest value of the output, or of 1."""
MOST = 16384
"""Largest side, in pixels, for which an open graph is checked to hold."""
UNLIKE = (61, 67, 71)
"""Of these many times the multiple are the sides of the input that is traced: equal to no number of channels or windows, since
the graph would take a side that by chance equals such a number for that number."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Sides:
    """The sides that a graph takes.

    Attributes:
        names: Of the spatial axes, such as ("height", "width").
        fixed: The one size; None for open sides.
        least: Smallest side of an open graph.
    """

    names: tuple[str, ...]
    fixed: tuple[int, ...] | None = None
    least: int = 1

    def describe(self) -> str:
        """For people and for the file.

        >>> Sides(("height", "width"), least=9).describe(), Sides(("height", "width"), (64, 48)).describe()
        ('height and width from 9', 'height 64, width 48')
        """
        if self.fixed is None:
            return f"{' and '.join(self.names)} from {self.least}"
        return ", ".join(f"{name} {n}" for name, n in zip(self.names, self.fixed, strict=True))


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        network: In eval mode, computing in float32 on the CPU.
        run: Its result as one tensor; what the file has to equal.
        channels: Of its input.
        scale: Sides of the output per side of the input.
        metadata: What the file says of it.
        inputs: Makes an input (1, C, *sides) that suits it.
        title: Its name, for people.
        family: Registry name of its architecture.
        source: Its weights.
    """

    network: nn.Module
    run: Callable[[Tensor], Tensor]
    channels: int
    scale: int
    metadata: Mapping[str, str]
    inputs: Callable[[tuple[int, ...]], Tensor]
    title: str
    family: str
    source: WeightsSource | None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        sides: The sides that it takes.
        differences: Sides of an input to the largest difference between ONNX Runtime and PyTorch.
        bytes: Size of the file.
        record: The record beside it.
    """

    path: Path
    sides: Sides
    differences: Mapping[tuple[int, ...], float]
    bytes: int
    record: Path

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(self.differences.values())


def check_target(path: Path, *, overwrite: bool) -> None:
    """Make sure that file and record can be written, and that what makes them is installed, before any work is done.

    Raises:
        RequestError: A package is missing, or the name is not that of an ONNX file.
        OutputError: The folder is missing, or one of both is there.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"An export to ONNX needs {', '.join(missing)}.", hint='Type pip install "hybrid-imaging[onnx]".')
    if path.suffix.lower() != ".onnx":
        raise RequestError(f"{path} is not named as an ONNX file.", hint=f"Name it {path.stem}.onnx.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist.", hint="Make it, or choose another --output.")
    for each in (path, record_path(path)):
        if each.exists() and not overwrite:
            raise OutputError(f"{each} is there already.", hint="Pass --overwrite or choose another --output.")


def export(
    subject: Subject, sides: Sides, checked: Sequence[tuple[int, ...]], target: Path, *, overwrite: bool = False
) -> Exported:
    """Write a network as an ONNX file, if ONNX Runtime makes the same of it.

    Args:
        subject: The network.
        sides: What the graph shall take.
        checked: Sizes that are compared; of a graph of fixed sides that one alone.
        target: The file.
        overwrite: Whether files that are there may be replaced.

    Raises:
        RequestError: It cannot be exported; the message says why.
        OutputError: The file cannot be written, or gives other values than the network.
    """
    check_target(target, overwrite=overwrite)
    started, clock = timestamp(), time.perf_counter()
    program = trace(subject, sides)
    try:
        with replacing(target) as part:
            _write(program, subject, sides, part)
            differences = compare(subject, part, checked)
            size = part.stat().st_size
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}.", hint="Choose another --output.") from error
    made = _record(subject, sides, differences, target, started)
    record = write_record(replace(made, seconds=round(time.perf_counter() - clock, 3)), target)
    return Exported(target, sides, differences, size, record)


def trace(subject: Subject, sides: Sides) -> Any:
    """The graph of a network as torch's exported program.

    Raises:
        RequestError: Its steps depend on values or sides in a way that a graph cannot hold.
    """
    from torch._dynamo.exc import TorchDynamoException

    x = subject.inputs(sides.fixed or tuple(count * max(1, sides.least - 1) - 1 for count in UNLIKE[: len(sides.names)]))
    axes = None
    if sides.fixed is None:
        axes = ({axis: torch.export.Dim(name, min=sides.least, max=MOST) for axis, name in enumerate(sides.names, start=2)},)
    try:
        with _quietly(), torch.enable_grad():
            # Most guards are questions about strides that sympy cannot answer. Whatever is wrong for another size is found
            # by its comparison.
            program = torch.export.export(
                _Whole(subject), (x,), dynamic_shapes=axes, strict=False, prefer_deferred_runtime_asserts_over_guards=True
            )
    except (TorchDynamoException, RuntimeError, TypeError, ValueError) as error:
        raise _refusal(subject, error) from error
    if axes is not None:
        narrow = [bound for bound in program.range_constraints.values() if int(bound.lower) > sides.least or bound.upper < MOST]
        if narrow:
            raise _refusal(subject, f"its graph holds for sides of {narrow[0].lower} to {narrow[0].upper} alone")
    return program


def compare(subject: Subject, file: Path, checked: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """The largest difference between ONNX Runtime and PyTorch at each size.

    Raises:
        OutputError: It exceeds `TOLERANCE`, or the runtime does not take the file.
    """
    found = {}
    session = open_session(file)
    for sides in checked:
        x = subject.inputs(sides)
        with torch.inference_mode():
            expected = subject.run(x).numpy()
        got = run_session(session, x.numpy())
        bound = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        found[sides] = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
        if not found[sides] <= bound:
            size = " x ".join(map(str, sides))
            raise OutputError(
                f"For an input of {size} ONNX Runtime gives other values than PyTorch: {found[sides]:.2g} apart, at most "
                f"{bound:.2g} would do. Nothing was written.",
                hint="Try another --size, or report it.",
            )
    return found


def open_session(file: Path) -> Any:
    """The file in ONNX Runtime, on the CPU, with as many threads as PyTorch computes with.

    Raises:
        OutputError: The runtime does not take it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    with _runtime_errors(onnxruntime):
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, x: np.ndarray) -> np.ndarray:
    """The output for an input (1, C, *sides)."""
    import onnxruntime

    with _runtime_errors(onnxruntime):
        result: np.ndarray = session.run([OUTPUT], {INPUT: x})[0]
    return result


class _Whole(nn.Module):
    """A network whose `forward` is the result alone."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.network, self._run = subject.network, subject.run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)


def _write(program: Any, subject: Subject, sides: Sides, part: Path) -> None:
    import onnx_ir
    from torch.onnx import OnnxExporterError

    try:
        with _quietly():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
    except OnnxExporterError as error:
        raise _refusal(subject, error) from error
    assert made is not None
    x, y = made.model.graph.inputs[0], made.model.graph.outputs[0]
    x.name, y.name = INPUT, OUTPUT
    if sides.fixed is None:
        assert y.shape is not None
        x.shape = onnx_ir.Shape([1, subject.channels, *sides.names])
        times = f"{subject.scale}*" if subject.scale > 1 else ""
        y.shape = onnx_ir.Shape([*list(y.shape)[: -len(sides.names)], *(times + name for name in sides.names)])
    made.model.metadata_props.update(metadata(subject, sides))
    made.model.producer_name = "hybrid-imaging"
    made.model.producer_version = versions()["hybrid-imaging"]
    made.model.doc_string = subject.title
    made.save(part, external_data=False)


def metadata(subject: Subject, sides: Sides) -> dict[str, str]:
    """All that the file says of itself, as text."""
    source = subject.source
    return {
        "title": subject.title,
        "family": subject.family,
        "sides": sides.describe(),
        "source": source.file if source else "none",
        "source_sha256": source.sha256 if source else "",
        **subject.metadata,
    }


def _record(subject: Subject, sides: Sides, differences: Mapping[tuple[int, ...], float], target: Path, started: str) -> Record:
    source = subject.source
    packages = versions() | {name: _version(name) for name in PACKAGES}
    return Record(
        task="export",
        input=source.file if source else "none",
        input_sha256=source.sha256 if source else "",
        output=target.name,
        weights=source.file if source else "none",
        weights_sha256=source.sha256 if source else "",
        weights_origin=source.origin if source else "none",
        family=subject.family,
        title=subject.title,
        device="cpu",
        precision="float32",
        started=started,
        seconds=0.0,
        versions=packages,
        figures={
            "format": "ONNX",
            "opset": OPSET,
            "sides": sides.describe(),
            "tolerance": TOLERANCE,
            "largest_difference": {" x ".join(map(str, size)): value for size, value in differences.items()},
        },
    )


def _refusal(subject: Subject, why: object) -> HybridError:
    text = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return RequestError(f"{subject.title} cannot be exported so: {first[:300]}", hint="Try a fixed --size, or another network.")


def _version(package: str) -> str:
    from importlib import metadata as installed

    return installed.version(package)


@contextmanager
def _runtime_errors(onnxruntime: Any) -> Iterator[None]:
    state = onnxruntime.capi.onnxruntime_pybind11_state
    faults = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
    try:
        yield
    except faults as error:
        raise OutputError(
            f"ONNX Runtime does not take the file: {str(error).splitlines()[0][:300]}", hint="Report it with the model's name."
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's remarks on packages and operators of its own."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
