"""The few exceptions of the project, and how they reach a user.

Every message says what was given and what is needed; `hint` says what to type next. Library code raises
these; only the commands and the app turn them into text and exit codes, in one place each.
"""

from __future__ import annotations


class HybridError(Exception):
    """Base of all errors that a user can act on.

    Args:
        message: What was given and why it cannot be used, in one sentence.
        hint: The repair: what to do or type next.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class RequestError(HybridError):
    """The request itself cannot be met: an unknown model, a scale the model lacks, output equal to input."""

    exit_code = 2


class InputError(HybridError):
    """An input file is missing, damaged, of the wrong kind, or too large to be opened unasked."""

    exit_code = 3


class WeightsError(HybridError):
    """Weights are absent, damaged, unsafe to open, or belong to another network."""

    exit_code = 4


class ResourceError(HybridError):
    """The machine lacks what the run needs: memory, disk space, a device."""

    exit_code = 5


class OutputError(HybridError):
    """A result cannot be written where it was asked for, or did not pass its check."""

    exit_code = 6
