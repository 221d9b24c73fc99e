"""The layout of an enclave image file (EIF): its header, its table of sections, their own headers.

All integers are big-endian. The header (548 bytes) lists offset and size of up to 32 sections, which follow
one after the other; each begins with a header of 12 bytes that repeats its size. The CRC32 covers the whole
file but itself. Source: the specification in aws-nitro-enclaves-image-format 0.8.1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from necli.errors import InputError

MAGIC = b".eif"
VERSION = 4
SUPPORTED_VERSIONS = (2, 3, 4)
"""Earlier ones were never published; 3 added the signature, 4 made the metadata mandatory."""

MAX_SECTIONS = 32
MAX_SIGNATURE_BYTES = 32768
MAX_METADATA_BYTES = 1 << 20
"""Our own bound: what `docker image inspect` says of an image takes some kilobytes."""

_HEADER = struct.Struct(f">4sHHQQHH{MAX_SECTIONS}Q{MAX_SECTIONS}QII")
_SECTION_HEADER = struct.Struct(">HHQ")
HEADER_SIZE = _HEADER.size
CRC_OFFSET = HEADER_SIZE - 4
SECTION_HEADER_SIZE = _SECTION_HEADER.size

_ARCHITECTURES = ("x86_64", "aarch64")


class InvalidEif(InputError):
    """The file isn't an EIF, or is damaged, or contradicts itself."""

    def __init__(self, message: str, *, hint: str | None = "copy the image again, or build it anew") -> None:
        super().__init__(message, hint=hint, code="invalid_eif")


class SectionType(IntEnum):
    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5

    @property
    def is_measured(self) -> bool:
        return self in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK)


@dataclass(frozen=True)
class Section:
    """One section; `offset` and `size` are those of its data, without the section's header."""

    type: SectionType
    flags: int
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    architecture: str
    default_memory_bytes: int
    default_cpus: int
    extents: tuple[tuple[int, int], ...]
    """Of each section: the offset of its header, and the size of its data."""
    crc32: int = 0
    version: int = VERSION

    def pack(self) -> bytes:
        unused = (0,) * (MAX_SECTIONS - len(self.extents))
        return _HEADER.pack(
            MAGIC,
            self.version,
            _ARCHITECTURES.index(self.architecture),
            self.default_memory_bytes,
            self.default_cpus,
            0,
            len(self.extents),
            *(offset for offset, _ in self.extents),
            *unused,
            *(size for _, size in self.extents),
            *unused,
            0,
            self.crc32,
        )

    @classmethod
    def parse(cls, raw: bytes, *, file_size: int) -> Header:
        """Read the header of a file of `file_size` bytes, which its sections must fill exactly.

        :raises InvalidEif: wrong magic or version, or a table that doesn't fit the file.
        """
        if not raw.startswith(MAGIC):
            raise InvalidEif(f"it begins with {raw[:4]!r}, not with {MAGIC!r}", hint="name an .eif file")
        if len(raw) < HEADER_SIZE:
            raise InvalidEif(f"it ends at offset {len(raw)}, within the header of {HEADER_SIZE} bytes")
        _, version, flags, memory, cpus, _, count, *table, _, crc32 = _HEADER.unpack(raw)
        if version not in SUPPORTED_VERSIONS:
            raise InvalidEif(f"its version (offset 4) is {version}, which this necli doesn't know")
        if not 2 <= count <= MAX_SECTIONS:
            raise InvalidEif(f"its section count (offset 26) is {count}, not between 2 and {MAX_SECTIONS}")
        extents = tuple(zip(table[:MAX_SECTIONS], table[MAX_SECTIONS:], strict=True))
        if any(extent != (0, 0) for extent in extents[count:]):
            raise InvalidEif(f"its section count (offset 26) is {count}, but its table lists more")
        _check_extents(extents[:count], file_size)
        return cls(_ARCHITECTURES[flags & 1], memory, cpus, extents[:count], crc32, version)


def _check_extents(extents: Sequence[tuple[int, int]], file_size: int) -> None:
    end = HEADER_SIZE
    for index, (offset, size) in enumerate(extents):
        if offset != end:
            fault = "overlaps what stands before it" if offset < end else "leaves a gap before it"
            raise InvalidEif(f"section {index} at offset {offset} {fault}: it must begin at {end}")
        end = offset + SECTION_HEADER_SIZE + size
        if end > file_size:
            raise InvalidEif(
                f"section {index} at offset {offset} should end at {end}, but the file ends at {file_size}"
            )
    if end < file_size:
        raise InvalidEif(f"{file_size - end} bytes follow its last section, from offset {end} on")


def pack_section_header(kind: SectionType, size: int) -> bytes:
    return _SECTION_HEADER.pack(kind, 0, size)


def parse_section_header(raw: bytes, *, index: int, offset: int, size: int) -> Section:
    """Read the header of section `index`, which the table puts at `offset` with `size` bytes of data.

    :raises InvalidEif: unknown type, or a size that isn't the table's.
    """
    kind, flags, own_size = _SECTION_HEADER.unpack(raw)
    if kind not in SectionType._value2member_map_:
        raise InvalidEif(f"section {index} at offset {offset} has the unknown type {kind}")
    if own_size != size:
        raise InvalidEif(
            f"section {index} at offset {offset} says it has {own_size} bytes,"
            f" but the header's table says {size}"
        )
    return Section(SectionType(kind), flags, offset + SECTION_HEADER_SIZE, size)


def check_order(kinds: Sequence[SectionType], version: int) -> None:
    """Refuse a set of sections that isn't a bootable image, or isn't measured in the usual order.

    The specification lets the command line stand anywhere. No tool writes it elsewhere than behind the
    kernel, and the order decides the measurements, so any other is refused.

    :raises InvalidEif: a section is missing, doubled or out of order.
    """
    for kind in SectionType:
        mandatory = kind in (SectionType.KERNEL, SectionType.CMDLINE) or (
            kind is SectionType.METADATA and version >= VERSION
        )
        if mandatory and kind not in kinds:
            raise InvalidEif(f"it has no {kind.name.lower()} section")
        if kind is not SectionType.RAMDISK and kinds.count(kind) > 1:
            raise InvalidEif(f"it has {kinds.count(kind)} {kind.name.lower()} sections, where one is allowed")
    measured = [kind for kind in kinds if kind.is_measured]
    if measured != sorted(measured):
        names = ", ".join(kind.name.lower() for kind in measured)
        raise InvalidEif(
            f"its sections are in the wrong order ({names}): kernel, cmdline, ramdisks it must be"
        )
