"""`necli eif describe`, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from necli.cli.app import app
from necli.eif import describe, read_eif
from tests.eif.eif_images import METADATA, METADATA_BYTES, SECTIONS, image, pcr

MEASURED = [data for kind, data in SECTIONS if kind != METADATA]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image.eif"
    path.write_bytes(image())
    return path


def test_a_program_gets_the_keys_of_nitro_cli(path: Path):
    result = CliRunner().invoke(app, ["eif", "describe", str(path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "EifVersion": 4,
        "Measurements": {
            "HashAlgorithm": "Sha384 { ... }",
            "PCR0": pcr(*MEASURED).hex(),
            "PCR1": pcr(*MEASURED[:3]).hex(),
            "PCR2": pcr(*MEASURED[3:]).hex(),
        },
        "IsSigned": False,
        "CheckCRC": True,
        "ImageName": "hello",
        "ImageVersion": "1.2",
        "Metadata": {
            "BuildTime": "2026-11-01T10:00:00+00:00",
            "BuildTool": "by hand",
            "BuildToolVersion": "0",
            "OperatingSystem": "Linux",
            "KernelVersion": "6.1",
            "DockerInfo": {"RepoTags": ["hello:latest"]},
            "team": "red",
        },
    }


def test_people_see_registers_whole_and_every_section(path: Path):
    result = CliRunner().invoke(app, ["eif", "describe", str(path)])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["image", "hello", "1.2"] in lines
    assert ["PCR2", pcr(*MEASURED[3:]).hex()] in lines
    assert ["kernel", "560", "8"] in lines
    assert [line[0] for line in lines if line].count("ramdisk") == 3


def test_a_damaged_image_is_an_error_with_a_hint_and_exit_code_3(path: Path):
    path.write_bytes(path.read_bytes().replace(b"model", b"medel"))
    result = CliRunner().invoke(app, ["eif", "describe", str(path), "--json"])
    assert result.exit_code == 3
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "invalid_eif"
    assert "its checksum (offset 544) is" in error["message"]
    assert error["hint"] == "copy the image again, or build it anew"


def test_custom_metadata_cannot_replace_what_the_builder_said(path: Path):
    metadata = METADATA_BYTES.replace(b'"team"', b'"BuildTool"')
    path.write_bytes(image([(k, metadata if k == METADATA else data) for k, data in SECTIONS]))
    assert describe(read_eif(path))["Metadata"]["BuildTool"] == "by hand"
