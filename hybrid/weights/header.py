"""What a file that this package wrote says beside its weights: JSON objects in the header of a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hybrid.errors import WeightsError

OPTIONS = "options"
"""Key of the options of the family that names and shapes of tensors cannot tell."""


def saved_options(file_name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file that this package wrote says of its network beside the weights; empty for others.

    Raises:
        WeightsError: It says so in no form that can be read.
    """
    return header_object(file_name, OPTIONS, metadata[OPTIONS]) if OPTIONS in metadata else {}


def header_object(file_name: str, name: str, text: str) -> dict[str, Any]:
    """The JSON object of one entry of a header.

    Raises:
        WeightsError: It is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"The header of {file_name} has {name} that are no JSON.", hint="Write the file again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"The header of {file_name} has {name} that are no JSON object.", hint="Write the file again.")
    return value
