"""Reads an enclave image file: checks everything that it claims and measures its bytes, in one pass."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

from necli.eif.layout import (
    CRC_OFFSET,
    HEADER_SIZE,
    MAX_METADATA_BYTES,
    MAX_SIGNATURE_BYTES,
    SECTION_HEADER_SIZE,
    Header,
    InvalidEif,
    Section,
    SectionType,
    check_order,
    parse_section_header,
)
from necli.eif.measuring import StreamMeasurer, read_chunks
from necli.eif.metadata import parse_metadata
from necli.eif.signature import ImageSignature, parse_signature
from necli.errors import InputError
from necli.measurements import Measurements

_KEPT = {SectionType.METADATA: MAX_METADATA_BYTES, SectionType.SIGNATURE: MAX_SIGNATURE_BYTES}
"""The sections that are parsed, not only measured, and so must fit in memory."""


@dataclass(frozen=True)
class EifImage:
    """An image that was read to its end, found sound, and measured."""

    path: Path
    header: Header
    sections: tuple[Section, ...]
    measurements: Measurements
    metadata: Mapping[str, Any] | None
    """None only before version 4 of the format."""
    signature: ImageSignature | None
    _identity: tuple[int, ...]

    @property
    def ramdisks(self) -> list[Section]:
        return [section for section in self.sections if section.type is SectionType.RAMDISK]

    def section(self, kind: SectionType) -> Section:
        """The only section of its kind: kernel or command line, which every image has."""
        return next(section for section in self.sections if section.type is kind)

    def open_section(self, section: Section) -> BinaryIO:
        """A stream of the section's data.

        :raises InvalidEif: the file isn't the one that was measured any more.
        """
        file = _open(self.path)
        if _identity(os.fstat(file.fileno())) != self._identity:
            file.close()
            raise InvalidEif(f"{self.path} was changed after it was measured")
        return io.BufferedReader(_SectionStream(file, section))


def read_eif(path: Path) -> EifImage:
    """Read and measure an image in constant memory.

    :raises InvalidEif: it is damaged, or contradicts itself; the message names the offset or the section.
    :raises InputError: there is no such file, or it can't be read.
    """
    with _open(path) as file:
        try:
            return _read(path, file)
        except EOFError:
            raise InvalidEif(f"{path} was cut off while it was read") from None
        except InvalidEif as exc:
            raise InvalidEif(f"{path} isn't a valid EIF: {exc.message}", hint=exc.hint) from exc
        except OSError as exc:
            raise InputError(f"can't read {path}: {exc.strerror}") from exc


def measure_eif(path: Path) -> Measurements:
    """Only the measurements of an image, which is checked all the same; raises as `read_eif`."""
    return read_eif(path).measurements


def _open(path: Path) -> IO[bytes]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise InputError(f"{path} isn't a regular file", hint="name an .eif file")
        return path.open("rb", buffering=0)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise InputError(f"can't open {path}: {reason}", hint="name an .eif file") from exc


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path, file: IO[bytes]) -> EifImage:
    status = os.fstat(file.fileno())
    raw_header = file.read(HEADER_SIZE)
    header = Header.parse(raw_header, file_size=status.st_size)
    sections: list[Section] = []
    kept: dict[SectionType, bytes] = {}
    with StreamMeasurer() as measurer:
        measurer.update(raw_header[:CRC_OFFSET])
        for index, (offset, size) in enumerate(header.extents):
            raw = b"".join(read_chunks(file, SECTION_HEADER_SIZE))
            section = parse_section_header(raw, index=index, offset=offset, size=size)
            sections.append(section)
            measurer.update(raw)
            _read_section(file, section, measurer, kept)
        measurements, crc32 = measurer.result()
    check_order([section.type for section in sections], header.version)
    if crc32 != header.crc32:
        raise InvalidEif(
            f"its checksum (offset {CRC_OFFSET}) is {header.crc32:08x}, but its bytes give {crc32:08x}"
        )
    metadata, signature = kept.get(SectionType.METADATA), kept.get(SectionType.SIGNATURE)
    signed = None if signature is None else parse_signature(signature, pcr0=measurements.pcr0)
    return EifImage(
        path=path,
        header=header,
        sections=tuple(sections),
        measurements=replace(measurements, pcr8=signed.certificate.pcr8) if signed else measurements,
        metadata=None if metadata is None else parse_metadata(metadata),
        signature=signed,
        _identity=_identity(status),
    )


def _read_section(
    file: IO[bytes], section: Section, measurer: StreamMeasurer, kept: dict[SectionType, bytes]
) -> None:
    keep = section.type in _KEPT
    if keep and section.size > _KEPT[section.type]:
        raise InvalidEif(
            f"its {section.type.name.lower()} section at offset {section.offset} has {section.size} bytes;"
            f" {_KEPT[section.type]} are allowed"
        )
    chunks = []
    measurer.begin_section(section.type)
    for chunk in read_chunks(file, section.size):
        measurer.update(chunk)
        if keep:
            chunks.append(chunk)
    measurer.end_section()
    if keep:
        kept[section.type] = b"".join(chunks)


class _SectionStream(io.RawIOBase):
    """The bytes of one section, and no others."""

    def __init__(self, file: IO[bytes], section: Section) -> None:
        self._file = file
        self._left = section.size
        file.seek(section.offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
