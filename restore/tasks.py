"""What the commands for pictures are for: the tasks whose networks they take, their defaults, how they name results.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from hybrid.weights.catalogue import Entry, Task


@dataclass(frozen=True)
class Command:
    """A command that restores pictures.

    Attributes:
        name: What a user types after `restore`, and the task of its records.
        tasks: Tasks of the catalogue whose networks it takes.
        model: Its default model, which ships with the package.
        tag: What stands behind the names of results that lie beside their input.
        against: What its networks are for, in words.
    """

    name: str
    tasks: tuple[Task, ...]
    model: str
    tag: str
    against: str

    def source(self, model: str, weights: Path | None) -> str | Path:
        """What is to be loaded, by --model and --weights as they were given."""
        return weights if weights is not None else model

    def check_entry(self, entry: Entry) -> None:
        """Refuse a model of another task, by its entry in the catalogue.

        Raises:
            RequestError: It is one; the message names the command that takes it, or models that this one takes.
        """
        if entry.task is not None and entry.task not in self.tasks:
            raise RequestError(
                f"{entry.name} is a network for {IN_WORDS[entry.task]}, not for {self.against}.", hint=self._instead(entry)
            )

    def check_card(self, card: ModelCard, name: str) -> None:
        """Refuse a network that cannot be meant, such as one that enlarges where the size should stay.

        Among those that keep the size nothing is refused but networks for faces: a file of weights does not tell for sure
        what it was trained for.

        Raises:
            RequestError: It is one; the message names the repair.
        """
        enlarges = any("super-resolution" in task for task in card.tasks)
        faces, restores_faces = any("face" in task for task in card.tasks), "face restoration" in card.tasks
        if self is SR:
            wrong = not enlarges
        elif self is FACE:
            wrong = card.scale != 1 or (faces and not restores_faces)
        else:
            wrong = card.scale != 1 or card.tasks == ("super-resolution",) or faces
        if wrong:
            others = [command for command in COMMANDS if command is not FACE and (command is SR) == enlarges and not faces]
            fits = " or ".join(f"restore {command.name}" for command in ([FACE] if restores_faces else others))
            raise RequestError(
                f"{name} is a network for {' or '.join(card.tasks)}, not for {self.against}.",
                hint=f"Give another file, or use {fits}." if fits else "Give another file.",
            )

    def _instead(self, entry: Entry) -> str:
        for command in COMMANDS:
            if entry.task in command.tasks:
                return f"Type restore {command.name} --model {entry.name}, or leave out --model."
        return "Leave out --model, or choose one from `restore models list`."


SR = Command("sr", ("super-resolution",), "auto", "", "super-resolution")
DEBLUR = Command("deblur", ("deblurring", "defocus"), "deblur-compact", "_deblurred", "blur")
DENOISE = Command("denoise", ("denoising",), "denoise-compact", "_denoised", "noise")
DEJPEG = Command("dejpeg", ("jpeg",), "dejpeg-compact", "_cleaned", "the traces of JPEG")
FACE = Command("face", ("face",), "face-compact", "_restored", "faces")
COMMANDS = (SR, DEBLUR, DENOISE, DEJPEG, FACE)

BEST: Literal["agreement", "re-blur"] = "agreement"
"""How the best of several outputs is told, by the name of a criterion of `restore.restoration.selection`."""
BEST_IN_WORDS = {
    "agreement": "the one nearest to the mean of all",
    "re-blur": "the one that, blurred again, is nearest to the input",
}[BEST]

IN_WORDS: dict[Task, str] = {
    "super-resolution": "super-resolution",
    "deblurring": "motion blur",
    "denoising": "noise",
    "jpeg": "the traces of JPEG",
    "deraining": "rain",
    "defocus": "defocus blur",
    "enhancement": "light and colours",
    "face": "faces",
    "detection": "finding faces",
    "metric": "scoring pictures",
}
"""Tasks of the catalogue as they stand behind "a network for"."""
