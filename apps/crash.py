"""Unforeseen errors, told by place and kind alone."""

from __future__ import annotations

import traceback

SHOW = "HYBRID_SHOW_ERRORS"
"""Environment variable with which `medical` and the app show what unexpected errors say."""


def without_words(error: BaseException) -> str:
    """A crash as its place and kind, without what the exceptions say: that may quote a header, and so a patient's name."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    lines = [f"{''.join(traceback.format_tb(each.__traceback__))}{type(each).__name__}\n" for each in reversed(chain)]
    told = "a fault of this program; what the errors say is withheld, since it may quote a patient's data"
    return f"Traceback (most recent call last):\n{''.join(lines)}error: {told}. To see it, set {SHOW}=1 and run again."
