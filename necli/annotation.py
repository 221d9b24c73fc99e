"""Draws the objects that were found into the photo, each with its name and score."""

from __future__ import annotations

import colorsys
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necli.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]
"""ymin, xmin, ymax, xmax, as shares of the height and width."""

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


@dataclass(frozen=True)
class FoundObject:
    name: str
    score: float
    box: Box


def annotate(photo: bytes, objects: Sequence[FoundObject], *, suffix: str) -> bytes:
    """The photo as an image file of the format that `suffix` names, turned as its EXIF data says."""
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB")
    except OSError as exc:
        raise InputError(f"can't read the photo to draw on it: {exc}") from exc
    pen = _Pen(image)
    surest_last = sorted(objects, key=lambda each: each.score)
    for found in surest_last:
        pen.box(found)
    for found in surest_last:
        pen.label(found)
    out = io.BytesIO()
    image.save(out, SUFFIXES[suffix.lower()], quality=90)
    return out.getvalue()


class _Pen:
    """Draws in sizes that suit the photo."""

    def __init__(self, image: Image.Image) -> None:
        from PIL import ImageDraw, ImageFont

        size = max(12, round(min(image.size) / 32))
        self._image = image
        self._draw = ImageDraw.Draw(image)
        self._font = ImageFont.load_default(size)
        self._line = max(2, size // 7)

    def box(self, found: FoundObject) -> None:
        top, left, bottom, right = self._pixels(found.box)
        corners = (left, top, max(left, right), max(top, bottom))
        self._draw.rectangle(corners, outline=_colour(found.name), width=self._line)

    def label(self, found: FoundObject) -> None:
        """Above the box where there is room, else inside it."""
        top, left, _, _ = self._pixels(found.box)
        text = f"{found.name} {found.score:.2f}"
        _, _, width, height = self._draw.textbbox((0, 0), text, font=self._font)
        width, height = width + 4 * self._line, height + 2 * self._line
        x = min(max(left, 0), max(self._image.width - width, 0))
        y = top - height if top >= height else min(top, self._image.height - height)
        self._draw.rectangle((x, y, x + width, y + height), fill=_colour(found.name))
        middle = (x + 2 * self._line, y + height / 2)
        self._draw.text(middle, text, fill="black", font=self._font, anchor="lm")

    def _pixels(self, box: Box) -> Box:
        top, left, bottom, right = box
        width, height = self._image.size
        return top * height, left * width, bottom * height, right * width


def _colour(name: str) -> tuple[int, int, int]:
    """Bright enough for black text, and the same for a class in every photo."""
    hue = zlib.crc32(name.encode()) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.68, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
