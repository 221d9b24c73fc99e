"""What moved between two enclave images: which measurement, which section, which file in a ramdisk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Literal

from necli.eif.layout import InvalidEif, Section, SectionType
from necli.eif.listing import RamdiskEntry, kind_of, list_ramdisk
from necli.eif.measuring import read_chunks
from necli.eif.reader import EifImage


@dataclass(frozen=True)
class FileChange:
    """One entry of a ramdisk that isn't the same in both."""

    ramdisk: int
    name: str
    change: Literal["added", "removed", "changed"]
    what: tuple[str, ...] = ()
    """Of a changed one: content, kind, mode, owner, time or device, with both values where they are short."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EifDifference:
    """Empty where both images measure the same and hold the same metadata."""

    pcrs: tuple[str, ...]
    """The names of the measurements that differ."""
    sections: tuple[str, ...]
    files: tuple[FileChange, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.pcrs or self.sections)

    def to_json(self) -> dict[str, Any]:
        return {
            "identical": self.is_empty,
            "pcrs": list(self.pcrs),
            "sections": list(self.sections),
            "files": [change.to_json() for change in self.files],
        }


def diff_eifs(before: EifImage, after: EifImage) -> EifDifference:
    """Compare two images section by section, and the ramdisks that differ file by file.

    Ramdisks whose names and contents are equal but not their bytes differ in the archive's order or format.
    """
    measured = before.measurements.pcrs(), after.measurements.pcrs()
    pcrs = [
        f"PCR{i}" for i in sorted({*measured[0], *measured[1]}) if measured[0].get(i) != measured[1].get(i)
    ]
    sections: list[str] = []
    files: list[FileChange] = []
    for name, index, old, new in _paired(before, after):
        if old and new and _digest(before, old) == _digest(after, new):
            continue
        sections.append(name if old and new else f"{name} (only in the {'first' if old else 'second'})")
        if index is not None and old and new:
            files += _changes(index, _listing(before, old), _listing(after, new))
    return EifDifference(tuple(pcrs), tuple(sections), tuple(files))


def _paired(
    before: EifImage, after: EifImage
) -> Iterator[tuple[str, int | None, Section | None, Section | None]]:
    for kind in SectionType:
        old, new = ([s for s in eif.sections if s.type is kind] for eif in (before, after))
        for index, (one, other) in enumerate(zip_longest(old, new)):
            ramdisk = index if kind is SectionType.RAMDISK else None
            name = kind.name.lower()
            yield name if ramdisk is None else f"{name} {index}", ramdisk, one, other


def _digest(eif: EifImage, section: Section) -> bytes:
    digest = hashlib.sha384()
    with eif.open_section(section) as stream:
        for chunk in read_chunks(stream, section.size):
            digest.update(chunk)
    return digest.digest()


def _listing(eif: EifImage, section: Section) -> dict[str, RamdiskEntry] | None:
    """None for a ramdisk in another format, which the kernel may know: only its section can be named."""
    with eif.open_section(section) as stream:
        try:
            return list_ramdisk(stream)
        except InvalidEif:
            return None


def _changes(
    index: int, before: dict[str, RamdiskEntry] | None, after: dict[str, RamdiskEntry] | None
) -> Iterator[FileChange]:
    if before is None or after is None:
        return
    for name in sorted({*before, *after}):
        if name not in after:
            yield FileChange(index, name, "removed")
        elif name not in before:
            yield FileChange(index, name, "added")
        elif what := tuple(_differences(before[name], after[name])):
            yield FileChange(index, name, "changed", what)


def _differences(old: RamdiskEntry, new: RamdiskEntry) -> Iterator[str]:
    if kind_of(old.mode) != kind_of(new.mode):
        yield f"kind: {kind_of(old.mode)} -> {kind_of(new.mode)}"
    if old.size != new.size:
        yield f"content: {old.size} -> {new.size} bytes"
    elif old.sha384 != new.sha384:
        yield f"content: {old.sha384.hex()[:12]} -> {new.sha384.hex()[:12]}"
    if old.mode & 0o7777 != new.mode & 0o7777:
        yield f"mode: {old.mode & 0o7777:o} -> {new.mode & 0o7777:o}"
    if old.owner != new.owner:
        yield f"owner: {old.owner[0]}:{old.owner[1]} -> {new.owner[0]}:{new.owner[1]}"
    if old.modified != new.modified:
        yield f"time: {old.modified} -> {new.modified}"
    if old.device != new.device:
        yield f"device: {old.device[0]},{old.device[1]} -> {new.device[0]},{new.device[1]}"
