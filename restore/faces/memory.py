"""Whether restoring the faces of a picture fits the memory, from the picture's header.

A photograph is held whole: faces may be anywhere in it, and so may the edge of a soft mask.
"""

from __future__ import annotations

import numpy as np

from hybrid.errors import ResourceError
from hybrid.memory import activation_budget, format_size
from hybrid.tiles.plan import BYTES_PER_FLOAT
from restore.faces.detection import LARGEST_LOOK, LOOKS
from restore.faces.restoration import face_size
from restore.images import PictureInfo
from restore.models.base import RestorationNetwork

LOOK_BYTES = 90
"""Peak bytes for each pixel of the largest size at which faces are looked for, measured with pictures of 1.5 to 24 megapixels."""
RESULT_BYTES = 50
"""Peak bytes for each pixel of an 8-bit RGB result: its values and canvas in float32, and what is computed from them."""


def needed_bytes(network: RestorationNetwork, info: PictureInfo, size: tuple[int, int]) -> int:
    """Peak bytes of a run beside what the process holds already.

    Args:
        network: For faces.
        info: The picture's header.
        size: Width and height of the result.
    """
    pixels = info.width * info.height
    looked = pixels * min(LARGEST_LOOK, LOOKS[-1] / max(info.width, info.height)) ** 2
    face = BYTES_PER_FLOAT * (network.card.activation_floats * face_size(network) ** 2 + network.card.working_floats)
    deeper = (pixels + size[0] * size[1]) * (info.channels + info.alpha) * (np.dtype(info.dtype).itemsize - 1)
    return int(max(LOOK_BYTES * looked, face) + RESULT_BYTES * size[0] * size[1] + deeper)


def check_memory(network: RestorationNetwork, info: PictureInfo, size: tuple[int, int], memory: int | None) -> None:
    """Refuse a picture that does not fit.

    Args:
        network, info, size: As of `needed_bytes`.
        memory: Bytes that the process may take at its peak; None is bounded by what is free.

    Raises:
        ResourceError: It does not fit; the message says what helps.
    """
    needed, left = needed_bytes(network, info, size), activation_budget(memory, "cpu")
    if needed > left:
        missing = format_size(needed - left, up=True).replace(" ", "")
        more = f"Raise --memory by {missing} or more" if memory is not None else "Close other programs"
        raise ResourceError(
            f"The faces of a picture of {info.width} x {info.height} take about {format_size(needed, up=True)} of memory, "
            f"and {format_size(max(left, 0))} are left.",
            hint=f"{more}, give a smaller --scale, or restore a smaller picture.",
        )
