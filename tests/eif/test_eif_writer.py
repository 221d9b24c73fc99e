"""Images that necli writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from necli.eif import image_metadata, read_eif, write_eif
from necli.errors import HostError, InputError
from necli.measurements import Measurements
from tests.eif.eif_images import CMDLINE, KERNEL, METADATA, METADATA_BYTES, METADATA_JSON, RAMDISK, image, pcr


def _write(path: Path, **changes) -> Measurements:
    content = {
        "kernel": b"a kernel",
        "cmdline": "console=ttyS0",
        "ramdisks": [b"init", b"application"],
        "metadata": METADATA_JSON,
    }
    return write_eif(path, **{**content, **changes})


def test_it_writes_the_format_byte_for_byte(tmp_path: Path):
    _write(tmp_path / "image.eif", arch="aarch64")
    compact = METADATA_BYTES.decode().replace(": ", ":").replace(", ", ",").encode()
    assert (tmp_path / "image.eif").read_bytes() == image(
        [
            (KERNEL, b"a kernel"),
            (CMDLINE, b"console=ttyS0"),
            (METADATA, compact),
            (RAMDISK, b"init"),
            (RAMDISK, b"application"),
        ],
        flags=1,
    )


def test_it_measures_what_it_writes(tmp_path: Path):
    written = _write(tmp_path / "image.eif")
    assert written == read_eif(tmp_path / "image.eif").measurements
    assert written.pcr0 == pcr(b"a kernel", b"console=ttyS0", b"init", b"application")


def test_files_and_bytes_give_the_same_image(tmp_path: Path):
    for name, content in (("kernel", b"a kernel"), ("application", b"application")):
        (tmp_path / name).write_bytes(content)
    _write(tmp_path / "bytes.eif")
    _write(tmp_path / "files.eif", kernel=tmp_path / "kernel", ramdisks=[b"init", tmp_path / "application"])
    assert (tmp_path / "bytes.eif").read_bytes() == (tmp_path / "files.eif").read_bytes()


def test_another_build_time_changes_no_measurement(tmp_path: Path):
    metadata = [
        image_metadata(name="n", version="1", build_time=f"2026-11-0{day}T00:00:00Z", build_tool_version="0")
        for day in (1, 2)
    ]
    first, second = (_write(tmp_path / "image.eif", metadata=value) for value in metadata)
    assert first == second


def test_every_input_byte_changes_pcr0(tmp_path: Path):
    plain = _write(tmp_path / "image.eif")
    for change in ({"kernel": b"b kernel"}, {"cmdline": "quiet"}, {"ramdisks": [b"init", b"applicatioN"]}):
        assert _write(tmp_path / "image.eif", **change).pcr0 != plain.pcr0


def test_a_failed_write_leaves_the_old_image_and_nothing_else(tmp_path: Path):
    before = _write(tmp_path / "image.eif")
    with pytest.raises(InputError, match=r"can't read .*missing: No such file"):
        _write(tmp_path / "image.eif", ramdisks=[b"init", tmp_path / "missing"])
    # sysfs says a page and gives a few bytes, like a file that is cut off meanwhile.
    with pytest.raises(InputError, match="cut off while it was read"):
        _write(tmp_path / "image.eif", ramdisks=[b"init", Path("/sys/kernel/uevent_seqnum")])
    assert os.listdir(tmp_path) == ["image.eif"]
    assert read_eif(tmp_path / "image.eif").measurements == before


def test_a_folder_that_is_not_there_is_the_hosts_error(tmp_path: Path):
    with pytest.raises(HostError, match=r"can't write .*missing/image.eif"):
        _write(tmp_path / "missing" / "image.eif")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"cmdline": "a\0b"}, "NUL"),
        ({"ramdisks": [b""] * 30}, "30 ramdisks are too many"),
        ({"metadata": {"ImageName": "no more"}}, "no valid ImageVersion"),
        ({"metadata": {k: v for k, v in METADATA_JSON.items() if k != "DockerInfo"}}, "no DockerInfo"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(change, fault: str, tmp_path: Path):
    with pytest.raises(InputError, match=fault):
        _write(tmp_path / "image.eif", **change)
    assert not list(tmp_path.iterdir())
