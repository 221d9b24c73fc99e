"""Makes hostile bytes out of good ones; the same seed makes the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from random import Random
from typing import Any

MAX_BYTES = 1 << 18
_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
    0xFFFFFFFFFFFFFFFF,
)
_ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 10**40, "", "*", "${aws:x}", "\0", "é\ud800", [], {}, [[]], {"": {}}, ["*", 1],
)  # fmt: skip


def mutate(seeds: Sequence[bytes], random: Random) -> bytes:
    """One of the seeds with one to four random changes."""
    data = random.choice(seeds)
    for _ in range(random.randint(1, 4)):
        data = _changed(data, random.choice(seeds), random)
    return data[:MAX_BYTES]


def _changed(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    short = min(end, start + random.randint(1, 16))
    match random.randrange(8):
        case 0 if data:
            return _with(
                data, start := random.randrange(len(data)), bytes([data[start] ^ 1 << random.randrange(8)])
            )
        case 1:
            return _with(data, start, random.randbytes(random.randint(1, 8)))
        case 2:
            size = random.choice((1, 2, 4, 8))
            number = random.choice(_NUMBERS) & (1 << 8 * size) - 1
            return _with(data, start, number.to_bytes(size, random.choice(("big", "little"))))
        case 3:
            return data[:start] + data[short:]
        case 4:
            return data[:start] + random.randbytes(random.randint(1, 16)) + data[start:]
        case 5:
            return data[:end] + data[start:short] * random.randint(1, 64) + data[end:]
        case 6:
            return data[:start]
        case _:
            return data[:start] + other[random.randrange(len(other) + 1) :]


def _with(data: bytes, start: int, patch: bytes) -> bytes:
    return data[:start] + patch + data[start + len(patch) :]


def mutate_json(document: Any, random: Random) -> str:
    """The text of a document, one to four of whose values were exchanged, moved or left out."""
    document = deepcopy(document)
    for _ in range(random.randint(1, 4)):
        places = list(_places(document))
        if places:
            container, key = random.choice(places)
            _exchange(container, key, random.choice(places), random)
    return json.dumps(document, ensure_ascii=random.random() < 0.5)


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _exchange(container: Any, key: Any, other: tuple[Any, Any], random: Random) -> None:
    match random.randrange(4):
        case 0:
            del container[key]
        case 1:
            container[key] = deepcopy(other[0][other[1]])
        case 2 if isinstance(container, dict):
            container[str(random.choice(_ODD_VALUES))] = container.pop(key)
        case _:
            container[key] = deepcopy(random.choice(_ODD_VALUES))
