"""Images from hostile bytes: any good one is upright RGB, and any other is one kind of error."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from enclave_payload.imaging import DecodedImage, ImageError, decode_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """Red, with a green upper left and a blue lower left corner."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (0, 0, width // 4, height // 4))
    image.paste(BLUE, (0, height - height // 4, width // 4, height))
    return image


def decode(data: bytes, *, max_pixels: int = 1_000_000, input_size: int | None = None) -> DecodedImage:
    return decode_image(data, max_pixels=max_pixels, input_size=input_size)


def corners(image: DecodedImage) -> list[tuple[int, ...]]:
    """The pure colours nearest to the four corners, clockwise from the upper left."""
    at = image.pixels[[1, 1, -2, -2], [1, -2, -2, 1]]
    return [tuple(255 if value > 127 else 0 for value in pixel) for pixel in at]


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large, with next to nothing in it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_format_is_known_by_content(kind: str) -> None:
    image = decode(encoded(picture(), kind))

    assert (image.width, image.height, image.format) == (64, 48, kind)
    assert image.pixels.shape == (48, 64, 3)
    assert image.pixels.dtype == np.uint8
    assert corners(image) == [GREEN, RED, RED, BLUE]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"text called .jpg",
        b"<svg/>",
        b"%PDF-1.4",
        b"RIFF\0\0\0\0WAVE",
        *(signature + bytes(100) for signature in (b"GIF89a", b"BM", b"II*\0", b"\0\0\0\x1cftypavif")),
    ],
)
def test_anything_else_is_not_an_image(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)

    assert caught.value.code == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    whole = encoded(noise, kind)

    with pytest.raises(ImageError) as caught:
        decode(whole[: max(12, int(len(whole) * share))])

    assert caught.value.code == "image_truncated"


def test_a_truncated_progressive_jpeg_is_refused(air_show: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(air_show[: len(air_show) // 2], max_pixels=50_000_000, input_size=512)

    assert caught.value.code == "image_truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_pixel_cap_is_exact(kind: str) -> None:
    data = encoded(picture(100, 10), kind)

    assert decode(data, max_pixels=1000).width == 100
    with pytest.raises(ImageError, match="more than 999 pixels") as caught:
        decode(data, max_pixels=999)
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_a_bomb_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ImageError) as caught:
        decode(png_header(width, height), max_pixels=50_000_000)

    assert caught.value.code == "image_too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_message_says_nothing_about_the_image() -> None:
    with pytest.raises(ImageError) as caught:
        decode(png_header(20_000, 31_337))

    assert "31" not in caught.value.message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture().transpose(undo[orientation]) if orientation > 1 else picture()
    exif = Image.Exif()
    exif[0x0112] = orientation

    image = decode(encoded(stored, kind, exif=exif))

    assert (image.width, image.height) == (64, 48)
    assert image.pixels.shape == (48, 64, 3)
    assert corners(image) == [GREEN, RED, RED, BLUE]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_unreadable_metadata_costs_only_itself(exif: bytes) -> None:
    assert corners(decode(encoded(picture(), "JPEG", exif=exif))) == [GREEN, RED, RED, BLUE]


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpegs_of_other_colour_spaces_become_rgb(mode: str) -> None:
    image = decode(encoded(picture().convert(mode), "JPEG"))

    assert image.pixels.shape == (48, 64, 3)
    if mode == "CMYK":
        assert corners(image) == [GREEN, RED, RED, BLUE]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_pngs_of_other_modes_become_rgb(mode: str) -> None:
    assert decode(encoded(picture().convert(mode), "PNG")).pixels.shape == (48, 64, 3)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16))

    pixels = decode(encoded(ramp, "PNG")).pixels[..., 0].ravel()

    assert pixels[0] == 0
    assert pixels[-1] == 255
    assert 120 <= pixels[128] <= 136


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_white(kind: str) -> None:
    image = decode(
        encoded(
            Image.new("RGBA", (8, 8), (10, 200, 30, 0)), kind, **({"exact": True} if kind == "WEBP" else {})
        )
    )

    assert np.all(image.pixels == 255)


def test_a_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([10, 200, 30] * 256)

    assert np.all(decode(encoded(image, "PNG", transparency=0)).pixels == 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)

    assert tuple(decode(data).pixels[4, 4]) == RED


def test_a_phones_jpeg_with_more_pictures_in_it_is_a_jpeg() -> None:
    data = encoded(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))])

    image = decode(data)

    assert image.format == "JPEG"
    assert corners(image) == [GREEN, RED, RED, BLUE]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_large_image_is_reduced_but_keeps_more_than_the_detector_needs(kind: str) -> None:
    image = decode(encoded(picture(4000, 1000), kind), max_pixels=4_000_000, input_size=512)

    assert (image.width, image.height) == (4000, 1000)
    height, width, _ = image.pixels.shape
    assert 1.5 * 512 <= width < 2 * 1.5 * 512
    assert width / height == pytest.approx(4, rel=0.01)
    assert corners(image) == [GREEN, RED, RED, BLUE]


def test_an_image_of_the_detectors_size_is_kept_as_it_is() -> None:
    assert decode(encoded(picture(1000, 600), "PNG"), input_size=512).pixels.shape == (600, 1000, 3)


def test_a_sliver_survives_reduction() -> None:
    image = decode(encoded(Image.new("RGB", (20_000, 1), RED), "JPEG"), input_size=512)

    assert (image.width, image.height) == (20_000, 1)
    assert image.pixels.shape[0] == 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_damage_never_ends_in_anything_but_an_image_error(kind: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = bytearray(encoded(picture(), kind, exif=exif))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(len(damaged) // 2, len(damaged))) :]

    with suppress(ImageError):
        image = decode(bytes(damaged), max_pixels=100_000, input_size=data.draw(st.sampled_from([None, 16])))
        assert image.pixels.shape[2] == 3
        assert image.width * image.height <= 100_000


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBP"]), st.binary(max_size=300)
)
def test_a_signature_with_anything_behind_it_is_answered(signature: bytes, rest: bytes) -> None:
    with pytest.raises(ImageError):
        decode(signature + rest)
