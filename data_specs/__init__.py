"""Descriptions of data sets, one YAML a set, and what finds their files in a user's folder."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from pydantic import ValidationError

from data_specs.files import Checked, FoundImages, ImagePair, check_files, find_images
from data_specs.schema import DataSpec, Layout, Protocol, Published, Source, SuperResolutionSpec
from data_specs.segmentation_schema import SegmentationSpec
from data_specs.volume_files import FoundVolumes, VolumeCase, find_volumes
from hybrid.errors import InputError, RequestError

__all__ = [
    "KINDS",
    "Checked",
    "DataSpec",
    "FoundImages",
    "FoundVolumes",
    "ImagePair",
    "Layout",
    "Protocol",
    "Published",
    "SegmentationSpec",
    "Source",
    "SuperResolutionSpec",
    "VolumeCase",
    "available",
    "check_files",
    "find_images",
    "find_volumes",
    "folder_spec",
    "load_spec",
]

FOLDER = Path(__file__).resolve().parent

# The kind of description that each task uses.
KINDS: dict[str, type[DataSpec]] = {"super-resolution": SuperResolutionSpec, "segmentation": SegmentationSpec}

Kind = TypeVar("Kind", bound=DataSpec)


def available(kind: type[DataSpec] = SuperResolutionSpec) -> tuple[str, ...]:
    """Names of the described data sets of one kind.

    >>> "set5" in available(), "btcv" in available(SegmentationSpec)
    (True, True)
    """
    tasks = {task for task, each in KINDS.items() if issubclass(each, kind)}
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml") if _read_yaml(path).get("task") in tasks))


@overload
def load_spec(name_or_path: str | Path) -> SuperResolutionSpec: ...


@overload
def load_spec(name_or_path: str | Path, kind: type[Kind]) -> Kind: ...


def load_spec(name_or_path: str | Path, kind: type[DataSpec] = SuperResolutionSpec) -> DataSpec:
    """Read the description of a data set.

    Args:
        name_or_path: A name of `available`, in any case; or a YAML file of your own (it ends in .yaml or .yml).
        kind: The kind of description that the caller can use.

    Raises:
        RequestError: There is no such set, or it serves another task.
        InputError: The file cannot be read or is not a valid description.

    >>> load_spec("set5").images
    5
    """
    path = _locate(name_or_path, kind)
    facts = _read_yaml(path)
    task = facts.get("task")
    if task not in KINDS:
        raise InputError(f"{path}: unknown task {task!r}.", hint=f"Set task to one of: {', '.join(KINDS)}.")
    try:
        spec = KINDS[task].model_validate(facts)
    except ValidationError as error:
        raise InputError(f"{path} is not a valid data set description: {_problems(error, KINDS[task])}.") from error
    if not isinstance(spec, kind):
        raise RequestError(f"{spec.title} is a data set for {spec.task} and cannot be used here.")
    beside = {key: path.parent / value for key in ("pictures", "checksums") if (value := getattr(spec, key)) is not None}
    return spec.model_copy(update=beside)


def folder_spec(folder: str | Path) -> SuperResolutionSpec:
    """A description for a folder of the user's own high-resolution pictures; low-resolution ones are made."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", hint="Name a folder of high-resolution pictures.")
    name = folder.resolve().name
    return SuperResolutionSpec(
        name=name,
        title=name,
        task="super-resolution",
        source=Source(where="pictures of the user"),
        licence="unknown",
        citation="none",
        images=None,
        pictures=folder,
        checksums=None,
        scales=(2, 3, 4, 8),
        layouts=(
            Layout(name="folders x2, x3, x4 with HR and LR", hr="x{scale}/HR/{name}", lr="x{scale}/LR/{name}"),
            Layout(name="HR pictures alone", hr="{name}"),
        ),
    )


def _locate(name_or_path: str | Path, kind: type[DataSpec]) -> Path:
    text = str(name_or_path)
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RequestError(f"There is no file {path}.", hint=f"Give a YAML file or one of: {', '.join(available(kind))}.")
        return path
    if text.lower() in {each.stem for each in FOLDER.glob("*.yaml")}:
        return FOLDER / f"{text.lower()}.yaml"
    names = available(kind)
    near = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known sets: {', '.join(names)}."
    raise RequestError(f"There is no data set named {text!r}.", hint=hint)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise InputError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} is not a data set description: it holds no 'key: value' lines.")
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
