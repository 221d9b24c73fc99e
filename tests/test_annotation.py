from __future__ import annotations

import io

import pytest
from PIL import Image

from necli.annotation import FoundObject, annotate
from necli.errors import InputError


def photo(size: tuple[int, int] = (400, 300), *, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    out = io.BytesIO()
    Image.new("RGB", size, "black").save(out, "JPEG", exif=exif)
    return out.getvalue()


def drawn(data: bytes, *objects: FoundObject, suffix: str = ".png") -> Image.Image:
    return Image.open(io.BytesIO(annotate(data, objects, suffix=suffix)))


def test_a_box_is_drawn_where_the_object_is() -> None:
    image = drawn(photo(), FoundObject("cat", 0.5, (0.25, 0.25, 0.75, 0.75))).convert("RGB")
    assert image.getpixel((100, 150)) != (0, 0, 0)
    assert image.getpixel((299, 150)) != (0, 0, 0)
    assert image.getpixel((200, 150)) == (0, 0, 0)


def test_the_photo_is_turned_as_the_enclave_turned_it() -> None:
    assert drawn(photo((400, 300), orientation=6)).size == (300, 400)


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".PNG", "PNG"), (".webp", "WEBP")])
def test_the_format_follows_the_name(suffix: str, kind: str) -> None:
    assert drawn(photo(), suffix=suffix).format == kind


@pytest.mark.parametrize("box", [(0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0), (0.9, 0.95, 0.8, 0.7)])
def test_boxes_at_the_edge_or_without_area_are_drawn_too(box: tuple[float, float, float, float]) -> None:
    assert drawn(
        photo((40, 30)), FoundObject("a long label that is wider than the photo", 1.0, box)
    ).size == (40, 30)


def test_what_is_no_photo_is_told() -> None:
    with pytest.raises(InputError, match="can't read the photo"):
        annotate(b"GIF89a nothing", [], suffix=".jpg")
