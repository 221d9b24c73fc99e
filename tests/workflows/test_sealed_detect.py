"""Answers that only the data owner reads, from the photo to `necli receipt open`."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from PIL import Image
from typer.testing import CliRunner

from necli.cli.app import app
from necli.errors import AttestationInvalid, InputError
from necli.receipt import SealedReceipt
from necli.sealing import SEAL_TO, open_answer, seal_to
from necli.workflows.detect import Detection, EnclaveSession
from necli.workflows.encrypt import encrypt_image
from necli.workflows.setup import set_up
from necli.workflows.workload import Workload
from tests.workflows.light_enclave import forget_key_and_build, light_enclave


@pytest.fixture(scope="module")
def workload(services: Workload) -> Iterator[Workload]:
    set_up(services)
    with tempfile.TemporaryDirectory(prefix="necli-") as name, light_enclave(services, Path(name)):
        yield services
    forget_key_and_build(services)


@dataclass(frozen=True)
class Owner:
    key: X25519PrivateKey

    @property
    def public_pem(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def private_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def pair(self) -> dict[str, str]:
        return seal_to(self.public_pem)


@pytest.fixture
def owner() -> Owner:
    return Owner(X25519PrivateKey.generate())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "white").save(path)
    return path


def detect(workload: Workload, file: Path, owner: Owner | None = None) -> Detection:
    return EnclaveSession(workload).detect(file, min_score=0.4, context=owner.pair if owner else {})


def receipt_of(found: Detection) -> SealedReceipt:
    assert isinstance(found.receipt, SealedReceipt)
    return found.receipt


def test_the_parent_sees_a_sealed_answer_only_and_the_owner_opens_it(
    workload: Workload, owner: Owner, photo: Path
) -> None:
    found = detect(workload, photo, owner)
    assert found.objects is None
    shown = json.dumps(found.to_json())
    assert "zebra" not in shown
    assert "objects" not in shown
    answer = open_answer(receipt_of(found).sealed, owner.key)
    assert [each["name"] for each in answer["objects"]] == ["zebra", "cat"]


def test_without_a_key_nothing_changes(workload: Workload, photo: Path) -> None:
    found = detect(workload, photo)
    assert [each.name for each in found.objects or ()] == ["zebra", "cat"]


def test_a_parent_that_puts_its_own_key_into_the_message_gets_no_answer(
    workload: Workload, owner: Owner, photo: Path, tmp_path: Path
) -> None:
    message = encrypt_image(workload, photo.read_bytes(), photo, owner.pair)
    parent = Owner(X25519PrivateKey.generate())
    forged = tmp_path / "forged"
    forged.write_bytes(message.replace(owner.pair[SEAL_TO].encode(), parent.pair[SEAL_TO].encode()))
    with pytest.raises(InputError) as caught:
        detect(workload, forged)
    assert caught.value.code == "message_invalid"


def test_a_message_that_doesnt_ask_for_it_isnt_taken_for_sealed(
    workload: Workload, owner: Owner, photo: Path, tmp_path: Path
) -> None:
    message = tmp_path / "message"
    message.write_bytes(encrypt_image(workload, photo.read_bytes(), photo, {}))
    with pytest.raises(InputError) as caught:
        detect(workload, message, owner)
    assert caught.value.code == "not_sealed"


def test_the_receipt_is_about_these_sealed_bytes(workload: Workload, owner: Owner, photo: Path) -> None:
    receipt = receipt_of(detect(workload, photo, owner))
    other = SealedReceipt(receipt.sealed[:-1] + b"\0", receipt.document, receipt.nonce)
    with pytest.raises(AttestationInvalid) as caught:
        other.verify(
            roots=workload.backend.attestation_roots(),
            expected=workload.build().measurements.pcrs(),
            at=datetime.now(UTC),
        )
    assert caught.value.code == "user_data_mismatch"


def test_the_owner_verifies_and_opens_it_from_a_file(
    workload: Workload, owner: Owner, photo: Path, tmp_path: Path
) -> None:
    message, saved, key = tmp_path / "message", tmp_path / "answer.json", tmp_path / "owner.key"
    message.write_bytes(encrypt_image(workload, photo.read_bytes(), photo, owner.pair))
    saved.write_text(json.dumps({"results": [detect(workload, message).to_json()]}))
    key.write_bytes(owner.private_pem)
    pcr0 = workload.build().measurements.pcr0.hex()

    def run(command: str, *arguments: str | Path) -> tuple[int, str]:
        words = ["--home", workload.home.state, "receipt", command, saved, "--pcr0", pcr0, *arguments]
        done = CliRunner().invoke(app, [str(word) for word in words])
        return done.exit_code, done.stdout

    code, text = run("open", "--key", key, "--message", message, "--json")
    [opened] = json.loads(text)["receipts"]
    assert (code, opened["verified"], len(opened["answer"]["objects"])) == (0, True, 2)
    assert "zebra" in run("open", "--key", key)[1]
    assert run("open", "--key", key, "--message", photo)[0] == 6
    assert "a sealed answer, as the expected image found" in run("verify")[1]
    assert run("verify", "--message", message)[0] == 2
    key.write_bytes(Owner(X25519PrivateKey.generate()).private_pem)
    assert run("open", "--key", key)[0] == 3
    receipt = json.loads(saved.read_text())
    receipt["results"][0]["receipt"]["nonce"] = base64.b64encode(b"another").decode()
    saved.write_text(json.dumps(receipt))
    assert run("open", "--key", key)[0] == 6
