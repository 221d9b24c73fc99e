"""Feeds a parser with hostile inputs and watches what comes out, how long it takes and what it keeps."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.mutation import mutate

MAX_SECONDS = 1.0
MAX_GROWTH_MIB = 64
"""From the first fifth of the inputs to the last: what would be kept of each input adds up to more."""
MAX_PEAK_MIB = 256
"""Above what stood in memory before: what no single input may ask for."""
_RETRIES = 3
_TRIES_OF_A_SEED = 50


def plain(seeds: Sequence[bytes], random: Random) -> bytes:
    return mutate(seeds, random)


@dataclass(frozen=True)
class Target:
    """A parser, good inputs for it, and the errors that it declares; whatever else it raises is a bug."""

    parse: Callable[[bytes], object]
    seeds: Sequence[bytes]
    refusals: tuple[type[Exception], ...]
    make: Callable[[Sequence[bytes], Random], bytes] = plain
    pid: int | str = "self"
    """Of the process that parses."""


@dataclass(frozen=True)
class Outcome:
    inputs: int
    accepted: int
    slowest_s: float
    growth_mib: float
    peak_mib: float
    seconds: float

    def faults(self) -> list[str]:
        found = {
            f"an input took {self.slowest_s:.1f} s": self.slowest_s > MAX_SECONDS,
            f"memory grew by {self.growth_mib:.0f} MiB": self.growth_mib > MAX_GROWTH_MIB,
            f"memory rose to {self.peak_mib:.0f} MiB more": self.peak_mib > MAX_PEAK_MIB,
        }
        return [fault for fault, holds in found.items() if holds]


class Crash(Exception):
    """An input that wasn't refused with a declared error; it is kept in a file."""


def input_of(target: Target, name: str, number: int) -> bytes:
    """The input with this number, the same in every run."""
    return target.make(target.seeds, Random(f"{name}:{number}"))


def fuzz(name: str, target: Target, *, count: int, found: Path) -> Outcome:
    """Raises Crash at the first input that does what none may."""
    for seed in target.seeds:
        # On a loaded machine, the server may answer only after the client has given up.
        if not any(_parse(target, seed) for _ in range(_TRIES_OF_A_SEED)):
            raise AssertionError(f"{name} refuses a seed: nothing behind its guards would be reached")
    start_rss, started = _rss_mib(target.pid), time.monotonic()
    warm_rss, accepted, slowest = start_rss, 0, 0.0
    for number in range(count):
        data = input_of(target, name, number)
        try:
            was_accepted, seconds = _timed(target, data)
        except Exception as exc:
            found.mkdir(parents=True, exist_ok=True)
            path = found / f"{name}-{number}"
            path.write_bytes(data)
            raise Crash(f"{name}, input {number} (kept as {path}): {exc!r}") from exc
        accepted += was_accepted
        slowest = max(slowest, seconds)
        if number == count // 5:
            warm_rss = _rss_mib(target.pid)
    return Outcome(
        count,
        accepted,
        slowest,
        _rss_mib(target.pid) - warm_rss,
        _peak_mib(target.pid) - start_rss,
        time.monotonic() - started,
    )


def _timed(target: Target, data: bytes) -> tuple[bool, float]:
    """Slow is what is slow each time: others use this machine, too."""
    for _ in range(_RETRIES):
        started = time.monotonic()
        accepted = _parse(target, data)
        if (seconds := time.monotonic() - started) <= MAX_SECONDS:
            break
    return accepted, seconds


def _parse(target: Target, data: bytes) -> bool:
    try:
        target.parse(data)
    except target.refusals:
        return False
    return True


def _rss_mib(pid: int | str) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak_mib(pid: int | str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
