"""Measures an image in one pass, in constant memory, in little more time than one SHA-384 takes.

Every byte of an application's ramdisk counts for PCR0, for PCR2 and for the CRC32. hashlib and zlib let
go of the interpreter's lock, so each of the three has a thread. PCR1 costs nothing: it is PCR0's state where
the second ramdisk begins.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Any

from necli.eif.layout import SectionType
from necli.measurements import Measurements, extend_from_zero

CHUNK_BYTES = 1 << 20
_CHUNKS_IN_FLIGHT = 6


class StreamMeasurer:
    """PCR0, PCR1, PCR2 and CRC32 of an image whose bytes are given to it in the order of the file."""

    def __init__(self) -> None:
        self._image = hashlib.sha384()
        self._application = hashlib.sha384()
        self._crc32 = 0
        self._bootstrap: Future[Any] | None = None
        self._section: SectionType | None = None
        self._ramdisks = 0
        self._pending: deque[list[Future[None]]] = deque()

    def __enter__(self) -> StreamMeasurer:
        # One thread each: it keeps the chunks in order.
        self._threads = ExitStack()
        self._image_thread, self._application_thread, self._crc_thread = (
            self._threads.enter_context(ThreadPoolExecutor(max_workers=1)) for _ in range(3)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.close()

    def begin_section(self, kind: SectionType) -> None:
        """From here on, what `update` gets is the data of a section of this kind."""
        self._section = kind
        if kind is SectionType.RAMDISK:
            self._ramdisks += 1
            if self._ramdisks == 2:
                self._bootstrap = self._image_thread.submit(self._image.copy)

    def end_section(self) -> None:
        self._section = None

    def update(self, chunk: bytes) -> None:
        """Take the next bytes. Outside of measured sections only the CRC counts them."""
        uses = [self._crc_thread.submit(self._update_crc, chunk)]
        if self._section is not None and self._section.is_measured:
            uses.append(self._image_thread.submit(self._image.update, chunk))
        if self._section is SectionType.RAMDISK and self._ramdisks > 1:
            uses.append(self._application_thread.submit(self._application.update, chunk))
        self._pending.append(uses)
        if len(self._pending) > _CHUNKS_IN_FLIGHT:
            _finish(self._pending.popleft())

    def _update_crc(self, chunk: bytes) -> None:
        self._crc32 = zlib.crc32(chunk, self._crc32)

    def result(self) -> tuple[Measurements, int]:
        """The measurements, without PCR8, and the CRC32."""
        while self._pending:
            _finish(self._pending.popleft())
        bootstrap = self._bootstrap.result() if self._bootstrap else self._image
        measurements = Measurements(
            *(extend_from_zero(state.digest()) for state in (self._image, bootstrap, self._application))
        )
        return measurements, self._crc32


def _finish(uses: list[Future[None]]) -> None:
    for use in uses:
        use.result()


def read_chunks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The next `size` bytes.

    :raises EOFError: the file has fewer.
    """
    left = size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise EOFError(left)
        left -= len(chunk)
        yield chunk
