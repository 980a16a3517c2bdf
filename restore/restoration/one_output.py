"""Networks with several outputs: what becomes of them, and such a network as one with a single output.

The outputs are numbered from 1, in the order of the network (`restore.models.multi_output`). Axes: (B, outputs, C, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from restore.models.base import RestorationNetwork

Main = Literal["best", "mean"] | int
"""Which output is the result: the best by `restore.restoration.selection`, the mean of the heads, or one by its number."""


@dataclass(frozen=True)
class Selection:
    """What is made of the outputs of a network that has several; nothing of it touches a network with one.

    Attributes:
        main: Which is the result.
        candidates: How many outputs are saved beside it.
        uncertainty: Where to write the map of where they differ; None for no map.
    """

    main: Main = "best"
    candidates: int = 0
    uncertainty: Path | None = None

    @property
    def shows_several(self) -> bool:
        """Whether more than the result itself is asked for."""
        return self.candidates > 0 or self.uncertainty is not None

    def __post_init__(self) -> None:
        if self.uncertainty is not None and self.uncertainty.suffix.lower() not in ("", ".png") and not self.uncertainty.is_dir():
            raise RequestError(f"The map {self.uncertainty} is a PNG file.", hint=f"Name it {self.uncertainty.stem}.png.")

    def beside(self, target: Path, outputs: int) -> tuple[Path, ...]:
        """Everything that may be written beside a result; which candidates it will be, only the run can tell."""
        numbers = range(1, outputs + 1) if self.candidates and outputs > 1 else ()
        return (*(candidate_path(target, number) for number in numbers), *([self.uncertainty] if self.uncertainty else ()))

    def check(self, card: ModelCard) -> None:
        """Make sure that a network has what is asked for.

        Raises:
            RequestError: It has not.
        """
        if card.outputs == 1 and (self.shows_several or isinstance(self.main, int)):
            raise RequestError(
                f"{card.title} has one output.",
                hint="Leave out --outputs, --uncertainty and --select, or choose a network of several outputs.",
            )
        number = self.main if isinstance(self.main, int) else 1
        if self.candidates > card.outputs or not 1 <= number <= card.outputs:
            raise RequestError(
                f"{card.title} has {card.outputs} outputs.",
                hint=f"Give --outputs at most {card.outputs}, and --select best, mean or a number from 1 to {card.outputs}.",
            )


def candidate_path(target: Path, number: int) -> Path:
    """Where an output is saved as a candidate; numbers count from 1.

    >>> candidate_path(Path("out/photo_deblurred.png"), 3).name
    'photo_deblurred_3.png'
    """
    return target.with_name(f"{target.stem}_{number}{target.suffix}")


class OneOutput(RestorationNetwork):
    """A network of several outputs that stands for one with a single one.

    Args:
        network: It.
        main: ``mean`` of the outputs that are no averages themselves, or the number of one.

    Attributes:
        note: What a record says of it.
    """

    def __init__(self, network: RestorationNetwork, main: Literal["mean"] | int) -> None:
        super().__init__()
        self.network, self.main = network, main
        card = network.card
        self.card = replace(card, outputs=1, pure_outputs=(0,), result=None)
        self.places = list(card.pure_outputs) if isinstance(main, str) else [main - 1]
        heads = "" if len(card.pure_outputs) == card.outputs else f", which is that of its {len(card.pure_outputs)} heads"
        self.note = (
            f"The mean of {card.outputs} outputs{heads}." if isinstance(main, str) else f"Output {main} of {card.outputs}."
        )
        self.precision, self.source, self.precision_verdict = network.precision, network.source, network.precision_verdict
        self.train(network.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H * scale, W * scale)."""
        y = self.network.result(x)
        return y[:, self.places[0]] if len(self.places) == 1 else y[:, self.places].mean(1)


def as_asked(network: RestorationNetwork, selection: Selection) -> RestorationNetwork:
    """The network, with a single output where a selection needs no more.

    Raises:
        RequestError: The network lacks what is asked for.
    """
    selection.check(network.card)
    if network.card.outputs == 1 or selection.shows_several or selection.main == "best":
        return network
    return OneOutput(network, selection.main)


def notes_of(network: RestorationNetwork) -> tuple[str, ...]:
    """What the wrappers of a network add to a record, the outermost first."""
    notes = []
    while isinstance(inner := getattr(network, "network", None), RestorationNetwork):
        notes.append(str(network.note))
        network = inner
    return tuple(notes)
