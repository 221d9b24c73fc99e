"""Writes an enclave image file as nitro-cli does: kernel, command line, metadata, ramdisks."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from necli.eif.layout import (
    CRC_OFFSET,
    HEADER_SIZE,
    MAX_SECTIONS,
    SECTION_HEADER_SIZE,
    Header,
    SectionType,
    pack_section_header,
)
from necli.eif.measuring import StreamMeasurer, read_chunks
from necli.eif.metadata import pack_metadata
from necli.errors import InputError
from necli.home import host_errors
from necli.measurements import Measurements

Source = bytes | Path
DEFAULT_MEMORY_BYTES = 1 << 30
DEFAULT_CPUS = 2


def write_eif(
    path: Path,
    *,
    kernel: Source,
    cmdline: str,
    ramdisks: Sequence[Source],
    metadata: Mapping[str, Any],
    arch: str = "x86_64",
    default_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    default_cpus: int = DEFAULT_CPUS,
) -> Measurements:
    """Write an unsigned image, whole or not at all, and measure it on the way.

    `metadata` has the shape that `image_metadata` gives; `arch` is x86_64 or aarch64.

    :raises InputError: the sections don't fit the format, or a file can't be read.
    :raises HostError: the image can't be written.
    """
    if "\0" in cmdline:
        raise InputError("the kernel command line holds a NUL character")
    if 3 + len(ramdisks) > MAX_SECTIONS:
        raise InputError(f"{len(ramdisks)} ramdisks are too many: an EIF has {MAX_SECTIONS} sections at most")
    with ExitStack() as files:
        sections = [
            (SectionType.KERNEL, *_open(files, kernel)),
            (SectionType.CMDLINE, *_open(files, cmdline.encode())),
            (SectionType.METADATA, *_open(files, pack_metadata(metadata))),
            *((SectionType.RAMDISK, *_open(files, ramdisk)) for ramdisk in ramdisks),
        ]
        extents = tuple(_extents([size for _, _, size in sections]))
        header = Header(arch, default_memory_bytes, default_cpus, extents)
        with host_errors(f"can't write {path}"), _replacing(path) as file:
            return _write(file, header, sections)


def _open(files: ExitStack, source: Source) -> tuple[IO[bytes], int]:
    if isinstance(source, bytes):
        return io.BytesIO(source), len(source)
    try:
        file = files.enter_context(source.open("rb", buffering=0))
        return file, os.fstat(file.fileno()).st_size
    except OSError as exc:
        raise InputError(f"can't read {source}: {exc.strerror}") from exc


def _extents(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    offset = HEADER_SIZE
    for size in sizes:
        yield offset, size
        offset += SECTION_HEADER_SIZE + size


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when everything is on the disk."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _write(
    file: IO[bytes], header: Header, sections: Sequence[tuple[SectionType, IO[bytes], int]]
) -> Measurements:
    with StreamMeasurer() as measurer:
        raw = header.pack()
        file.write(raw)
        measurer.update(raw[:CRC_OFFSET])
        for kind, source, size in sections:
            raw = pack_section_header(kind, size)
            file.write(raw)
            measurer.update(raw)
            measurer.begin_section(kind)
            for chunk in _exactly(source, size):
                file.write(chunk)
                measurer.update(chunk)
            measurer.end_section()
        measurements, crc32 = measurer.result()
    file.seek(CRC_OFFSET)
    file.write(crc32.to_bytes(4))
    return measurements


def _exactly(source: IO[bytes], size: int) -> Iterator[bytes]:
    try:
        yield from read_chunks(source, size)
    except EOFError:
        raise InputError("an input file was cut off while it was read") from None
