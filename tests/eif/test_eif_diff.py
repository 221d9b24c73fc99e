"""What moved between two images, down to the file in a ramdisk, whichever tool wrote the ramdisk."""

from __future__ import annotations

import gzip
import io
import json
import stat
from pathlib import Path

import pytest

from necli.eif import EifDifference, FileChange, InvalidEif, diff_eifs, image_metadata, read_eif, write_eif
from necli.eif.listing import kind_of, list_ramdisk
from tests.cli.program import Necli
from tests.eif.ramdisks import DEVICE, END, FOLDER, LINK, member

AS_LINUXKIT = (
    member("./bin", mode=FOLDER)
    + member("/bin/init", b"elf" * 400_000)
    + member("lib", b"usr/lib", mode=LINK)
    + member("dev/console", mode=DEVICE, device=5)
    + END
)


def eif(folder: Path, *ramdisks: bytes, cmdline: str = "reboot=k", version: str = "1") -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.eif"
    metadata = image_metadata(
        name="x", version=version, build_time="2026-11-01T10:00:00+00:00", build_tool_version="1"
    )
    write_eif(path, kernel=b"kernel", cmdline=cmdline, ramdisks=ramdisks, metadata=metadata)
    return path


def diff(one: Path, other: Path) -> EifDifference:
    return diff_eifs(read_eif(one), read_eif(other))


def changes(folder: Path, before: bytes, after: bytes) -> list[FileChange]:
    return list(diff(eif(folder, b"init", before), eif(folder, b"init", after)).files)


def test_the_same_bytes_are_no_difference(tmp_path: Path) -> None:
    found = diff(eif(tmp_path, AS_LINUXKIT), eif(tmp_path, AS_LINUXKIT))
    assert found.is_empty
    assert found.to_json() == {"identical": True, "pcrs": [], "sections": [], "files": []}


def test_metadata_moves_no_measurement(tmp_path: Path) -> None:
    found = diff(eif(tmp_path, AS_LINUXKIT), eif(tmp_path, AS_LINUXKIT, version="2"))
    assert (found.pcrs, found.sections, found.files) == ((), ("metadata",), ())


def test_the_command_line_moves_the_boot_measurement(tmp_path: Path) -> None:
    found = diff(eif(tmp_path, AS_LINUXKIT), eif(tmp_path, AS_LINUXKIT, cmdline="quiet"))
    assert (found.pcrs, found.sections) == (("PCR0", "PCR1"), ("cmdline",))


@pytest.mark.parametrize(
    ("after", "change", "what"),
    [
        (member("a", b"new"), "changed", "content: 3 -> 3"),
        (member("a", b"longer"), "changed", "content: 3 -> 6 bytes"),
        (member("a", b"old", mode=stat.S_IFREG | 0o600), "changed", "mode: 755 -> 600"),
        (member("a", b"old", mtime=9), "changed", "time: 7 -> 9"),
        (member("a", b"old", owner=5), "changed", "owner: 0:0 -> 5:5"),
        (member("a", b"old", mode=LINK), "changed", "kind: file -> link"),
        (b"", "removed", ""),
        (member("a", b"old") + member("b"), "added", ""),
    ],
)
def test_what_became_of_a_file_is_named(after: bytes, change: str, what: str, tmp_path: Path) -> None:
    (found,) = changes(tmp_path, member("a", b"old") + END, after + END)
    assert (found.ramdisk, found.change) == (1, change)
    expected = what.replace("3 -> 3", "")
    assert expected in "; ".join(found.what)


def test_a_ramdisk_of_linuxkit_is_listed_with_links_and_devices() -> None:
    found = list_ramdisk(io.BytesIO(AS_LINUXKIT))
    assert {name: kind_of(entry.mode) for name, entry in found.items()} == {
        "bin": "folder",
        "bin/init": "file",
        "lib": "link",
        "dev/console": "device",
    }
    assert found["dev/console"].device == (5, 5)


def test_archives_that_follow_one_another_are_one_ramdisk() -> None:
    assert list(list_ramdisk(io.BytesIO(AS_LINUXKIT + bytes(512) + member("more") + END)))[-1] == "more"


def test_compression_is_seen_through(tmp_path: Path) -> None:
    before, after = (gzip.compress(member("a", text) + END) for text in (b"old", b"new"))
    (found,) = changes(tmp_path, before, after)
    assert found.name == "a"


def test_a_ramdisk_of_another_format_is_named_as_a_whole(tmp_path: Path) -> None:
    found = diff(eif(tmp_path, b"squashfs" * 99), eif(tmp_path, AS_LINUXKIT))
    assert (found.sections, found.files) == (("ramdisk 0",), ())


@pytest.mark.parametrize(
    "damaged",
    [
        AS_LINUXKIT[:-30],
        AS_LINUXKIT[:200],
        b"070701" + b"f" * 104,
        b"garbage",
        gzip.compress(AS_LINUXKIT)[:-9],
    ],
)
def test_a_damaged_ramdisk_is_refused(damaged: bytes) -> None:
    with pytest.raises(InvalidEif):
        list_ramdisk(io.BytesIO(damaged))


def test_the_command_says_what_moved_and_exits_with_1(tmp_path: Path) -> None:
    one, other = (eif(tmp_path, b"init", member("app/main.py", text) + END) for text in (b"old", b"newer"))
    necli = Necli(tmp_path / "home", tmp_path)
    shown = necli.run("eif", "diff", one, other)
    assert shown.returncode == 1
    assert "PCR0, PCR2" in shown.stdout
    assert "app/main.py" in shown.stdout
    (change,) = json.loads(necli.run("eif", "diff", one, other, "--json").stdout)["files"]
    assert change == {
        "ramdisk": 1,
        "name": "app/main.py",
        "change": "changed",
        "what": ["content: 3 -> 5 bytes"],
    }
    assert "measure the same" in necli.ok("eif", "diff", one, one)


def test_a_ramdisk_of_nothing_but_zeros_is_refused_before_they_are_all_read() -> None:
    bomb = gzip.compress(bytes(64 << 20), compresslevel=1)
    with pytest.raises(InvalidEif, match="too many zeros before offset 1048580"):
        list_ramdisk(io.BytesIO(bomb))
