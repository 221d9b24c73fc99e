"""A fixed number of worker threads behind a bounded queue, for what would block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any, Self, TypeVar

from enclave_payload.errors import PayloadError

T = TypeVar("T")


class Workers:
    """`place()` before reading a request, so that what waits in memory is bounded too."""

    def __init__(self, count: int, *, queue: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._places = BoundedSemaphore(count + queue)

    def place(self) -> Place:
        """:raises PayloadError: `busy`."""
        if not self._places.acquire(blocking=False):
            raise PayloadError("busy", "all workers are busy and the queue is full; try again")
        return Place(self._threads, self._places)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Place:
    """Room for one request, at a worker or in the queue.

    A thread can't be stopped: when its request times out, the place stays taken until the thread is through.
    """

    def __init__(self, threads: ThreadPoolExecutor, places: BoundedSemaphore) -> None:
        self._threads = threads
        self._places = places
        self._work: Future[Any] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        self._work = self._threads.submit(work)
        return await asyncio.wrap_future(self._work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        work, self._work = self._work, None  # its exception's frames hold this place
        if work is None:
            self._places.release()
        else:
            work.add_done_callback(lambda _: self._places.release())
