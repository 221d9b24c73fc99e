"""Ramdisks: the same bytes from the same files, and nothing that reaches out of its folder."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necli.eif import InvalidEif
from necli.eif.cpio import CpioEntry, folder_entries, unpack_cpio, write_cpio
from necli.errors import InputError

FILE, FOLDER, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def _pack(*entries: CpioEntry) -> bytes:
    archive = io.BytesIO()
    write_cpio(entries, archive)
    return archive.getvalue()


def _record(
    name: str, data: bytes = b"", *, mode: int = FILE, links: int = 1, size: int | None = None
) -> bytes:
    """One record made by hand, as hostile as one likes."""
    raw = name.encode("utf-8", "surrogateescape") + b"\0"
    fields = (1, mode, 0, 0, links, 0, len(data) if size is None else size, 0, 0, 0, 0, len(raw), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


END = _record("TRAILER!!!", mode=0)


def _tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        path.relative_to(folder).as_posix(): (
            stat.S_IMODE(path.stat().st_mode),
            None if path.is_dir() else path.read_bytes(),
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "bin" / "__pycache__").mkdir(parents=True)
    (folder / "empty").mkdir(mode=0o700)
    (folder / "bin" / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "bin" / "run").chmod(0o711)
    (folder / "bin" / "__pycache__" / "run.pyc").write_bytes(b"compiled")
    (folder / "config.json").write_bytes(b"{}")
    (folder / "bin-more").write_bytes(b"x" * 3)
    (folder / "größe").write_bytes(b"")
    return folder


def test_what_is_packed_comes_out_again(source: Path, tmp_path: Path):
    archive = _pack(*folder_entries(source, "app", exclude=["__pycache__"]))
    target = tmp_path / "target"
    target.mkdir()
    unpack_cpio(io.BytesIO(archive), target)
    assert _tree(target) == {
        "app": (0o755, None),
        "app/bin": (0o755, None),
        "app/bin-more": (0o644, b"xxx"),
        "app/bin/run": (0o755, b"#!/bin/sh\n"),
        "app/config.json": (0o644, b"{}"),
        "app/empty": (0o755, None),
        "app/größe": (0o644, b""),
    }


def test_the_bytes_depend_on_names_contents_and_execute_bits_alone(source: Path, tmp_path: Path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(source, copy)
    (copy / "config.json").chmod(0o600)
    entries = folder_entries(copy)
    assert _pack(*reversed(entries)) == _pack(*folder_entries(source))


def test_other_cpio_programs_read_it(source: Path, tmp_path: Path):
    if not (cpio := shutil.which("cpio") or shutil.which("bsdtar")):
        pytest.skip("neither cpio nor bsdtar is installed")
    arguments = ["-it", "--quiet"] if cpio.endswith("cpio") else ["-tf", "-"]
    listing = subprocess.run(
        [cpio, *arguments], input=_pack(*folder_entries(source)), stdout=subprocess.PIPE, check=True
    )
    assert b"bin/run\n" in listing.stdout


def test_missing_folders_are_added(tmp_path: Path):
    unpack_cpio(io.BytesIO(_pack(CpioEntry("a/b/c", FILE, b"deep"))), tmp_path)
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"deep"


def test_large_files_are_streamed(tmp_path: Path):
    (tmp_path / "large").write_bytes(b"0123456789" * 300_001)
    (tmp_path / "target").mkdir()
    unpack_cpio(io.BytesIO(_pack(CpioEntry("large", FILE, tmp_path / "large"))), tmp_path / "target")
    assert (tmp_path / "target" / "large").read_bytes() == b"0123456789" * 300_001


def test_a_link_does_not_go_into_an_image(tmp_path: Path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="link is neither a file nor a folder"):
        folder_entries(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [
        [CpioEntry("../up", FILE)],
        [CpioEntry("/root", FILE)],
        [CpioEntry("a", FILE), CpioEntry("a", FILE)],
        [CpioEntry("a", FILE), CpioEntry("a/b", FILE)],
        [CpioEntry("gone", FILE, Path("/nonexistent/file"))],
    ],
)
def test_what_cannot_be_unpacked_is_not_packed(entries):
    with pytest.raises(InputError):
        _pack(*entries)


HOSTILE = {
    "a path upwards": (_record("../evil") + END, "isn't a plain path|not its folder"),
    "a path upwards inside": (
        _record("a", mode=FOLDER) + _record("a/../../evil") + END,
        "isn't a plain path",
    ),
    "an absolute path": (_record("/tmp/evil") + END, "isn't a plain path"),
    "the root itself": (_record(".", mode=FOLDER) + END, "isn't a plain path"),
    "no name": (_record("") + END, "name of 1 bytes"),
    "a doubled slash": (_record("a", mode=FOLDER) + _record("a//b") + END, "isn't a plain path"),
    "a symbolic link": (_record("link", b"/etc", mode=LINK) + END, "neither a file nor a folder"),
    "a hard link": (_record("a", b"x", links=2) + END, "hard link"),
    "a device": (_record("null", mode=stat.S_IFCHR | 0o666) + END, "neither a file nor a folder"),
    "a file twice": (_record("a") + _record("a") + END, "'a' twice"),
    "a file as a folder": (_record("a") + _record("a/b") + END, "not its folder before it"),
    "a folder that comes later": (
        _record("a/b") + _record("a", mode=FOLDER) + END,
        "not its folder before it",
    ),
    "a folder with content": (_record("a", b"data", mode=FOLDER) + END, "a folder has content"),
    "a name with a NUL": (_record("a\0b") + END, "holds a NUL"),
    "a name that isn't UTF-8": (_record("\udcff") + END, "isn't UTF-8"),
    "a name too long for a file": (_record("n" * 256) + END, "too long"),
    "a name without end": (_record("n" * 5000) + END, "name of 5001 bytes"),
    "no end": (_record("a"), "cut off"),
    "nothing": (b"", "cut off at offset 0"),
    "a cut header": (END[:50], "cut off at offset 50"),
    "a size beyond the archive": (_record("a", b"data", size=0xFFFFFFFF) + END, "cut off"),
    "padding that isn't zero": (_record("a", b"x")[:-1] + b"!" + END, "padding before offset"),
    "something behind the end": (END + b"more", "goes on after its end"),
    "the old format": (b"070707" + bytes(110), "no newc cpio header at offset 0"),
    "signs for digits": (END.replace(b"00000001", b"+0000001", 1), "no newc cpio header"),
    "a compressed archive": (b"\x1f\x8b" + bytes(110), "no newc cpio header"),
}


@pytest.mark.parametrize(("archive", "fault"), HOSTILE.values(), ids=HOSTILE)
def test_an_archive_is_refused_with(archive: bytes, fault: str, tmp_path: Path):
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(InvalidEif, match=fault):
        unpack_cpio(io.BytesIO(archive), target)
    assert list(tmp_path.iterdir()) == [target]


def test_entries_and_bytes_are_capped(tmp_path: Path):
    archive = _record("a", b"12345") + _record("b", b"12345") + END
    for caps in ({"max_entries": 1}, {"max_bytes": 9}):
        target = tmp_path / str(caps)
        target.mkdir()
        with pytest.raises(InvalidEif, match="holds more than"):
            unpack_cpio(io.BytesIO(archive), target, **caps)


def test_zeros_behind_the_end_are_padding(tmp_path: Path):
    unpack_cpio(io.BytesIO(_record("a", b"1") + END + bytes(512)), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"1"


GOOD = _pack(CpioEntry("a/b", FILE, b"12345"), CpioEntry("c", FILE | 0o111, b""))


@given(st.dictionaries(st.integers(0, len(GOOD) - 1), st.integers(0, 255), min_size=1, max_size=6))
def test_a_damaged_archive_stays_in_its_folder(tmp_path_factory, changes):
    damaged = bytearray(GOOD)
    for position, value in changes.items():
        damaged[position] = value
    outside = tmp_path_factory.mktemp("outside")
    target = outside / "target"
    target.mkdir()
    with suppress(InvalidEif):
        unpack_cpio(io.BytesIO(bytes(damaged)), target)
    assert list(outside.iterdir()) == [target]
    shutil.rmtree(outside)
