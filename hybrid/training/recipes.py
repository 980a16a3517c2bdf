"""Recipes of trainings: YAML files that people write, checked field by field."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hybrid.errors import RequestError
from hybrid.plain_yaml import read_yaml

Kind = TypeVar("Kind", bound=BaseModel)


class Part(BaseModel):
    """Base of a recipe and its parts: no field beyond those named, none changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkPart(Part):
    """Which network: a family of the registry and its full configuration."""

    family: str
    options: dict[str, Any] = {}


def read_recipe(source: str | Path, kind: type[Kind], package: str) -> Kind:
    """Read a recipe by the name of a shipped one, or from a YAML file.

    Args:
        source: Name, or path of a file with an ending.
        kind: What it is to be.
        package: The package that ships recipes in its folder `recipes`.

    Raises:
        RequestError: No such recipe, or a field of it cannot be used; the message names each field.
    """
    shipped = resources.files(package) / "recipes"
    path = Path(source)
    try:
        return kind.model_validate(read_yaml(shipped / f"{source}.yaml" if path.suffix == "" else path))
    except OSError as error:
        names = ", ".join(sorted(p.name.removesuffix(".yaml") for p in shipped.iterdir() if p.name.endswith(".yaml")))
        raise RequestError(f"There is no recipe {str(source)!r}.", hint=f"Give a YAML file or one of: {names}.") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path.name} is not YAML: {error}.", hint="Correct the file.") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise RequestError(f"The recipe {path.name} cannot be used: {faults}.", hint="Correct these fields.") from error
