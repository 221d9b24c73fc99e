"""Ramdisks: cpio archives in the kernel's "newc" format, written deterministically and unpacked safely.

Only folders and regular files go in, and only those come out: with no link and no device in the archive,
nothing in it can point out of the folder that it is unpacked to.
Format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from necli.eif.layout import InvalidEif
from necli.eif.measuring import CHUNK_BYTES, read_chunks
from necli.errors import InputError
from necli.home import host_errors

_MAGIC = b"070701"
_FIELDS = 13
_HEADER_SIZE = len(_MAGIC) + 8 * _FIELDS
_HEADER = re.compile(_MAGIC + b"[0-9a-fA-F]{%d}" % (8 * _FIELDS))
_TRAILER = "TRAILER!!!"
_MAX_NAME_BYTES = 4096
_MAX_PART_BYTES = 255
_MAX_FILE_BYTES = 0xFFFFFFFF
MAX_ENTRIES = 100_000
MAX_UNPACKED_BYTES = 16 << 30


@dataclass(frozen=True)
class CpioEntry:
    """A folder, or a file with its content; of `mode` (as in `stat`) type and execute bit are kept."""

    name: str
    mode: int
    data: bytes | Path = b""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


def folder_entries(folder: Path, prefix: str = "", exclude: Collection[str] = ()) -> list[CpioEntry]:
    """What `folder` holds, named below `prefix`; names that match a pattern in `exclude` stay out.

    :raises InputError: it holds a link, a device or a socket, or can't be read.
    """
    try:
        return list(_walk(folder, prefix, exclude))
    except OSError as exc:
        raise InputError(f"can't read {exc.filename or folder}: {exc.strerror}") from exc


def _walk(folder: Path, prefix: str, exclude: Collection[str]) -> Iterator[CpioEntry]:
    for path in sorted(folder.iterdir()):
        if any(fnmatchcase(path.name, pattern) for pattern in exclude):
            continue
        name = f"{prefix}/{path.name}" if prefix else path.name
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield CpioEntry(name, mode)
            yield from _walk(path, name, exclude)
        elif stat.S_ISREG(mode):
            yield CpioEntry(name, mode, path)
        else:
            raise InputError(f"{path} is neither a file nor a folder, so it can't go into an image")


def write_cpio(entries: Iterable[CpioEntry], file: IO[bytes]) -> None:
    """Write an archive whose bytes depend on names, contents and execute bits alone.

    Missing parent folders are added.

    :raises InputError: a name is unsafe or comes twice, or a file can't be read or is too large.
    """
    complete: dict[str, CpioEntry] = {}
    for entry in entries:
        if fault := _fault_of(entry.name):
            raise InputError(f"{entry.name!r} can't be a name in an image: {fault}")
        if entry.name in complete:
            raise InputError(f"{entry.name!r} comes twice in an image")
        complete[entry.name] = entry
    for name in list(complete):
        for parent in list(Path(name).parents)[:-1]:
            if not complete.setdefault(str(parent), CpioEntry(str(parent), stat.S_IFDIR)).is_folder:
                raise InputError(f"{str(parent)!r} can't be both a file and a folder in an image")
    # Part by part, so that a folder always comes before what it holds.
    for inode, name in enumerate(sorted(complete, key=lambda name: name.split("/")), start=1):
        _write_entry(file, inode, complete[name])
    _write_header(file, _TRAILER)


def _write_entry(file: IO[bytes], inode: int, entry: CpioEntry) -> None:
    if entry.is_folder:
        _write_header(file, entry.name, inode=inode, mode=stat.S_IFDIR | 0o755, links=2)
        return
    mode = stat.S_IFREG | (0o755 if entry.mode & stat.S_IXUSR else 0o644)
    if isinstance(entry.data, bytes):
        _write_header(file, entry.name, inode=inode, mode=mode, size=len(entry.data))
        file.write(entry.data + _padding(len(entry.data)))
        return
    try:
        source = entry.data.open("rb", buffering=0)
    except OSError as exc:
        raise InputError(f"can't read {entry.data}: {exc.strerror}") from exc
    with source:
        size = os.fstat(source.fileno()).st_size
        if size > _MAX_FILE_BYTES:
            raise InputError(f"{entry.data} has {size} bytes; an image takes files below 4 GiB")
        _write_header(file, entry.name, inode=inode, mode=mode, size=size)
        try:
            for chunk in read_chunks(source, size):
                file.write(chunk)
        except EOFError:
            raise InputError(f"{entry.data} was cut off while it was read") from None
    file.write(_padding(size))


def _write_header(
    file: IO[bytes], name: str, *, inode: int = 0, mode: int = 0, links: int = 1, size: int = 0
) -> None:
    raw_name = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name's length, checksum
    fields = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(raw_name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields) + raw_name
    file.write(header + _padding(len(header)))


def _padding(size: int) -> bytes:
    return bytes(-size % 4)


def _fault_of(name: str) -> str | None:
    """Why a name must not be in an archive; None where it may."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "it isn't UTF-8"
    parts = name.split("/")
    if len(raw) >= _MAX_NAME_BYTES or any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return "it is too long"
    if "\0" in name:
        return "it holds a NUL character"
    if name == _TRAILER:
        return "it marks an archive's end"
    if any(part in ("", ".", "..") for part in parts):
        return "it isn't a plain path below the root"
    return None


def unpack_cpio(
    stream: IO[bytes],
    target: Path,
    *,
    max_entries: int = MAX_ENTRIES,
    max_bytes: int = MAX_UNPACKED_BYTES,
) -> None:
    """Unpack into the empty folder `target`, which nobody else writes to.

    :raises InvalidEif: the archive holds anything but folders and files with safe names, or is damaged.
    :raises HostError: a file can't be written.
    """
    archive = _Archive(stream)
    folders = {""}
    seen: set[str] = set()
    left = max_bytes
    for entry in archive:
        if entry.name in seen:
            raise InvalidEif(f"a ramdisk holds {entry.name!r} twice")
        if entry.name.rpartition("/")[0] not in folders:
            raise InvalidEif(f"a ramdisk holds {entry.name!r}, but not its folder before it")
        seen.add(entry.name)
        left -= entry.size
        if len(seen) > max_entries or left < 0:
            raise InvalidEif(f"a ramdisk holds more than {max_entries} files or {max_bytes} bytes")
        with host_errors(f"can't unpack {entry.name}"):
            if entry.is_folder:
                folders.add(entry.name)
                (target / entry.name).mkdir(mode=0o755)
            else:
                _unpack_file(archive, target / entry.name, entry)


@dataclass(frozen=True)
class _Header:
    name: str
    mode: int
    size: int

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class _Archive:
    """An archive as a stream; iterate it, and read each file's data before the next header."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._offset = 0

    def __iter__(self) -> Iterator[_Header]:
        while (header := self._header()).name != _TRAILER:
            yield header
        for chunk in iter(lambda: self._stream.read(CHUNK_BYTES), b""):
            if chunk.strip(b"\0"):
                raise InvalidEif(f"a ramdisk goes on after its end at offset {self._offset}")

    def _header(self) -> _Header:
        at = self._offset
        raw = b"".join(self.read(_HEADER_SIZE))
        if not _HEADER.fullmatch(raw):
            raise InvalidEif(f"a ramdisk has no newc cpio header at offset {at}")
        digits = raw[len(_MAGIC) :]
        fields = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
        _, mode, _, _, links, _, size, _, _, _, _, name_size, _ = fields
        if not 2 <= name_size <= _MAX_NAME_BYTES:
            raise InvalidEif(f"a ramdisk has a name of {name_size} bytes at offset {at}")
        try:
            name = b"".join(self.read(name_size)).decode()
        except UnicodeDecodeError:
            raise InvalidEif(f"a ramdisk has a name that isn't UTF-8 at offset {at}") from None
        self.skip_padding()
        header = _Header(name.removesuffix("\0"), mode, size)
        if fault := _fault_of_header(header, links, terminated=name.endswith("\0")):
            raise InvalidEif(f"a ramdisk holds {header.name!r} at offset {at}: {fault}")
        return header

    def read(self, size: int) -> Iterator[bytes]:
        try:
            for chunk in read_chunks(self._stream, size):
                self._offset += len(chunk)
                yield chunk
        except EOFError:
            raise InvalidEif(f"a ramdisk is cut off at offset {self._offset}") from None

    def skip_padding(self) -> None:
        if any(b"".join(self.read(-self._offset % 4))):
            raise InvalidEif(f"a ramdisk's padding before offset {self._offset} isn't zero")


def _fault_of_header(header: _Header, links: int, *, terminated: bool) -> str | None:
    if not terminated:
        return "its name has no end"
    if header.name == _TRAILER:
        return "the end has content" if header.size else None
    if header.is_folder:
        return "a folder has content" if header.size else _fault_of(header.name)
    if not stat.S_ISREG(header.mode):
        return "it is neither a file nor a folder"
    return "it is a hard link" if links > 1 else _fault_of(header.name)


def _unpack_file(archive: _Archive, path: Path, header: _Header) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        for chunk in archive.read(header.size):
            file.write(chunk)
        os.fchmod(handle, 0o755 if header.mode & stat.S_IXUSR else 0o644)
    archive.skip_padding()
