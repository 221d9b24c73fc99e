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
    from PIL import Image, ImageDraw, ImageFont

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
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB")
    except OSError as exc:
        raise InputError(f"can't read the photo to draw on it: {exc}") from exc
    size = max(12, round(min(image.size) / 32))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size)
    for found in sorted(objects, key=lambda each: each.score):  # the surest on top
        _draw(pen, image, found, font, line=max(2, size // 7))
    out = io.BytesIO()
    image.save(out, SUFFIXES[suffix.lower()], quality=90)
    return out.getvalue()


def _draw(
    pen: ImageDraw.ImageDraw,
    image: Image.Image,
    found: FoundObject,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    line: int,
) -> None:
    top, left, bottom, right = (
        share * length for share, length in zip(found.box, (image.height, image.width) * 2, strict=True)
    )
    colour = _colour(found.name)
    pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
    text = f"{found.name} {found.score:.2f}"
    _, _, width, height = pen.textbbox((0, 0), text, font=font)
    width, height = width + 4 * line, height + 2 * line
    x = min(max(left, 0), max(image.width - width, 0))
    y = top - height if top >= height else min(top, image.height - height)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + 2 * line, y + line / 2), text, fill="black", font=font)


def _colour(name: str) -> tuple[int, int, int]:
    """Bright enough for black text, and the same for a class in every photo."""
    hue = zlib.crc32(name.encode()) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.62, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
