"""The user's photos, outside the enclave: telling their format, and drawing into them what was found."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from necli.errors import InputError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Box: TypeAlias = tuple[float, float, float, float]
"""ymin, xmin, ymax, xmax, as fractions of the height and the width."""

SUFFIXES: Final = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""What an annotated photo can be saved as."""

_USABLE: Final = "use a JPEG, PNG or WebP file"
# Far apart in hue and of like lightness; the first classes of a photo get the first ones.
_PALETTE: Final = (
    "#ffc93c", "#2ec4f1", "#ff4d5e", "#3ddc84", "#c77dff", "#ff9f43",
    "#00d2b4", "#ff7ac6", "#a3e635", "#7c9cff", "#f2e3b6", "#e0825a",
)  # fmt: skip
_SHADE: Final = "#101418"


@dataclass(frozen=True)
class FoundObject:
    name: str
    score: float
    box: Box


def photo_format(content: bytes) -> str | None:
    """JPEG, PNG or WEBP by content, whatever the file is called; None for anything else."""
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def annotate(photo: bytes, objects: Sequence[FoundObject]) -> Image.Image:
    """The photo, upright, with a box and a label for each object; the surest are drawn last, on top.

    :raises InputError: the photo can't be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(photo), formats=("JPEG", "PNG", "WEBP")) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as exc:  # on damaged files, Pillow's decoders raise almost anything
        raise InputError("the photo can't be decoded, so nothing can be drawn into it", hint=_USABLE) from exc
    names = dict.fromkeys(found.name for found in objects)
    colours = {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}
    pen = _Pen(image)
    ordered = sorted(objects, key=lambda found: found.score)
    for found in ordered:
        pen.box(found, colours[found.name])
    for found in reversed(ordered):  # the surest choose their labels' places first
        pen.label(found, colours[found.name])
    return image


def encode_photo(image: Image.Image, suffix: str) -> bytes:
    """The bytes of a file with that suffix, one of `SUFFIXES`."""
    out = io.BytesIO()
    image.save(out, SUFFIXES[suffix.lower()], quality=92)
    return out.getvalue()


class _Pen:
    """Draws into one photo, with lines and letters in proportion to it."""

    def __init__(self, image: Image.Image) -> None:
        from PIL import ImageDraw, ImageFont

        self._size = image.size
        self._draw: ImageDraw.ImageDraw = ImageDraw.Draw(image)
        longest = max(image.size)
        self._line = max(2, round(longest / 350))
        self._font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(
            max(11, longest / 50)
        )
        self._taken: list[tuple[float, float, float, float]] = []

    def box(self, found: FoundObject, colour: str) -> None:
        """An outline with a dark edge on both sides, so that it shows on any ground."""
        left, top, right, bottom = self._corners(found)
        edge = max(1, self._line // 3)
        for grow, width, ink in ((edge, self._line + 2 * edge, _SHADE), (0, self._line, colour)):
            corners = (left - grow, top - grow, right + grow, bottom + grow)
            self._draw.rectangle(corners, outline=ink, width=width)

    def label(self, found: FoundObject, colour: str) -> None:
        """Name and score, above the box where there is room, and never outside of the picture."""
        text = f"{found.name} {found.score:.2f}"
        pad = 2 * self._line
        _, ascent, width, height = self._draw.textbbox((0, 0), text, font=self._font)
        width, height = width + 2 * pad, height + ascent + pad
        place = self._place(found, width, height)
        self._taken.append(place)
        self._draw.rounded_rectangle(place, radius=self._line, fill=colour)
        self._draw.text((place[0] + pad, place[1] + pad / 2), text, fill=_SHADE, font=self._font)

    def _place(self, found: FoundObject, width: float, height: float) -> tuple[float, float, float, float]:
        places = [self._inside(x, y, width, height) for x, y in self._candidates(found, width, height)]
        free = (place for place in places if not any(_overlap(place, taken) for taken in self._taken))
        return next(free, places[0])

    def _candidates(self, found: FoundObject, width: float, height: float) -> Iterator[tuple[float, float]]:
        """Above the box, inside it, below it; each at its left, then at its right."""
        left, top, right, bottom = self._corners(found)
        heights = (top - height, top, bottom) if top >= height else (top, bottom, bottom - height)
        for y in heights:
            yield left, y
            yield right - width, y

    def _inside(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        x = max(0.0, min(x, self._size[0] - 1 - width))
        y = max(0.0, min(y, self._size[1] - 1 - height))
        return x, y, x + width, y + height

    def _corners(self, found: FoundObject) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels, in order and inside the picture whatever the box says."""
        ymin, xmin, ymax, xmax = (min(max(share, 0.0), 1.0) for share in found.box)
        right, bottom = self._size[0] - 1, self._size[1] - 1
        return xmin * right, ymin * bottom, max(xmin, xmax) * right, max(ymin, ymax) * bottom


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
