"""Whether a scan is of the kind that a network was trained on, as far as its headers say what it is."""

from __future__ import annotations

from hybrid.errors import InputError

_SAME = {"MRI": "MR", "PET": "PT"}
"""What protocols may call a modality, beside its DICOM code."""
_UNKNOWN = {"", "OT"}
"""DICOM's "other" says nothing of what was measured (PS3.3, C.7.3.1.1.1)."""


def other_modality(origin: object, trained_on: str) -> str:
    """The modality that a scan's headers name, where it is another than the network's; empty where they agree or say none.

    Args:
        origin: Of a volume (`medical.volumes.volume.Volume.origin`). NIfTI files and plain pictures do not name one.
        trained_on: The modality of the network's protocol.
    """
    said = (getattr(origin, "modality", None) or "").strip()
    return "" if _code(said) in {*_UNKNOWN, _code(trained_on)} else said


def check_modality(origin: object, trained_on: str, name: str) -> None:
    """Refuse a scan whose headers name another modality than a network was trained on.

    A label map of the wrong kind of scan looks like any other, so a warning is not enough.

    Args:
        origin, trained_on: As of `other_modality`.
        name: The scan's, for the message.

    Raises:
        InputError: They do.
    """
    if said := other_modality(origin, trained_on):
        raise InputError(
            f"The network was trained on {trained_on}, and {name} says that it is {said}.",
            hint=f"Choose a network for {said}; --any-modality runs this one all the same.",
        )


def _code(modality: str) -> str:
    code = modality.strip().upper()
    return _SAME.get(code, code)
