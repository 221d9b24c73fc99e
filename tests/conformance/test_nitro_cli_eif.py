"""necli's enclave images against AWS's own code, both ways."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from necli.eif import InvalidEif, describe, image_metadata, read_eif, write_eif

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(
        not shutil.which("eif-tool"),
        reason="eif-tool is not installed: run tests/conformance/install-eif-tools.sh",
    ),
]

KERNEL, CMDLINE = b"a kernel" * 1000, "reboot=k console=ttyS0 ünïcode"
RAMDISKS = [b"init" * 777, b"application" * 9_999, b"", b"model" * 5]
METADATA = image_metadata(
    name="conformance",
    version="1.0",
    build_time="2026-11-01T10:00:00+00:00",
    build_tool_version="0.1.0",
    docker_info={"RepoTags": ["a:b"], "Size": 123},
    custom={"nested": {"list": [1, None, "ü"]}, "team": "red"},
)
CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


def _eif_tool(*arguments: str | Path) -> str:
    done = subprocess.run(["eif-tool", *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout


def _described_by_aws(path: Path) -> dict[str, Any]:
    description = json.loads(_eif_tool("describe", path))
    # Rust's debug name of the hasher, which changes with the library's version.
    description["Measurements"]["HashAlgorithm"] = "Sha384 { ... }"
    return description


def _build_with_aws(folder: Path, ramdisks: list[bytes]) -> tuple[Path, dict[str, str]]:
    for name, content in {
        "kernel": KERNEL,
        "metadata": json.dumps(METADATA, ensure_ascii=False).encode(),
        **{f"ramdisk{index}": content for index, content in enumerate(ramdisks)},
    }.items():
        (folder / name).write_bytes(content)
    paths = [folder / f"ramdisk{index}" for index in range(len(ramdisks))]
    output = folder / "aws.eif"
    measured = _eif_tool("build", folder / "kernel", CMDLINE, folder / "metadata", output, *paths)
    return output, json.loads(measured)


def _build_with_necli(folder: Path) -> Path:
    path = folder / "necli.eif"
    write_eif(path, kernel=KERNEL, cmdline=CMDLINE, ramdisks=RAMDISKS, metadata=METADATA)
    return path


def _sign(path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "Ünser Signer"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
        ]
    )
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, start, start + timedelta(days=3650))
    pem = builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM)
    path.with_suffix(".crt").write_bytes(pem)
    path.with_suffix(".key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    _eif_tool("sign", path, path.with_suffix(".key"), path.with_suffix(".crt"))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_image_that_aws_wrote_measures_the_same(count: int, tmp_path: Path):
    path, measured = _build_with_aws(tmp_path, RAMDISKS[:count])
    eif = read_eif(path)
    assert {name: value for name, value in eif.measurements.to_json().items() if name.startswith("PCR")} == {
        name: value for name, value in measured.items() if name.startswith("PCR")
    }
    assert describe(eif) == _described_by_aws(path)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_an_image_that_aws_wrote_and_signed_measures_the_same(curve: ec.EllipticCurve, tmp_path: Path):
    path, _ = _build_with_aws(tmp_path, RAMDISKS)
    _sign(path, curve)
    eif = read_eif(path)
    assert eif.signature.is_valid
    assert describe(eif) == _described_by_aws(path)
    assert "PCR8" in describe(eif)["Measurements"]


def test_an_image_that_necli_wrote_is_described_the_same(tmp_path: Path):
    path = _build_with_necli(tmp_path)
    description = describe(read_eif(path))
    assert description == _described_by_aws(path)
    assert json.dumps(description) == json.dumps(_described_by_aws(path)), "even in the same order"


def test_an_image_that_necli_wrote_can_be_signed_by_aws(tmp_path: Path):
    path = _build_with_necli(tmp_path)
    _sign(path, ec.SECP384R1())
    description = describe(read_eif(path))
    assert description == _described_by_aws(path)
    assert description["SignatureCheck"] is True


def test_both_write_the_same_bytes(tmp_path: Path):
    path, _ = _build_with_aws(tmp_path, RAMDISKS)
    assert _build_with_necli(tmp_path).read_bytes() == path.read_bytes()


def test_an_image_that_aws_signed_twice_contradicts_itself(tmp_path: Path):
    """sign-eif leaves the first signature's size in the header's table, which the specification forbids."""
    path = _build_with_necli(tmp_path)
    _sign(path, ec.SECP256R1())
    _sign(path, ec.SECP521R1())
    with pytest.raises(InvalidEif, match=r"section 7 at offset .* should end at|follow its last section"):
        read_eif(path)
