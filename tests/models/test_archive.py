"""Archives from anywhere: what is good arrives whole, and what is evil leaves nothing outside its folder."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tarballs import special, tarball, tarball_of

from necli.errors import InputError, MeasurementMismatch, NecliError
from necli.models.archive import MAX_MEMBERS, InvalidArchive, unpack, unpack_locked
from necli.models.catalogue import LockedFile

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"index"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside"


def saved(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tarball_is_unpacked_whole(tmp_path: Path, folder: Path, mode: str) -> None:
    unpack(saved(tmp_path, tarball(FILES, mode=mode)), folder)

    assert tree(folder) == FILES


def test_permissions_in_the_archive_count_for_nothing(tmp_path: Path, folder: Path) -> None:
    member = tarfile.TarInfo("saved_model.pb")
    member.mode, member.uid = 0o6777, 12345
    unpack(saved(tmp_path, tarball_of([(member, b"")])), folder)

    assert (folder / "saved_model.pb").stat().st_mode & 0o7111 == 0
    assert (folder / "saved_model.pb").stat().st_uid == os.getuid()


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "variables/../../evil", "./../evil"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    with pytest.raises(InvalidArchive, match="would leave the folder"):
        unpack(saved(tmp_path, tarball({"saved_model.pb": b"graph", name: b"evil"})), folder)

    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "evil",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "saved_model.pb"),
        special("link", tarfile.LNKTYPE, "../../archive.tar.gz"),
        special("zero", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=["symlink out", "symlink inside", "hard link", "character device", "block device", "pipe"],
)
def test_links_and_devices_are_refused(tmp_path: Path, folder: Path, evil: bytes) -> None:
    with pytest.raises(InvalidArchive, match="a link, a device or another special file"):
        unpack(saved(tmp_path, evil), folder)

    assert tree(folder) == {"saved_model.pb": b"graph"}


def test_a_file_that_comes_twice_is_refused(tmp_path: Path, folder: Path) -> None:
    first, second = tarfile.TarInfo("saved_model.pb"), tarfile.TarInfo("./saved_model.pb")

    with pytest.raises(InvalidArchive, match="twice"):
        unpack(saved(tmp_path, tarball_of([(first, b""), (second, b"")])), folder)


def test_a_file_below_a_file_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NecliError):
        unpack(saved(tmp_path, tarball({"a": b"", "a/b": b""})), folder)


def test_a_bomb_ends_at_the_limit(tmp_path: Path, folder: Path) -> None:
    bomb = saved(tmp_path, tarball({"zeros": bytes(50 << 20)}))
    assert bomb.stat().st_size < 100_000

    with pytest.raises(InvalidArchive, match="unpacks to more than 1,048,576 bytes"):
        unpack(bomb, folder, limit=1 << 20)

    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20


def test_a_bomb_behind_the_last_file_ends_at_the_limit(tmp_path: Path, folder: Path) -> None:
    bomb = gzip.compress(gzip.decompress(tarball(FILES)) + bytes(50 << 20))

    with pytest.raises(InvalidArchive, match="unpacks to more than"):
        unpack(saved(tmp_path, bomb), folder, limit=1 << 20)


def test_a_giant_header_is_not_read_into_memory(tmp_path: Path, folder: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    evil = gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))

    with pytest.raises(InvalidArchive, match="longer than any model's"):
        unpack(saved(tmp_path, evil), folder)


def test_countless_files_are_refused(tmp_path: Path, folder: Path) -> None:
    many = tarball_of([(tarfile.TarInfo(f"d{i}/"), b"") for i in range(MAX_MEMBERS + 1)])

    with pytest.raises(InvalidArchive, match="more than 2000 files"):
        unpack(saved(tmp_path, many), folder)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_a_truncated_archive_is_refused(tmp_path: Path, folder: Path, mode: str, share: float) -> None:
    whole = tarball({"saved_model.pb": os.urandom(100_000)}, mode=mode)

    with pytest.raises(InvalidArchive):
        unpack(saved(tmp_path, whole[: int(len(whole) * share)]), folder)


def test_a_flipped_bit_in_a_compressed_archive_is_noticed(tmp_path: Path, folder: Path) -> None:
    damaged = bytearray(tarball({"saved_model.pb": os.urandom(100_000)}))
    damaged[50_000] ^= 1

    with pytest.raises(InvalidArchive, match="cut short or damaged"):
        unpack(saved(tmp_path, bytes(damaged)), folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"<html>", bytes(10_000), b"\x1f\x8b garbage"])
def test_what_is_no_archive_holds_no_model(tmp_path: Path, folder: Path, content: bytes) -> None:
    archive = saved(tmp_path, content)

    with pytest.raises(InvalidArchive):
        unpack_locked(archive, [LockedFile("saved_model.pb", "")], folder)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_ends_in_anything_but_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(tarball(FILES, mode=data.draw(st.sampled_from(["w", "w:gz"]))))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(len(damaged), 1100) - 1))] = data.draw(st.integers(0, 255))
    tmp_path = tmp_path_factory.mktemp("damaged")
    (tmp_path / "inside").mkdir()

    with suppress(NecliError):
        unpack(saved(tmp_path, bytes(damaged)), tmp_path / "inside", limit=1 << 20)

    assert {path.name for path in tmp_path.iterdir()} == {"archive.tar.gz", "inside"}


def test_locked_files_are_taken_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    archive = saved(tmp_path, tarball({"package/a/model.bin": b"weights", "package/../../evil": b"evil"}))
    locked = LockedFile("package/a/model.bin", hashlib.sha256(b"weights").hexdigest())

    assert unpack_locked(archive, [locked], folder) == [folder / "model.bin"]
    assert tree(folder) == {"model.bin": b"weights"}
    assert not list(tmp_path.parent.glob("evil"))


def test_a_locked_file_with_another_content_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = saved(tmp_path, tarball({"model.bin": b"other weights"}))

    with pytest.raises(MeasurementMismatch, match=r"model\.bin in archive\.tar\.gz isn't the file") as caught:
        unpack_locked(archive, [LockedFile("model.bin", hashlib.sha256(b"weights").hexdigest())], folder)

    assert caught.value.code == "digest_mismatch"


def test_a_missing_locked_file_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"archive\.tar\.gz has no model\.bin"):
        unpack_locked(saved(tmp_path, tarball(FILES)), [LockedFile("model.bin", "")], folder)
