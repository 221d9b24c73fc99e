"""Attested requests: real documents of a simulated NSM, good and bad, through boto3 to the service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from running_kms import RunningKms

from enclave_payload.cms import open_enveloped_data
from necli.keypolicy import plan_measurements
from necli.local.nsm import SimulatedNsm
from necli.local.pki import LocalPki
from necli.measurements import ZERO, Measurements

IMAGE = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
OTHER = Measurements(b"\x11" * 48, b"\x02" * 48, b"\x03" * 48)
OTHER_APPLICATION = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x13" * 48)
DEBUG = Measurements(ZERO, ZERO, ZERO)
CONTEXT = {"necli:workload": "object-detection"}
RSA = rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def key(kms: RunningKms) -> str:
    """A key bound to IMAGE."""
    change = plan_measurements(kms.initial_policy(), IMAGE, parent_arn=kms.identities.parent.role_arn)
    return kms.new_key(change.after)


@pytest.fixture(scope="module")
def data_key(kms: RunningKms, key: str) -> dict[str, Any]:
    made: dict[str, Any] = kms.owner.generate_data_key(
        KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT
    )
    return made


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def document(
    pki: LocalPki,
    pcrs: Mapping[int, bytes],
    public_key: bytes | None = None,
    at: datetime | None = None,
) -> bytes:
    nsm = SimulatedNsm(pki, "i-simulated-enc0", pcrs, clock=lambda: at or datetime.now(UTC))
    fields = {"public_key": public_key, "user_data": None, "nonce": None}
    answer = cbor2.loads(nsm.handle(cbor2.dumps({"Attestation": fields})))
    attested: bytes = answer["Attestation"]["document"]
    return attested


def recipient(kms: RunningKms, measurements: Measurements = IMAGE) -> dict[str, Any]:
    return as_recipient(document(kms.pki, measurements.pcrs(), spki(RSA)))


def as_recipient(attested: bytes) -> dict[str, Any]:
    return {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": attested}


def decrypt(client: Any, data_key: dict[str, Any], **more: Any) -> Any:
    return client.decrypt(CiphertextBlob=data_key["CiphertextBlob"], EncryptionContext=CONTEXT, **more)


def refused(code: str, match: str = "") -> Any:
    return pytest.raises(ClientError, match=rf"\({code}\).*{match}")


def test_the_measured_enclave_gets_the_data_key_sealed_and_nobody_sees_it_plain(
    kms: RunningKms, data_key: dict[str, Any], key: str
) -> None:
    answer = decrypt(kms.parent, data_key, Recipient=recipient(kms))
    assert "Plaintext" not in answer
    assert answer["KeyId"] == key
    assert open_enveloped_data(answer["CiphertextForRecipient"], RSA) == data_key["Plaintext"]


@pytest.mark.parametrize("measurements", [OTHER, OTHER_APPLICATION, DEBUG])
def test_another_image_or_debug_mode_is_refused_by_the_policy(
    kms: RunningKms, data_key: dict[str, Any], measurements: Measurements
) -> None:
    with refused("AccessDeniedException", "with an explicit deny in a resource-based policy"):
        decrypt(kms.parent, data_key, Recipient=recipient(kms, measurements))


def test_the_log_says_which_register_was_another_one(kms: RunningKms, data_key: dict[str, Any]) -> None:
    with refused("AccessDeniedException"):
        decrypt(kms.parent, data_key, Recipient=recipient(kms, OTHER_APPLICATION))
    assert "DenyDecryptUnlessPCR2: kms:RecipientAttestation:PCR2 is another" in kms.log


def test_the_enclave_of_another_role_is_refused(kms: RunningKms, data_key: dict[str, Any]) -> None:
    with refused("AccessDeniedException", "no resource-based policy allows the kms:Decrypt action"):
        decrypt(kms.owner, data_key, Recipient=recipient(kms))


def test_a_signed_image_is_known_by_its_certificate(kms: RunningKms) -> None:
    signed = Measurements(IMAGE.pcr0, IMAGE.pcr1, IMAGE.pcr2, b"\x08" * 48)
    change = plan_measurements(kms.initial_policy(), signed, parent_arn=kms.identities.parent.role_arn)
    made = kms.owner.generate_data_key(
        KeyId=kms.new_key(change.after), KeySpec="AES_256", EncryptionContext=CONTEXT
    )
    decrypt(kms.parent, made, Recipient=recipient(kms, signed))
    with refused("AccessDeniedException", "explicit deny"):
        decrypt(kms.parent, made, Recipient=recipient(kms, IMAGE))


def test_the_image_digest_is_the_other_name_of_pcr0(kms: RunningKms) -> None:
    policy = kms.initial_policy().to_json()
    attested = "kms:RecipientAttestation:ImageSha384"
    allow = next(statement for statement in policy["Statement"] if statement["Sid"] == "EnclaveDecrypt")
    condition = {"StringEqualsIgnoreCase": {attested: IMAGE.pcr0.hex().upper()}}
    key = kms.new_key({**policy, "Statement": [*policy["Statement"][:3], {**allow, "Condition": condition}]})
    made = kms.owner.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
    decrypt(kms.parent, made, Recipient=recipient(kms, IMAGE))
    with refused("AccessDeniedException", "no resource-based policy allows"):
        decrypt(kms.parent, made, Recipient=recipient(kms, OTHER))


def test_data_keys_and_random_bytes_are_sealed_too(kms: RunningKms) -> None:
    made = kms.owner.generate_data_key(KeyId=kms.new_key(), KeySpec="AES_256", Recipient=recipient(kms))
    assert "Plaintext" not in made
    sealed = open_enveloped_data(made["CiphertextForRecipient"], RSA)
    assert kms.administrator.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == sealed
    random = kms.parent.generate_random(NumberOfBytes=24, Recipient=recipient(kms))
    assert "Plaintext" not in random
    assert len(open_enveloped_data(random["CiphertextForRecipient"], RSA)) == 24


@pytest.fixture(scope="module")
def good(kms: RunningKms) -> bytes:
    return document(kms.pki, IMAGE.pcrs(), spki(RSA))


class TestBadDocuments:
    """None of them gets as far as the policy."""

    def refuse(self, kms: RunningKms, data_key: dict[str, Any], attested: bytes, match: str = "") -> None:
        with refused("ValidationException", match):
            decrypt(kms.parent, data_key, Recipient=as_recipient(attested))

    @pytest.mark.parametrize("junk", [b"\x00", b"not a document", b"\x84" * 100, bytes(20_000)])
    def test_what_is_no_document(self, kms: RunningKms, data_key: dict[str, Any], junk: bytes) -> None:
        self.refuse(kms, data_key, junk, "The attestation document is invalid")

    def test_a_changed_bit(self, kms: RunningKms, data_key: dict[str, Any], good: bytes) -> None:
        for position in range(0, len(good), 97):
            changed = bytearray(good)
            changed[position] ^= 1
            self.refuse(kms, data_key, bytes(changed))

    def test_a_truncated_one(self, kms: RunningKms, data_key: dict[str, Any], good: bytes) -> None:
        self.refuse(kms, data_key, good[:-1])

    def test_forged_pcrs_under_the_old_signature(self, kms: RunningKms, data_key: dict[str, Any]) -> None:
        protected, unprotected, payload, signature = cbor2.loads(document(kms.pki, OTHER.pcrs(), spki(RSA)))
        forged = payload.replace(OTHER.pcr0, IMAGE.pcr0)
        assert forged != payload
        attested = cbor2.dumps([protected, unprotected, forged, signature])
        self.refuse(kms, data_key, attested, "signature")

    def test_one_under_a_root_of_somebody_else(
        self, kms: RunningKms, data_key: dict[str, Any], tmp_path: Path
    ) -> None:
        stranger = LocalPki.ensure(tmp_path)
        self.refuse(kms, data_key, document(stranger, IMAGE.pcrs(), spki(RSA)), "root")

    def test_one_that_is_older_than_five_minutes(self, kms: RunningKms, data_key: dict[str, Any]) -> None:
        old = datetime.now(UTC) - timedelta(minutes=5, seconds=5)
        self.refuse(kms, data_key, document(kms.pki, IMAGE.pcrs(), spki(RSA), at=old), "older")

    def test_one_from_the_future(self, kms: RunningKms, data_key: dict[str, Any]) -> None:
        soon = datetime.now(UTC) + timedelta(minutes=10)
        self.refuse(kms, data_key, document(kms.pki, IMAGE.pcrs(), spki(RSA), at=soon))

    @pytest.mark.parametrize(
        "public_key",
        [
            None,
            b"x",
            spki(rsa.generate_private_key(65537, 1024)),
            spki(ec.generate_private_key(ec.SECP384R1())),
        ],
        ids=["none", "junk", "rsa-1024", "p-384"],
    )
    def test_one_without_a_usable_public_key(
        self, kms: RunningKms, data_key: dict[str, Any], public_key: bytes | None
    ) -> None:
        attested = document(kms.pki, IMAGE.pcrs(), public_key)
        self.refuse(kms, data_key, attested, "no RSA public key of 2048 to 4096 bits")

    @pytest.mark.parametrize(
        "change",
        [
            {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_1"},
            {"KeyEncryptionAlgorithm": None},
            {"AttestationDocument": b""},
        ],
    )
    def test_an_incomplete_recipient(
        self, kms: RunningKms, data_key: dict[str, Any], change: dict[str, Any]
    ) -> None:
        given = {name: value for name, value in {**recipient(kms), **change}.items() if value is not None}
        with refused("ValidationException"):
            decrypt(kms.parent, data_key, Recipient=given)


def test_how_old_a_document_may_be_is_a_setting(tmp_path: Path) -> None:
    running = RunningKms(tmp_path, "--max-document-age", "3600")
    running.start()
    try:
        old = datetime.now(UTC) - timedelta(minutes=30)
        attested = document(running.pki, IMAGE.pcrs(), spki(RSA), at=old)
        running.parent.generate_random(NumberOfBytes=1, Recipient=as_recipient(attested))
    finally:
        running.stop()
