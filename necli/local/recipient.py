"""The `Recipient` of a KMS request: an attested enclave's document, and what is sealed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from necli.attestation import TrustedRoot, unsafe_any_pcrs, verify_document
from necli.errors import AttestationInvalid
from necli.local.cms import seal_enveloped_data
from necli.local.kms_protocol import KmsError, Parameters

_MAX_DOCUMENT_BYTES = 262_144
_RSA_BITS = range(2048, 4097)


@dataclass(frozen=True)
class Recipient:
    """An enclave whose document was verified."""

    pcrs: Mapping[int, bytes]
    public_key: bytes

    @property
    def conditions(self) -> dict[str, str]:
        """The condition keys of its attestation."""
        values = {f"PCR{index}": value.hex() for index, value in self.pcrs.items()}
        image = {"ImageSha384": values["PCR0"]} if "PCR0" in values else {}
        return {f"kms:RecipientAttestation:{name}": value for name, value in (values | image).items()}

    def seal(self, plaintext: bytes) -> bytes:
        """A CMS EnvelopedData that only this enclave can open: `CiphertextForRecipient`."""
        return seal_enveloped_data(plaintext, self.public_key)


def verify_recipient(
    parameters: Parameters, *, roots: Sequence[TrustedRoot], now: datetime, max_age: timedelta
) -> Recipient:
    """Verify a request's `Recipient`: any PCRs will do here, the key policy judges them.

    :raises KmsError: ValidationException; how AWS words it is published nowhere.
    """
    if parameters.text("KeyEncryptionAlgorithm") != "RSAES_OAEP_SHA_256":
        raise KmsError("ValidationException", "KeyEncryptionAlgorithm must be RSAES_OAEP_SHA_256")
    data = parameters.blob("AttestationDocument", max_length=_MAX_DOCUMENT_BYTES)
    try:
        document = verify_document(data, roots=roots, at=now, max_age=max_age, expected=unsafe_any_pcrs)
    except AttestationInvalid as exc:
        raise KmsError("ValidationException", f"The attestation document is invalid: {exc.message}") from exc
    if document.public_key is None or not _is_usable_rsa_key(document.public_key):
        raise KmsError(
            "ValidationException", "The attestation document holds no RSA public key of 2048 to 4096 bits"
        )
    return Recipient(document.pcrs, document.public_key)


def _is_usable_rsa_key(der: bytes) -> bool:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return isinstance(key, RSAPublicKey) and key.key_size in _RSA_BITS
