"""Unpacks tar archives that anybody may have made: nothing leaves the target folder or grows for ever."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

from necli.errors import InputError, MeasurementMismatch
from necli.home import host_errors
from necli.models.catalogue import LockedFile
from necli.models.digest import digest_of

MAX_UNPACKED: Final = 4 << 30
MAX_MEMBERS: Final = 2_000
_MAX_READ: Final = 16 << 20
_GZIP: Final = b"\x1f\x8b"


class InvalidArchive(InputError):
    """The archive is damaged, or asks for something that no model needs."""


def unpack(archive: Path, folder: Path, *, limit: int = MAX_UNPACKED) -> None:
    """Unpack the files and folders of a .tar or .tar.gz below the existing folder `folder`.

    Permissions, owners and times in it are ignored. Links and devices are refused, not skipped: whatever
    has some isn't a model.

    :raises InvalidArchive: damaged or hostile; what was unpacked before that is the caller's to remove.
    """
    with _readable(archive):
        for member, content in _members(archive, limit):
            target = folder / _safe_path(member)
            with host_errors(f"can't unpack to {target}"):
                (target.parent if content else target).mkdir(parents=True, exist_ok=True)
                if content:
                    _write(content, target)


def unpack_locked(archive: Path, files: Sequence[LockedFile], folder: Path) -> list[Path]:
    """Unpack only `files`, into `folder` itself, and check each against its digest.

    :raises InvalidArchive: damaged, or one of them isn't in it.
    :raises MeasurementMismatch: one has another content.
    """
    targets = {file.path: folder / PurePosixPath(file.path).name for file in files}
    with _readable(archive):
        for member, content in _members(archive, MAX_UNPACKED):
            if content and member.name in targets:
                with host_errors(f"can't unpack to {folder}"):
                    _write(content, targets[member.name])
    for file in files:
        target = targets[file.path]
        if not target.is_file():
            raise InvalidArchive(f"{archive.name} has no {file.path}", hint="necli model list")
        if (actual := digest_of(target, "sha256")) != file.sha256:
            raise MeasurementMismatch(
                f"{file.path} in {archive.name} isn't the file that necli knows: its SHA-256 is {actual}",
                hint="use the package that necli model list names",
                code="digest_mismatch",
            )
    return list(targets.values())


def _members(archive: Path, limit: int) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each member, with its content if it is a file."""
    with open(archive, "rb") as raw:
        compressed = raw.read(2) == _GZIP
        raw.seek(0)
        stream = _Bounded(cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compressed else raw, limit)
        with tarfile.open(fileobj=cast(Any, stream), mode="r:") as tar:
            for index, member in enumerate(tar):
                if index == MAX_MEMBERS:
                    raise InvalidArchive(f"{archive.name} holds more than {MAX_MEMBERS} files")
                yield member, _content(tar, member)
        while stream.read(_MAX_READ):  # to the end, where gzip's checksum is
            pass


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise InvalidArchive(f"{member.name} in the archive is a link, a device or another special file")
    return tar.extractfile(member)


def _safe_path(member: tarfile.TarInfo) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise InvalidArchive(f"{member.name!r} in the archive would leave the folder it is unpacked to")
    return path


def _write(content: IO[bytes], target: Path) -> None:
    try:
        with open(target, "xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
    except (FileExistsError, IsADirectoryError) as exc:
        raise InvalidArchive(f"{target.name} is twice in the archive") from exc


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        with host_errors(f"can't read {archive}"):
            yield
    except (tarfile.TarError, ValueError, OverflowError) as exc:  # tarfile lets the latter two through
        raise InvalidArchive(f"{archive.name} is no whole .tar or .tar.gz archive: {exc}") from exc


class _Bounded:
    """A stream for tarfile that ends with an error where the archive unpacks to more than it may.

    tarfile reads some headers in one piece, however long they say they are; that is refused as well.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise InvalidArchive("a header in the archive is longer than any model's")
        with _whole():
            data = self._stream.read(size)
        self._check(self._stream.tell())
        return data

    def seek(self, position: int) -> int:
        self._check(position)
        with _whole():
            return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise InvalidArchive(f"the archive unpacks to more than {self._limit:,} bytes")


@contextmanager
def _whole() -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise InvalidArchive(f"the archive is cut short or damaged: {exc}") from exc
