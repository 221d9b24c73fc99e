"""Tar archives, good and evil."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

SAVED_MODEL = {"saved_model.pb": b"graph", "variables/variables.index": b"index", "fingerprint.pb": b"random"}


def tarball(files: Mapping[str, bytes], *, mode: str = "w:gz") -> bytes:
    return tarball_of([(_file(name, content), content) for name, content in files.items()], mode=mode)


def tarball_of(members: list[tuple[tarfile.TarInfo, bytes]], *, mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> bytes:
    """An archive with a link or a device behind a harmless file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return tarball_of([(_file("saved_model.pb", b"graph"), b"graph"), (member, b"")])


def _file(name: str, content: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member
