"""What the picture tab offers: the tasks, and for each the networks that are on this computer. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from hybrid.errors import WeightsError
from hybrid.weights.catalogue import Entry
from hybrid.weights.find import Store
from restore.loading import catalogue
from restore.restoration.choice import AUTO
from restore.tasks import DEBLUR, DEJPEG, DENOISE, FACE, SR, Command

TASKS: dict[str, Command] = {
    "Enlarge": SR,
    "Remove blur": DEBLUR,
    "Remove noise": DENOISE,
    "Remove JPEG traces": DEJPEG,
    "Restore faces": FACE,
}
"""Commands by what the page calls them."""


@dataclass(frozen=True)
class Offer:
    """The networks of a task.

    Attributes:
        here: Those whose weights are shipped or in the cache, the command's own default first.
        absent: How many more have names.
    """

    here: tuple[Entry, ...]
    absent: int

    def choices(self, command: Command) -> list[tuple[str, str]]:
        """Titles and names for a list to choose from."""
        named = [(f"{entry.title} ({entry.name})", entry.name) for entry in self.here]
        return [("Best that is quick enough (auto)", AUTO), *named] if command is SR and named else named


def offer(command: Command) -> Offer:
    """What there is for a task."""
    known, store = catalogue(), Store.from_environment()
    entries = [entry for entry in known if entry.task in command.tasks]
    here = [entry for entry in entries if any(_is_here(entry, scale, store) for scale in entry.files)]
    here.sort(key=lambda entry: (entry.name != command.model, not entry.shipped))
    return Offer(tuple(here), len(entries) - len(here))


def scales_here(name: str) -> tuple[int, ...]:
    """Scales of a network whose weights are on this computer."""
    entry, store = catalogue().entry(name), Store.from_environment()
    return tuple(scale for scale in sorted(entry.files) if _is_here(entry, scale, store))


def facts(command: Command, name: str | None) -> str:
    """What is known of a network, as HTML."""
    offered = offer(command)
    more = (
        f'<p class="quiet">{offered.absent} more published networks can be had: an administrator gets them with '
        "<code>restore models pull</code>.</p>"
        if offered.absent
        else ""
    )
    if not offered.here:
        return f'<p class="quiet">No network for {escape(command.against)} is on this computer yet.</p>{more}'
    if name in (None, AUTO):
        names = ", ".join(escape(entry.name) for entry in offered.here)
        return f'<p class="quiet">Takes the best of {names} that is done within two minutes a picture.</p>{more}'
    entry = catalogue().entry(str(name))
    lines = {"Good for": entry.summary, "Trained on": entry.training_data, "Licence of the weights": entry.weights_licence}
    if entry.notice:
        lines["Please note"] = entry.notice
    told = "".join(f"<dt>{escape(key)}:</dt><dd>{escape(text)}</dd>" for key, text in lines.items())
    return f'<dl class="facts">{told}</dl>{more}'


def _is_here(entry: Entry, scale: int, store: Store) -> bool:
    try:
        return (catalogue().shipped_path(entry, scale) or store.find(entry, scale)) is not None
    except WeightsError:
        return False  # damaged: `restore models verify` says so
