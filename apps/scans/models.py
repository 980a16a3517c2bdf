"""The networks that a scan can be given to: what each finds, what it was trained on, and how well it does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hybrid.weights.catalogue import Catalogue, Entry
from hybrid.weights.find import Store, is_here, weights_state
from medical.loading import PROTOCOL, catalogue
from medical.protocol import Protocol

_FILE = 1  # the scale under which segmentation models keep their one file


@dataclass(frozen=True)
class Model:
    """A segmentation network by name.

    Attributes:
        entry: Its row of the catalogue.
        protocol: What it asks of a scan.
        state: Where its weights are, such as ``shipped``.
        figures: How well it does, in one sentence; empty where nothing is published.
    """

    entry: Entry
    protocol: Protocol
    state: str
    figures: str

    @property
    def at_hand(self) -> bool:
        """Whether it can run without a download."""
        return is_here(self.state)

    @property
    def choice(self) -> str:
        """One line of a list."""
        return self.entry.title + ("" if self.at_hand else " - weights not on this machine")


def segmentation_models() -> list[Model]:
    """All networks of the catalogue that outline structures, those at hand first."""
    from medical.models import MODULES

    known, store = catalogue(), Store.from_environment(command="medical")
    found = []
    for entry in known:
        if entry.family not in MODULES or (protocol := _protocol(entry, known)) is None:
            continue
        found.append(Model(entry, protocol, weights_state(entry, store, known), _figures(entry, known)))
    return sorted(found, key=lambda model: not model.at_hand)


def card_html(model: Model) -> str:
    """What a user should know before choosing it."""
    entry, protocol = model.entry, model.protocol
    names = ", ".join(structure.name for structure in protocol.structures)
    facts = {
        "Finds": names,
        "In": f"{protocol.modality}: {', '.join(protocol.channels)}",
        "Trained on": entry.training_data,
        "Figures": model.figures or "none published",
        "Licence": f"weights {entry.weights_licence}; code {entry.code_licence}",
        "Weights": model.state,
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(str(text))}</dd>" for name, text in facts.items())
    note = f'<p class="quiet">{escape(entry.notice)}</p>' if entry.notice else ""
    return f'<p>{escape(entry.summary)}</p><dl class="facts">{rows}</dl>{note}'


def _protocol(entry: Entry, known: Catalogue) -> Protocol | None:
    """From the catalogue, or, of a shipped network, from the header of its file, which needs no torch."""
    if entry.protocol is not None:
        return Protocol.model_validate(entry.protocol)
    path = known.shipped_path(entry, _FILE) if _FILE in entry.files else None
    text = header_of(path).get(PROTOCOL) if path is not None else None
    return Protocol.model_validate_json(text) if text else None


def header_of(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _figures(entry: Entry, known: Catalogue) -> str:
    file = entry.files[_FILE]
    if (path := known.shipped_path(entry, _FILE)) is not None and (record := path.with_suffix(".json")).is_file():
        return _of_record(json.loads(record.read_text(encoding="utf-8")))
    parts = [
        ", ".join(f"{name.replace('_', ' ')} {value:g} %" for name, value in scores.items()) + f" on {data}"
        for data, scores in file.published.items()
    ]
    return f"as published: {'; '.join(parts)}" if parts else ""


def _of_record(record: dict[str, object]) -> str:
    """Such as ``Dice 0.894 on 20 scans that it was not trained on (anterior hippocampus 0.901, ...)``."""
    result, cases = record.get("result"), record.get("validated_on")
    if not isinstance(result, dict) or "dice" not in result or not isinstance(cases, list):
        return ""
    each = [
        f"{name.removeprefix('dice_').replace('_', ' ')} {value:.3f}"
        for name, value in result.items()
        if name.startswith("dice_")
    ]
    whole = f"Dice {result['dice']:.3f} on {len(cases)} scans that it was not trained on"
    return f"{whole} ({', '.join(each)})" if each else whole
