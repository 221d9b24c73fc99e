"""What a ramdisk holds, by name, for ramdisks of any tool: links, devices, any mode, gzip or not.

Only `necli.eif.cpio` unpacks, and it takes far less. Here nothing is written, and no file is kept in memory.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from necli.eif.cpio import MAX_ENTRIES, MAX_UNPACKED_BYTES
from necli.eif.layout import InvalidEif

_HEADER_SIZE = 110
_HEADER = re.compile(rb"07070[12][0-9a-fA-F]{104}")
_TRAILER = "TRAILER!!!"
_MAX_NAME_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_MAX_PADDING_BYTES = 1 << 20
"""Tools pad to a block or a page. Gzip makes gigabytes of zeros out of next to nothing."""


@dataclass(frozen=True)
class RamdiskEntry:
    """A file, folder, link or device as the archive's header describes it."""

    mode: int
    owner: tuple[int, int]
    """User and group."""
    modified: int
    """Seconds since 1970."""
    size: int
    sha384: bytes
    """Of the content; of the target, for a symbolic link."""
    device: tuple[int, int] = (0, 0)


def list_ramdisk(stream: BinaryIO) -> dict[str, RamdiskEntry]:
    """Every entry by its name, without a leading `/` or `./`.

    :raises InvalidEif: it isn't a cpio archive as the kernel takes it, is damaged, or unpacks to too much.
    """
    found: dict[str, RamdiskEntry] = {}
    try:
        archive = _Reader(_unzipped(stream))
        for name, entry in archive.entries():
            found[name] = entry
            if len(found) > MAX_ENTRIES:
                raise InvalidEif(f"a ramdisk holds more than {MAX_ENTRIES} files")
    except (EOFError, OSError, zlib.error) as exc:
        raise InvalidEif(f"a ramdisk is cut off or damaged: {exc}") from exc
    return found


def _unzipped(stream: BinaryIO) -> io.BufferedIOBase:
    buffered = io.BufferedReader(stream)  # type: ignore[type-var]
    return gzip.open(buffered) if buffered.peek(2)[:2] == b"\x1f\x8b" else buffered


class _Reader:
    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._offset = 0

    def entries(self) -> Iterator[tuple[str, RamdiskEntry]]:
        """Of one archive after the other, as the kernel unpacks them."""
        while raw := self._next_header():
            if not _HEADER.fullmatch(raw):
                raise InvalidEif(f"a ramdisk has no cpio header at offset {self._offset - len(raw)}")
            fields = [int(raw[at : at + 8], 16) for at in range(6, _HEADER_SIZE, 8)]
            _, mode, user, group, _, modified, size, _, _, major, minor, name_size, _ = fields
            if not 1 <= name_size <= _MAX_NAME_BYTES:
                raise InvalidEif(f"a ramdisk has a name of {name_size} bytes")
            name = self._take(name_size).rstrip(b"\0").decode(errors="backslashreplace")
            self._take(-self._offset % 4)
            digest = self._digest(size)
            self._take(-self._offset % 4)
            if name == _TRAILER:
                continue
            name = name.removeprefix("./").strip("/") or "."
            yield name, RamdiskEntry(mode, (user, group), modified, size, digest, (major, minor))

    def _next_header(self) -> bytes:
        """The next one behind zeros that pad the archive; nothing at the end."""
        start = self._offset
        while first := self._stream.read(4):
            self._offset += len(first)
            if self._offset - start > _MAX_PADDING_BYTES:
                raise InvalidEif(f"a ramdisk has too many zeros before offset {self._offset}")
            if first.strip(b"\0"):
                return first + self._take(_HEADER_SIZE - len(first))
        return b""

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size) if size else b""
        if len(data) != size:
            raise EOFError(f"it ends at offset {self._offset + len(data)}")
        self._offset += size
        if self._offset > MAX_UNPACKED_BYTES:
            raise InvalidEif(f"a ramdisk unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        return data

    def _digest(self, size: int) -> bytes:
        digest = hashlib.sha384()
        for start in range(0, size, _CHUNK_BYTES):
            digest.update(self._take(min(_CHUNK_BYTES, size - start)))
        return digest.digest()


def kind_of(mode: int) -> str:
    """`file`, `folder`, `link` or `device`: what a mode says an entry is."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "device"
