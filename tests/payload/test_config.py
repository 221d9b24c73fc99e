"""The enclave's baked configuration: read whole, or refused with the name of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enclave_payload.config import Config, ConfigError, UnixAddress, VsockAddress, parse_address
from tests.payload.baked import baked_config


@pytest.fixture
def baked() -> dict[str, Any]:
    return baked_config()


def test_a_whole_configuration_is_read(baked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(baked))
    config = Config.load(tmp_path / "config.json")
    assert config.listen == VsockAddress(port=5005)
    assert config.kms.address == VsockAddress(cid=3, port=8000)
    assert config.kms.trust_roots == Path("trust/kms-ca.pem")
    assert config.encryption_context == {"necli:workload": "object-detection"}
    assert config.limits.queue == 16


def test_the_encryption_context_cannot_be_changed_afterwards(baked: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Config.from_json(baked).encryption_context["necli:workload"] = "other"  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("schema", 2, "config.schema"),
        ("version", "", "config.version"),
        ("version", None, "config.version: missing"),
        ("listen", "tcp:80", "config.listen"),
        ("listen", "vsock:0", "config.listen"),
        ("kms.client", "curl", "config.kms.client"),
        ("kms.region", "eu central", "config.kms.region"),
        ("kms.region", "eu-west-1", "config.key_arn: not a key of eu-west-1"),
        ("kms.host", "host/../path", "config.kms.host"),
        ("kms.address", "vsock:8000", "config.kms.address: needs a CID"),
        ("kms.timeout_s", 0, "config.kms.timeout_s"),
        ("kms.client", "kmstool", "config.encryption_context: kmstool_enclave_cli can't send one"),
        ("key_arn", "alias/mine", "config.key_arn"),
        ("encryption_context", [], "config.encryption_context: not a JSON object"),
        ("encryption_context.purpose", 3, "config.encryption_context.purpose"),
        ("model", None, "config.model: missing"),
        ("model.digest", "AB" * 48, "config.model.digest"),
        ("limits.concurrency", True, "config.limits.concurrency"),
        ("limits.max_pixels", 2**40, "config.limits.max_pixels"),
        ("limits.max_pixel", 1, "config.limits.max_pixel: unknown"),
        ("debug", True, "config.debug: unknown"),
    ],
)
def test_what_is_wrong_is_named(baked: dict[str, Any], path: str, value: object, complaint: str) -> None:
    *parents, name = path.split(".")
    table = baked
    for parent in parents:
        table = table[parent]
    table[name] = value
    with pytest.raises(ConfigError, match=complaint):
        Config.from_json(baked)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError):
        Config.load(tmp_path / "config.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Config.load(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["vsock:5005", "vsock:3:8000", "unix:vsock/5005.sock"])
def test_an_address_is_printed_as_it_was_read(text: str) -> None:
    assert str(parse_address(text)) == text


def test_a_unix_path_may_hold_colons() -> None:
    assert parse_address("unix:a:b") == UnixAddress(Path("a:b"))
