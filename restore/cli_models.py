"""The commands `restore models ...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from restore.models_app import ModelsOf, models_app

if TYPE_CHECKING:
    from hybrid.catalogue import Catalogue
    from hybrid.families import Family
    from hybrid.weights import Resolved
    from restore.models.base import RestorationNetwork


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
        from restore.loading import build

        return build(found, scale=found.scale, device="cpu")

    def family(self, name: str) -> Family[Any]:
        from restore.models import family

        return family(name)

    def facts(self, network: RestorationNetwork, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield "scale", f"x{network.card.scale}, {network.card.channels} channels"


models = models_app(Pictures())
