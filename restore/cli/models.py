"""The commands `restore models ...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from restore.cli.models_app import ModelsOf, models_app

if TYPE_CHECKING:
    from pathlib import Path

    from hybrid.families import Family
    from hybrid.weights.catalogue import Catalogue, Entry
    from hybrid.weights.find import Resolved
    from restore.models.base import RestorationNetwork

HELPERS = ("detection", "metric")
"""Tasks of the catalogue whose networks find or judge pictures, and are no families of their own."""


class Pictures(ModelsOf):
    """The models of `restore`."""

    command, scales = "restore", True

    def catalogue(self) -> Catalogue:
        from restore.loading import catalogue

        return catalogue()

    def find(self, source: str, scale: int | None) -> Resolved:
        from restore.loading import find_weights

        return find_weights(source, scale)[0]

    def build(self, found: Resolved) -> RestorationNetwork:
        from hybrid.errors import RequestError
        from restore.loading import build

        if found.entry is not None and found.entry.task in HELPERS:
            raise RequestError(
                f"{found.entry.name} restores no picture: {found.entry.summary}",
                hint="`restore models list` and `restore models verify` tell the rest.",
            )
        return build(found, scale=found.scale, device="cpu")

    def check_fits(self, file: Path, entry: Entry, scale: int) -> None:
        if entry.task not in HELPERS:
            super().check_fits(file, entry, scale)

    def family(self, name: str) -> Family[Any]:
        from restore.models import family

        return family(name)

    def facts(self, network: RestorationNetwork, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        card = network.card
        given = (
            f"{card.channels} channels"
            if card.out_channels == card.channels
            else f"{card.channels} channels to {card.out_channels}"
        )
        yield "scale", f"x{card.scale}, {given}"
        yield "task", " or ".join(card.tasks) + (", as far as a file tells" if len(card.tasks) > 1 else "")
        if card.outputs > 1:
            pure = ", ".join(map(str, card.pure_outputs))
            averages = "" if len(card.pure_outputs) == card.outputs else "; the others are averages of two"
            yield "outputs", f"{card.outputs}, of which {pure} are heads{averages}"


models = models_app(Pictures())
