"""Images, good ones and such as are damaged or lie."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from necli.eif import EifImage, InvalidEif, SectionType, measure_eif, read_eif
from necli.errors import InputError
from tests.eif.eif_images import (
    CMDLINE,
    HEADER_SIZE,
    KERNEL,
    METADATA,
    METADATA_BYTES,
    METADATA_JSON,
    RAMDISK,
    SECTIONS,
    SIGNATURE,
    checksummed,
    image,
    offset_field,
    pcr,
    size_field,
    with_field,
)

GOOD = image()


@pytest.fixture
def read(tmp_path: Path):
    def read(raw: bytes) -> EifImage:
        path = tmp_path / "image.eif"
        path.write_bytes(raw)
        return read_eif(path)

    return read


def test_every_register_covers_the_sections_that_the_specification_says(read):
    kernel, cmdline, _, init, application, model = (data for _, data in SECTIONS)
    measured = read(GOOD).measurements
    assert measured.pcr0 == pcr(kernel, cmdline, init, application, model)
    assert measured.pcr1 == pcr(kernel, cmdline, init)
    assert measured.pcr2 == pcr(application, model)
    assert measured.pcr8 is None


def test_with_one_ramdisk_nothing_is_left_for_pcr2(read):
    measured = read(image(SECTIONS[:4])).measurements
    assert measured.pcr0 == measured.pcr1 == pcr(b"a kernel", b"console=ttyS0", b"init" * 10)
    assert measured.pcr2 == pcr(b"")


def test_the_metadata_is_not_measured(read):
    other = json.dumps({**METADATA_JSON, "ImageName": "another"}).encode()
    sections = [(kind, other if kind == METADATA else data) for kind, data in SECTIONS]
    assert read(image(sections)).measurements == read(GOOD).measurements


def test_what_the_header_says_can_be_read(read):
    eif = read(image(flags=1))
    assert eif.header.architecture == "aarch64"
    assert (eif.header.version, eif.header.default_memory_bytes, eif.header.default_cpus) == (4, 1 << 30, 2)
    assert [section.type for section in eif.sections] == [kind for kind, _ in SECTIONS]
    assert eif.metadata == METADATA_JSON


def test_a_section_is_a_stream_of_its_own_bytes(read):
    eif = read(GOOD)
    for section, (_, data) in zip(eif.sections, SECTIONS, strict=True):
        with eif.open_section(section) as stream:
            assert stream.read(3) + stream.read() == data
    with eif.open_section(eif.section(SectionType.CMDLINE)) as stream:
        assert io.TextIOWrapper(stream).read() == "console=ttyS0"
    assert len(eif.ramdisks) == 3


def test_an_image_changed_after_it_was_measured_is_not_opened(read):
    eif = read(GOOD)
    eif.path.write_bytes(image([*SECTIONS[:-1], (RAMDISK, b"evil!" * 50)]))
    with pytest.raises(InvalidEif, match="was changed after it was measured"):
        eif.open_section(eif.ramdisks[-1])


def test_images_of_versions_2_and_3_need_no_metadata(read):
    sections = [(kind, data) for kind, data in SECTIONS if kind != METADATA]
    for version in (2, 3):
        eif = read(image(sections, version=version))
        assert eif.metadata is None
        assert eif.measurements == read(GOOD).measurements


def test_metadata_may_stand_behind_the_ramdisks(read):
    sections = [*(section for section in SECTIONS if section[0] != METADATA), (METADATA, METADATA_BYTES)]
    assert read(image(sections)).measurements == read(GOOD).measurements


def test_sections_larger_than_a_chunk_are_measured_whole(read):
    kernel, init, application = b"k" * 1_500_000, b"i" * 2_100_000, b"a" * 4_194_304
    sections = ((KERNEL, kernel), (CMDLINE, b""), SECTIONS[2], (RAMDISK, init), (RAMDISK, application))
    measured = read(image(sections)).measurements
    assert measured.pcr0 == pcr(kernel, init, application)
    assert measured.pcr1 == pcr(kernel, init)
    assert measured.pcr2 == pcr(application)


LIES = {
    "an empty file": (b"", "begins with b''"),
    "another kind of file": (b"PK\x03\x04" + GOOD[4:], r"begins with b'PK\\x03\\x04', not with b'.eif'"),
    "a file that ends in its header": (GOOD[:500], "ends at offset 500, within the header of 548 bytes"),
    "a file that ends in its last section": (
        GOOD[:-1],
        rf"section 5 at offset \d+ should end at {len(GOOD)}, but the file ends at {len(GOOD) - 1}",
    ),
    "trailing garbage": (
        checksummed(GOOD + b"?"),
        f"1 bytes follow its last section, from offset {len(GOOD)}",
    ),
    "a version from the future": (with_field(GOOD, 4, ">H", 5), r"version \(offset 4\) is 5"),
    "a version that was never published": (with_field(GOOD, 4, ">H", 1), r"version \(offset 4\) is 1"),
    "no sections": (with_field(GOOD, 26, ">H", 0), r"section count \(offset 26\) is 0"),
    "more sections than the table holds": (with_field(GOOD, 26, ">H", 33), r"\(offset 26\) is 33"),
    "a count one too high": (with_field(GOOD, 26, ">H", 7), "section 6 at offset 0 overlaps"),
    "a count one too low": (with_field(GOOD, 26, ">H", 5), "count .* is 5, but its table lists more"),
    "overlapping sections": (
        with_field(GOOD, offset_field(1), ">Q", HEADER_SIZE + 3),
        "section 1 at offset 551 overlaps what stands before it: it must begin at 568",
    ),
    "a gap between sections": (
        with_field(GOOD, offset_field(1), ">Q", 569),
        "section 1 at offset 569 leaves a gap before it",
    ),
    "an offset beyond 2 to the 63": (
        with_field(GOOD, offset_field(5), ">Q", (1 << 64) - 1),
        "section 5 at offset 18446744073709551615 leaves a gap",
    ),
    "a size beyond the file": (
        with_field(GOOD, size_field(5), ">Q", 1 << 40),
        "section 5 .* but the file ends at",
    ),
    "a size that wraps around": (
        with_field(GOOD, size_field(0), ">Q", (1 << 64) - 12),
        "section 0 .* but the file ends at",
    ),
    "a section's own size that isn't the table's": (
        with_field(GOOD, HEADER_SIZE + 4, ">Q", 7),
        "section 0 at offset 548 says it has 7 bytes, but the header's table says 8",
    ),
    "a section of no type": (with_field(GOOD, HEADER_SIZE, ">H", 0), "section 0 .* unknown type 0"),
    "a section of an unknown type": (with_field(GOOD, HEADER_SIZE, ">H", 6), "section 0 .* unknown type 6"),
    "no kernel": (with_field(GOOD, HEADER_SIZE, ">H", RAMDISK), "has no kernel section"),
    "two kernels": (image([SECTIONS[0], *SECTIONS]), "has 2 kernel sections"),
    "no command line": (image([SECTIONS[0], *SECTIONS[2:]]), "has no cmdline section"),
    "two command lines": (image([*SECTIONS[:2], *SECTIONS[1:]]), "has 2 cmdline sections"),
    "no metadata": (image([*SECTIONS[:2], *SECTIONS[3:]]), "has no metadata section"),
    "metadata twice": (image([*SECTIONS, SECTIONS[2]]), "has 2 metadata sections"),
    "a ramdisk before the kernel": (
        image([SECTIONS[3], *SECTIONS[:3]]),
        "in the wrong order .ramdisk, kernel",
    ),
    "a command line before the kernel": (
        image([SECTIONS[1], SECTIONS[0], *SECTIONS[2:]]),
        "in the wrong order .cmdline, kernel",
    ),
    "metadata too large": (
        image([*SECTIONS[:2], (METADATA, b" " * (1 << 20) + METADATA_BYTES), *SECTIONS[3:]]),
        r"metadata section at offset 605 has \d+ bytes; 1048576 are allowed",
    ),
    "a signature too large": (
        image([*SECTIONS, (SIGNATURE, bytes(32769))]),
        r"signature section at offset \d+ has 32769 bytes; 32768 are allowed",
    ),
    "a signature that isn't CBOR": (
        image([*SECTIONS, (SIGNATURE, b"\xff")]),
        "signature section can't be read",
    ),
}


@pytest.mark.parametrize(("raw", "fault"), LIES.values(), ids=LIES)
def test_an_image_is_refused_that_is(raw: bytes, fault: str, read):
    with pytest.raises(InvalidEif, match=fault) as refusal:
        read(raw)
    assert refusal.value.message.startswith(str(Path("/")))
    assert refusal.value.hint
    assert refusal.value.code == "invalid_eif"


def _with_metadata(metadata: bytes) -> bytes:
    return image([*SECTIONS[:2], (METADATA, metadata), *SECTIONS[3:]])


BAD_METADATA = {
    "nothing": b"",
    "half of it": METADATA_BYTES[:-10],
    "not UTF-8": METADATA_BYTES.replace(b"hello", b"h\xffllo"),
    "UTF-16": METADATA_BYTES.decode().encode("utf-16"),
    "half a surrogate pair": METADATA_BYTES.replace(b"hello", rb"\ud800"),
    "not a number": METADATA_BYTES.replace(b'"1.2"', b"NaN"),
    "a number of many digits": METADATA_BYTES.replace(b'"red"', b"1" * 10_000),
    "nesting without end": b"[" * 500_000,
    "a list": b"[]",
    "null": b"null",
    "no name": json.dumps({**METADATA_JSON, "ImageName": None}).encode(),
    "no build metadata": json.dumps({**METADATA_JSON, "BuildMetadata": []}).encode(),
    "no build time": json.dumps({**METADATA_JSON, "BuildMetadata": {"BuildTool": "x"}}).encode(),
    "no Docker info": METADATA_BYTES.replace(b"DockerInfo", b"Dockerinfo"),
}


@pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
def test_an_image_is_refused_whose_metadata_is(metadata: bytes, read):
    with pytest.raises(InvalidEif, match=r"metadata|BuildMetadata"):
        read(_with_metadata(metadata))


@pytest.mark.parametrize("offset", range(0, len(GOOD), 7))
def test_one_flipped_bit_is_found_wherever_it_is(offset: int, read):
    flipped = bytearray(GOOD)
    flipped[offset] ^= 1 << offset % 8
    with pytest.raises(InvalidEif):
        read(bytes(flipped))


def test_flipped_data_is_named_as_a_wrong_checksum(read):
    with pytest.raises(InvalidEif, match=r"its checksum \(offset 544\) is [0-9a-f]{8}, but its bytes give"):
        read(GOOD.replace(b"model", b"medel"))


@pytest.mark.parametrize("length", range(0, len(GOOD), 11))
def test_a_truncated_image_is_refused_wherever_it_ends(length: int, read):
    with pytest.raises(InvalidEif):
        read(GOOD[:length])


_positions = st.integers(0, len(GOOD) - 1)


@given(st.dictionaries(_positions, st.integers(0, 255), min_size=1, max_size=8), st.integers(-40, 40))
@example({26: 0, 27: 2}, 0)
def test_a_liar_with_a_right_checksum_gets_an_answer_and_never_an_exception(tmp_path_factory, changes, tail):
    lie = bytearray(GOOD)
    for position, value in changes.items():
        lie[position] = value
    lie = lie[:tail] if tail < 0 else lie + bytes(tail)
    path = tmp_path_factory.getbasetemp() / "lie.eif"
    path.write_bytes(checksummed(bytes(lie)))
    try:
        eif = read_eif(path)
    except InvalidEif:
        return
    assert sum(12 + section.size for section in eif.sections) + HEADER_SIZE == len(lie)


@given(st.binary(max_size=700))
def test_any_bytes_at_all_get_an_answer(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any.eif"
    for content in (raw, b".eif" + raw, GOOD[:HEADER_SIZE] + raw, GOOD[:28] + raw):
        path.write_bytes(content)
        with pytest.raises(InvalidEif):
            read_eif(path)


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: None, lambda path: path.symlink_to(path)]
)
def test_what_is_no_file_is_refused_without_waiting(make, tmp_path: Path):
    make(tmp_path / "thing")
    with pytest.raises(InputError, match="thing"):
        measure_eif(tmp_path / "thing")
