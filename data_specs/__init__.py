"""Descriptions of data sets, one YAML a set, and what finds their files in a user's folder."""

from __future__ import annotations

import difflib
import reprlib
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from pydantic import ValidationError

from data_specs.face_files import FaceItem, FoundFaces, find_faces
from data_specs.face_schema import FaceSpec, PublishedFaces
from data_specs.files import Checked, FoundImages, ImagePair, check_files, find_images
from data_specs.restoration_files import FoundRestoration, RestorationItem, find_restoration
from data_specs.restoration_schema import Blurred, PictureLayout, PublishedRestoration, RestorationSpec, Task
from data_specs.schema import DataSpec, Layout, Protocol, Published, Source, SuperResolutionSpec
from data_specs.segmentation_schema import SegmentationSpec
from data_specs.volume_files import FoundVolumes, VolumeCase, find_volumes
from hybrid.errors import InputError, RequestError
from hybrid.plain_yaml import read_yaml

__all__ = [
    "KINDS",
    "Checked",
    "DataSpec",
    "FaceItem",
    "FaceSpec",
    "FoundFaces",
    "FoundImages",
    "FoundRestoration",
    "FoundVolumes",
    "ImagePair",
    "Layout",
    "Protocol",
    "Published",
    "PublishedFaces",
    "PublishedRestoration",
    "RestorationItem",
    "RestorationSpec",
    "SegmentationSpec",
    "Source",
    "SuperResolutionSpec",
    "VolumeCase",
    "available",
    "check_files",
    "find_faces",
    "find_images",
    "find_restoration",
    "find_volumes",
    "folder_restoration_spec",
    "folder_spec",
    "load_spec",
]

FOLDER = Path(__file__).resolve().parent

MODEL = "Correct it there; data_specs/set5.yaml and msd-hippocampus.yaml show how one is written."

# The kind of description that each task uses.
KINDS: dict[str, type[DataSpec]] = {
    "super-resolution": SuperResolutionSpec,
    "segmentation": SegmentationSpec,
    "deblurring": RestorationSpec,
    "denoising": RestorationSpec,
    "jpeg": RestorationSpec,
    "face": FaceSpec,
}

Kind = TypeVar("Kind", bound=DataSpec)


@cache  # which reads all files
def available(kind: type[DataSpec] = SuperResolutionSpec, task: str | None = None) -> tuple[str, ...]:
    """Names of the described data sets of one kind, or of one task.

    >>> "set5" in available(), "btcv" in available(SegmentationSpec), "urban100" in available(RestorationSpec, "denoising")
    (True, True, True)
    """
    tasks = {each for each, one in KINDS.items() if issubclass(one, kind) and task in (None, each)}
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml") if tasks & {each.get("task") for each in _read(path)}))


@overload
def load_spec(name_or_path: str | Path) -> SuperResolutionSpec: ...


@overload
def load_spec(name_or_path: str | Path, kind: type[Kind], task: str | None = None) -> Kind: ...


def load_spec(name_or_path: str | Path, kind: type[DataSpec] = SuperResolutionSpec, task: str | None = None) -> DataSpec:
    """Read the description of a data set.

    Args:
        name_or_path: A name of `available`, in any case; or a YAML file of your own (it ends in .yaml or .yml).
        kind: The kind of description that the caller can use.
        task: The task wanted, where a kind has several; None for the first that the set serves.

    Raises:
        RequestError: There is no such set, or it serves another task.
        InputError: The file cannot be read or is not a valid description.

    >>> load_spec("set5").images, load_spec("urban100", RestorationSpec, "denoising").levels
    (5, (15.0, 25.0, 50.0))
    """
    path = _locate(name_or_path, kind, task)
    specs = [_validated(path, facts) for facts in _read(path)]
    fitting = [spec for spec in specs if isinstance(spec, kind) and task in (None, spec.task)]
    if not fitting:
        served = " and ".join(spec.task for spec in specs)
        raise RequestError(
            f"{specs[0].title} is a data set for {served} and cannot be used here.",
            hint=f"Sets that can: {', '.join(available(kind, task))}.",
        )
    return fitting[0]


def folder_spec(folder: str | Path) -> SuperResolutionSpec:
    """A description for a folder of the user's own high-resolution pictures; low-resolution ones are made."""
    return SuperResolutionSpec(
        **_own(folder),
        task="super-resolution",
        scales=(2, 3, 4, 8),
        layouts=(
            Layout(name="folders x2, x3, x4 with HR and LR", hr="x{scale}/HR/{name}", lr="x{scale}/LR/{name}"),
            Layout(name="HR pictures alone", hr="{name}"),
        ),
    )


def folder_restoration_spec(folder: str | Path, task: Task) -> RestorationSpec:
    """A description for a folder of the user's own clean pictures, which are degraded as `kodak24` and `kodak24-blur` are."""
    like = load_spec("kodak24-blur" if task == "deblurring" else "kodak24", RestorationSpec, task)
    layouts = (PictureLayout(name="pictures alone", clean="{name}"),)
    return RestorationSpec(**_own(folder), task=task, layouts=layouts, degradation=like.degradation, protocol=like.protocol)


def _own(folder: str | Path) -> dict[str, Any]:
    """What a folder of the user's says of itself."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", hint="Name a folder of clean, full-size pictures.")
    name = folder.resolve().name
    source = Source(where="pictures of the user")
    own: dict[str, Any] = {"name": name, "title": name, "source": source, "licence": "unknown", "citation": "none"}
    return own | {"images": None, "pictures": folder, "checksums": None}


def _locate(name_or_path: str | Path, kind: type[DataSpec], task: str | None) -> Path:
    text = str(name_or_path)
    path = Path(text)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise RequestError(f"There is no file {path}.", hint=f"Give a YAML file or one of: {', '.join(available(kind, task))}.")
    if text.lower() in {each.stem for each in FOLDER.glob("*.yaml")}:
        return FOLDER / f"{text.lower()}.yaml"
    names = available(kind, task)  # which reads them all
    near = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known sets: {', '.join(names)}."
    raise RequestError(f"There is no data set named {text!r}.", hint=hint)


def _validated(path: Path, facts: dict[str, Any]) -> DataSpec:
    """One description of a file, its files beside the YAML by their whole paths."""
    task = facts.get("task")
    if not isinstance(task, str) or task not in KINDS:
        raise InputError(f"{path}: unknown task {reprlib.repr(task)}.", hint=f"Set task to one of: {', '.join(KINDS)}.")
    try:
        spec = KINDS[task].model_validate(facts)
    except ValidationError as error:
        raise InputError(f"{path} is not a valid data set description: {_problems(error, KINDS[task])}.", hint=MODEL) from error
    beside: dict[str, Any] = {
        key: path.parent / value for key in ("pictures", "checksums") if (value := getattr(spec, key)) is not None
    }
    if isinstance(spec, RestorationSpec) and isinstance(spec.degradation, Blurred):
        kernels = path.parent / spec.degradation.kernels
        beside["degradation"] = spec.degradation.model_copy(update={"kernels": kernels})
    return spec.model_copy(update=beside)


def _read(path: Path) -> list[dict[str, Any]]:
    """The descriptions in a file: its first task, and those listed under `also`, which share what they do not say."""
    first = _read_yaml(path)
    others = first.pop("also", [])
    if not isinstance(others, list) or not all(isinstance(each, dict) for each in others):
        raise InputError(f"{path} is not a valid data set description: also: a list of further tasks is needed.", hint=MODEL)
    shared = {key: value for key, value in first.items() if key in DataSpec.model_fields}
    return [first, *(shared | each for each in others)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        facts = read_yaml(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise InputError(
            f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}.", hint="Correct it there."
        ) from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} is not a data set description: it holds no 'key: value' lines.", hint=MODEL)
    return facts


def _problems(error: ValidationError, kind: type[DataSpec]) -> str:
    """Each fault on its key, with the nearest known key where one was mistyped at the top level."""
    parts = []
    for fault in error.errors():
        place = ".".join(str(step) for step in fault["loc"]) or "the whole"
        text = f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
        near = difflib.get_close_matches(place, kind.model_fields, n=1)
        if fault["type"] == "extra_forbidden":
            text = f"{place}: unknown key" + (f", did you mean {near[0]}" if near else "")
        parts.append(text)
    return "; ".join(parts)
