"""The user's photos: told apart by content, and drawn into without leaving the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from necli.errors import InputError
from necli.images import SUFFIXES, FoundObject, annotate, encode_photo, photo_format

GREY = (128, 128, 128)


def photo(width: int = 400, height: int = 300, *, kind: str = "PNG", orientation: int = 1) -> bytes:
    image = Image.new("RGB", (width, height), GREY)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif)
    return out.getvalue()


def touched(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what was drawn onto grey."""
    changed = np.any(np.asarray(image) != GREY, axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_is_known_by_its_content(kind: str) -> None:
    assert photo_format(photo(kind=kind)) == kind


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"GIF89a", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_photo_is_told(content: bytes) -> None:
    assert photo_format(content) is None


def test_a_box_and_its_label_are_drawn_where_they_belong() -> None:
    left, top, right, bottom = touched(annotate(photo(), [FoundObject("cat", 0.5, (0.5, 0.25, 0.75, 0.5))]))

    assert abs(left - 100) <= 2
    assert 120 < top < 150  # the label, above
    assert abs(right - 200) <= 2
    assert abs(bottom - 225) <= 2


def test_the_photo_itself_stays_as_it_is() -> None:
    assert np.array_equal(np.asarray(annotate(photo(), [])), np.full((300, 400, 3), 128))


def test_classes_have_colours_of_their_own() -> None:
    boxes = [(0.5, share, 0.9, share + 0.15) for share in (0.0, 0.2, 0.4, 0.6, 0.8)]
    found = [FoundObject(name, 0.5, box) for name, box in zip("abcda", boxes, strict=True)]
    image = annotate(photo(1000, 1000), found)

    # The middle of each box's left line.
    colours = [image.getpixel((max(1, round(box[1] * 999) + 1), 800)) for box in boxes]
    assert len(set(colours)) == 4
    assert colours[0] == colours[4]


def test_lines_and_letters_grow_with_the_photo() -> None:
    found = [FoundObject("cat", 0.5, (0.5, 0.25, 0.75, 0.5))]
    small, large = (touched(annotate(photo(side, side), found)) for side in (400, 2000))

    small_label, large_label = 200 - small[1], 1000 - large[1]
    assert large_label > 2.5 * small_label


def test_labels_of_crowded_objects_do_not_cover_each_other() -> None:
    crowd = [FoundObject("person", score, (0.3, 0.3, 0.7, 0.7)) for score in (0.9, 0.8, 0.7)]
    one, three = (np.asarray(annotate(photo(), objects)) for objects in (crowd[:1], crowd))

    drawn = [np.any(image != GREY, axis=2).sum() for image in (one, three)]
    assert drawn[1] > 1.5 * drawn[0]


def test_a_photo_is_turned_upright_before_it_is_drawn_into() -> None:
    assert annotate(photo(400, 300, kind="JPEG", orientation=6), []).size == (300, 400)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.lists(st.tuples(*[st.floats(-1, 2)] * 4), max_size=5),
    st.text(max_size=60),
)
def test_no_box_and_no_name_is_too_odd(
    size: tuple[int, int], boxes: list[tuple[float, float, float, float]], name: str
) -> None:
    image = annotate(photo(*size), [FoundObject(name, 0.5, box) for box in boxes])

    assert image.size == size


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_photo_that_cannot_be_decoded_is_an_input_error(share: float) -> None:
    whole = photo(kind="JPEG")

    with pytest.raises(InputError, match="can't be decoded"):
        annotate(whole[: int(len(whole) * share)], [])


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG"])
def test_the_suffix_names_the_format(suffix: str) -> None:
    assert photo_format(encode_photo(annotate(photo(), []), suffix)) == SUFFIXES[suffix.lower()]
