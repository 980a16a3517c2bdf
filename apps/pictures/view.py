"""Pictures as a browser can show them: a whole or an excerpt, before and after at one size, as PNG without loss.

The files themselves may have 16 bits, floats, a wide profile, CMYK or alpha. A view is upright and in 8-bit sRGB by the
picture's own profile, with its alpha.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pyvips

from apps.serving.workspace import Workspace, serve
from restore.images.reading import cmyk_to_srgb, info_of, open_image

WIDTH, HEIGHT = 800, 520
"""Most pixels of a view."""
ZOOMS: dict[str, int] = {"Whole": 0, "1:1": 1, "2:1": 2, "4:1": 4}


@dataclass(frozen=True)
class Window:
    """What of a picture is looked at.

    Attributes:
        zoom: Pixels of the screen for a pixel of the result; 0 for the whole picture.
        across, down: Middle of the excerpt, as parts of the picture's width and height.
    """

    zoom: int = 0
    across: float = 0.5
    down: float = 0.5

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of the excerpt, in pixels of the result, moved inside the picture.

        >>> Window(1, 0.0, 0.5).box(4000, 3000)
        (0, 1240, 800, 520)
        """
        if self.zoom == 0:
            return 0, 0, width, height
        w, h = min(width, WIDTH // self.zoom), min(height, HEIGHT // self.zoom)
        left, top = round(self.across * width - w / 2), round(self.down * height - h / 2)
        return min(max(left, 0), width - w), min(max(top, 0), height - h), w, h


def open_view(path: Path) -> pyvips.Image:
    """A picture file, upright, in 8-bit sRGB, with alpha where it has some; decoded when pixels are asked for."""
    image, file_format = open_image(path, "random")
    info = info_of(path, image, file_format)
    if info.kind == "cmyk":
        image = cmyk_to_srgb(image, info)
    elif image.format == "float":
        image = _stretched(image, info.channels)
    elif file_format == "avif" and image.format == "ushort":
        image = (image * (65535 / (2 ** image.get("bits-per-sample") - 1))).cast("ushort")
    return _in_srgb(image.autorot())


def draw_pair(before: Path, after: Path, window: Window, folder: Path) -> tuple[Path, Path, tuple[int, int, int, int]]:
    """Write the same excerpt of two pictures as PNG files of one size.

    Args:
        before: Enlarged bicubically to the size of `after`.
        after: The result.
        window: What to show; beyond 1:1 pixels are shown as squares.
        folder: Where the two files go.

    Returns:
        The files, and the box of the excerpt in pixels of `after`.
    """
    result, given = open_view(after), open_view(before)
    left, top, width, height = box = window.box(result.width, result.height)
    shown = result.crop(left, top, width, height)
    x, y = result.width / given.width, result.height / given.height
    if (x, y) == (1.0, 1.0):
        original = given.crop(left, top, width, height)
    else:
        original = given.resize(x, vscale=y, kernel="cubic")
        original = original.crop(left, top, min(width, original.width - left), min(height, original.height - top))
    return _save(original, window.zoom, folder), _save(shown, window.zoom, folder), box


def draw_whole(path: Path, folder: Path, side: int) -> Path:
    """Write a small view of the whole picture, `side` pixels at most along each edge."""
    image = open_view(path)
    return _write(image.resize(min(1.0, side / max(image.width, image.height))), folder)


def pair_html(workspace: Workspace, before: Path, after: Path, captions: tuple[str, str], under: str) -> str:
    """Two views of one size, one over the other, with an edge between them that mouse, finger and arrow keys move."""
    left, right = (escape(caption) for caption in captions)
    addresses = [escape(serve(workspace, path), quote=True) for path in (before, after)]
    width, height = (pyvips.Image.pngload(str(after)).get(side) for side in ("width", "height"))
    size = f'width="{width}" height="{height}"'
    return (
        f'<div class="pair"><img src="{addresses[0]}" {size} alt="{left}">'
        f'<div class="layer"><img class="after-picture" src="{addresses[1]}" {size} alt="{right}"></div>'
        f'<span class="edge"></span><span class="tag left">{left}</span><span class="tag right">{right}</span>'
        '<input type="range" min="0" max="100" value="50" aria-label="Edge between before and after, in percent from the left" '
        "oninput=\"this.parentElement.style.setProperty('--cut', this.value + '%')\"></div>"
        f'<p class="under">{escape(under)}</p>'
    )


def _save(image: pyvips.Image, zoom: int, folder: Path) -> Path:
    if zoom > 1:
        return _write(image.resize(zoom, kernel="nearest"), folder)
    fit = min(1.0, WIDTH / image.width, HEIGHT / image.height)
    return _write(image.resize(fit) if fit < 1 else image, folder)


def _write(image: pyvips.Image, folder: Path) -> Path:
    path = folder / f"view-{secrets.token_hex(4)}.png"
    image.pngsave(str(path), compression=1, keep="none")
    return path


def _stretched(image: pyvips.Image, channels: int) -> pyvips.Image:
    """Floats as 16 bits: from 0 to 1, or what goes beyond that, as `restore.restoration.plan.unit_range` maps them."""
    colour = image.extract_band(0, n=channels)
    low, high = min(0.0, colour.min()), max(1.0, colour.max())
    whole = (colour - low) / (high - low)
    if image.hasalpha():
        whole = whole.bandjoin(image[image.bands - 1])
    made = (whole * 65535).rint().cast("ushort").copy(interpretation="rgb16" if channels == 3 else "grey16")
    if image.get_typeof("icc-profile-data"):
        profile = image.get("icc-profile-data")
        made = made.copy()
        made.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return made


def _in_srgb(image: pyvips.Image) -> pyvips.Image:
    if image.get_typeof("icc-profile-data"):
        try:
            made = image.icc_transform("srgb", embedded=True, intent="relative", black_point_compensation=True, depth=8)
            made.crop(0, 0, 1, 1).avg()  # a profile that is broken shows itself only here
            return made
        except pyvips.Error:
            pass  # shown as if it had none
    if image.format == "ushort":
        image = (image / 257).rint()
    return image.cast("uchar").copy(interpretation="b-w" if image.bands < 3 else "srgb")
