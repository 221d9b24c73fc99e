"""Ramdisks made by hand, with all that a cpio archive may hold."""

from __future__ import annotations

import stat

FOLDER, FILE, LINK, DEVICE = (
    kind | 0o755 for kind in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR)
)


def member(
    name: str, data: bytes = b"", *, mode: int = FILE, mtime: int = 7, owner: int = 0, device: int = 0
) -> bytes:
    raw = name.encode() + b"\0"
    fields = (1, mode, owner, owner, 1, mtime, len(data), 0, 0, device, device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


END = member("TRAILER!!!")
