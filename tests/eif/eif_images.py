"""Enclave images made by hand, byte by byte: the tests' own idea of the format, independent of necli's."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5
HEADER_SIZE = 548

METADATA_JSON = {
    "ImageName": "hello",
    "ImageVersion": "1.2",
    "BuildMetadata": {
        "BuildTime": "2026-11-01T10:00:00+00:00",
        "BuildTool": "by hand",
        "BuildToolVersion": "0",
        "OperatingSystem": "Linux",
        "KernelVersion": "6.1",
    },
    "DockerInfo": {"RepoTags": ["hello:latest"]},
    "CustomMetadata": {"team": "red"},
}
METADATA_BYTES = json.dumps(METADATA_JSON).encode()
SECTIONS = (
    (KERNEL, b"a kernel"),
    (CMDLINE, b"console=ttyS0"),
    (METADATA, METADATA_BYTES),
    (RAMDISK, b"init" * 10),
    (RAMDISK, b"application" * 30),
    (RAMDISK, b"model" * 50),
)


def image(sections: Sequence[tuple[int, bytes]] = SECTIONS, *, version: int = 4, flags: int = 0) -> bytes:
    """A whole file with a right checksum."""
    offsets, body = [], b""
    for kind, data in sections:
        offsets.append(HEADER_SIZE + len(body))
        body += struct.pack(">HHQ", kind, 0, len(data)) + data
    return checksummed(
        struct.pack(">4sHHQQHH", b".eif", version, flags, 1 << 30, 2, 0, len(sections))
        + _table(offsets)
        + _table([len(data) for _, data in sections])
        + bytes(8)
        + body
    )


def _table(values: Sequence[int]) -> bytes:
    return struct.pack(">32Q", *values, *(0 for _ in range(32 - len(values))))


def checksummed(raw: bytes) -> bytes:
    """The same file with the checksum that belongs to its bytes: what a liar would write."""
    crc32 = zlib.crc32(raw[548:], zlib.crc32(raw[:544]))
    return raw[:544] + crc32.to_bytes(4) + raw[548:]


def with_field(raw: bytes, offset: int, form: str, value: int) -> bytes:
    """The file with one integer replaced, and the checksum made right again."""
    field = struct.pack(form, value)
    return checksummed(raw[:offset] + field + raw[offset + len(field) :])


def offset_field(section: int) -> int:
    return 0x1C + 8 * section


def size_field(section: int) -> int:
    return 0x11C + 8 * section


def pcr(*parts: bytes) -> bytes:
    """A register as the specification gives it: SHA-384 of 48 zeros and the SHA-384 of the parts."""
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(parts)).digest()).digest()
