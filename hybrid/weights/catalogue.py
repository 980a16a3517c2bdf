"""The catalogue of weights: which published and shipped files exist, where they are, and under what terms.

A catalogue is one YAML file per package; pydantic checks it, because people write it. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from hybrid.errors import RequestError, WeightsError
from hybrid.plain_yaml import read_yaml


def _inside_package(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise ValueError("must be a path inside the package, with forward slashes")
    return text


Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\n]*$", strip_whitespace=True)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*[+]*$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=120)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Plain http is for a server on this machine alone: a hash that is recorded at the first sight of a file stands on https.
Url = Annotated[str, StringConstraints(pattern=r"^(https://|http://(localhost|127\.0\.0\.1)[:/])\S+$")]
Task = Literal[
    "super-resolution", "deblurring", "denoising", "jpeg", "deraining", "defocus", "enhancement", "face", "detection", "metric"
]
"""What a picture network is for."""
PackagePath = Annotated[str, StringConstraints(min_length=1), AfterValidator(_inside_package)]


class Strict(BaseModel):
    """Base of what is read from a file of ours: no field beyond those named, none changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsFile(Strict):
    """One file of weights.

    Attributes:
        name: Its published name, under which it lies in the cache and on a mirror.
        urls: Direct addresses, the publisher's own first.
        page: Page or shared folder where a person finds the file.
        size: Bytes, where known.
        parameters: Number of parameters of the network, where known: a file of another number is another network.
        sha256: Hash of the bytes, where known.
        shipped: Path inside the package, for files that come with it.
        published: Data set to metric to the value that its authors report.
    """

    name: FileName
    urls: tuple[Url, ...] = ()
    page: Url | None = None
    size: Annotated[int, Field(gt=0)] | None = None
    parameters: Annotated[int, Field(gt=0)] | None = None
    sha256: Sha256 | None = None
    shipped: PackagePath | None = None
    published: dict[str, dict[str, float]] = {}

    @model_validator(mode="after")
    def _has_a_source(self) -> WeightsFile:
        if not (self.urls or self.page or self.shipped):
            raise ValueError("needs urls, a page, or a shipped path")
        return self


class Entry(Strict):
    """One model by the name that a user types.

    Attributes:
        name: The name.
        family: Registry name of its architecture.
        task: What it is for; None in a package whose models need no such word.
        title: Its name in print.
        summary: What it is good for, in one line.
        notice: What a user should be told when it is loaded, in one line.
        code_licence: Licence of the reference implementation.
        weights_licence: Licence of the published weights; "unknown" is a value.
        training_data: What it was trained on, and the terms of that data where known.
        protocol: What the network asks of its input and what its outputs mean, where that takes more than a card;
            the package that runs it knows the schema.
        options: What its files cannot tell, by the names of the family's options.
        fallback: Name of the shipped model that may stand in when these weights are absent.
        files: Scale to file; 1 for tasks that keep the size.
    """

    name: ModelName
    family: Line
    task: Task | None = None
    title: Line
    summary: Line
    notice: Line | None = None
    code_licence: Line
    weights_licence: Line
    training_data: Line
    protocol: dict[str, Any] | None = None
    options: dict[str, Any] = {}
    fallback: ModelName | None = None
    files: Annotated[dict[Annotated[int, Field(ge=1)], WeightsFile], Field(min_length=1)]

    @property
    def shipped(self) -> bool:
        """Whether all files of the model come with the package."""
        return all(file.shipped for file in self.files.values())

    def file(self, scale: int | None) -> tuple[int, WeightsFile]:
        """The file for a scale; None stands for the only scale that there is.

        Raises:
            RequestError: The model lacks the scale, or has several and none was given.
        """
        scales = ", ".join(str(known) for known in sorted(self.files))
        if scale is None and len(self.files) > 1:
            raise RequestError(f"{self.name} has several scales.", hint=f"Say which scale: {scales}.")
        chosen = next(iter(self.files)) if scale is None else scale
        if chosen not in self.files:
            raise RequestError(f"{self.name} has no weights for scale {chosen}.", hint=f"Its scales: {scales}.")
        return chosen, self.files[chosen]


def in_print(name: str, scale: int) -> str:
    """A model and its scale as people read it; the name alone where the size stays.

    >>> in_print("hat", 4), in_print("hippocampus", 1)
    ('hat x4', 'hippocampus')
    """
    return name if scale == 1 else f"{name} x{scale}"


class _Document(Strict):
    format: Literal[1]
    models: dict[ModelName, Entry]

    @model_validator(mode="before")
    @classmethod
    def _name_entries(cls, raw: Any) -> Any:
        """The key of each model is its name, which the file need not repeat."""
        if isinstance(raw, dict) and isinstance(raw.get("models"), dict):
            named = {key: {"name": key} | body if isinstance(body, dict) else body for key, body in raw["models"].items()}
            return raw | {"models": named}
        return raw

    @model_validator(mode="after")
    def _consistent(self) -> _Document:
        names = [file.name for entry in self.models.values() for file in entry.files.values()]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"files share one cache, so their names must differ: {', '.join(repeated)}")
        for entry in self.models.values():
            if entry.fallback is not None and not (entry.fallback in self.models and self.models[entry.fallback].shipped):
                raise ValueError(f"{entry.name}: fallback {entry.fallback} is not a shipped model")
        return self


@dataclass(frozen=True)
class Catalogue:
    """The models of one package.

    Attributes:
        entries: Name to entry, in the order of the file.
        package: Folder in which the shipped files lie.
    """

    entries: dict[str, Entry]
    package: Path

    @classmethod
    def load(cls, path: Path, package: Path) -> Catalogue:
        """Read a catalogue file.

        Args:
            path: The YAML file.
            package: Folder to which its `shipped` paths are relative.

        Raises:
            WeightsError: The file is absent or does not follow the schema; the message names the first faults.
        """
        try:
            document = _Document.model_validate(read_yaml(path))
        except OSError as error:
            raise WeightsError(f"The catalogue {path.name} cannot be read: {error.strerror}.", hint="Reinstall it.") from error
        except yaml.YAMLError as error:
            raise WeightsError(f"The catalogue {path.name} is not valid YAML: {error}.", hint="Correct it there.") from error
        except ValidationError as error:
            faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:3]]
            raise WeightsError(
                f"The catalogue {path.name} is not valid: {'; '.join(faults)}.", hint="Correct it there."
            ) from error
        return cls(document.models, package)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def entry(self, name: str) -> Entry:
        """The model of that name, upper and lower case alike.

        Raises:
            RequestError: There is none. The message names the nearest ones.
        """
        if (found := self.entries.get(name.lower())) is not None:
            return found
        near = difflib.get_close_matches(name.lower(), self.entries, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(self.entries)}."
        raise RequestError(f"There is no model named {name!r}.", hint=hint)

    def whose_file(self, file_name: str) -> tuple[Entry, int] | None:
        """The model and scale to which a downloaded file belongs, told from its published or mirrored name."""
        for entry in self:
            for scale, file in entry.files.items():
                if file_name in {file.name, *(unquote(urlsplit(url).path.rsplit("/", 1)[-1]) for url in file.urls)}:
                    return entry, scale
        return None

    def shipped_path(self, entry: Entry, scale: int) -> Path | None:
        """Where the shipped file of a model lies, or None if it is not a shipped one or the installation lacks it."""
        shipped = entry.files[scale].shipped if scale in entry.files else None
        path = self.package / shipped if shipped else None
        return path if path is not None and path.is_file() else None
