"""Images that AWS's own code wrote and signed, and what nitro-cli says of them (see assets/make.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from necli.eif import InvalidEif, describe, read_eif
from tests.eif.eif_images import checksummed

ASSETS = Path(__file__).parent / "assets"


@pytest.mark.parametrize("name", ["unsigned", "signed"])
def test_a_real_image_is_described_as_nitro_cli_does(name: str):
    printed = json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))
    # Rust's debug name of the hasher, which changes with the library's version.
    printed["Measurements"]["HashAlgorithm"] = "Sha384 { ... }"
    assert json.dumps(describe(read_eif(ASSETS / f"{name}.eif"))) == json.dumps(printed)


def test_signing_changes_no_register_but_pcr8():
    unsigned, signed = (read_eif(ASSETS / f"{name}.eif").measurements for name in ("unsigned", "signed"))
    assert signed.pcrs() == {**unsigned.pcrs(), 8: signed.pcr8}


def test_a_real_signature_does_not_hold_for_another_image(tmp_path: Path):
    raw = (ASSETS / "signed.eif").read_bytes()
    (tmp_path / "changed.eif").write_bytes(raw.replace(b"application", b"applicatiom"))
    with pytest.raises(InvalidEif, match="checksum"):
        read_eif(tmp_path / "changed.eif")
    (tmp_path / "changed.eif").write_bytes(checksummed(raw.replace(b"application", b"applicatiom")))
    eif = read_eif(tmp_path / "changed.eif")
    assert eif.signature
    assert not eif.signature.is_valid
    assert describe(eif)["SignatureCheck"] is False
