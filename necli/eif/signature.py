"""The signature section of an EIF: who signed PCR0, and whether that signature holds.

CBOR: an array of maps, each with `signing_certificate` (PEM) and `signature` (a COSE_Sign1 over a register's
index and value). Only the first counts, as for the hypervisor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import cbor2
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from necli.cose import Sign1, load_cbor
from necli.eif.layout import MAX_SIGNATURE_BYTES, InvalidEif
from necli.measurements import extend_from_zero


@dataclass(frozen=True)
class SigningCertificate:
    issuer: Sequence[tuple[str, str]]
    """Attributes as (dotted object identifier, value)."""
    algorithm: str
    """The dotted object identifier of the algorithm that the issuer signed with."""
    not_before: datetime
    not_after: datetime
    signature: bytes
    der: bytes

    @property
    def pcr8(self) -> bytes:
        return extend_from_zero(hashlib.sha384(self.der).digest())


@dataclass(frozen=True)
class ImageSignature:
    certificate: SigningCertificate
    is_valid: bool
    """Whether the certificate's key signed this image's PCR0; not whether to trust the certificate."""


def parse_signature(raw: bytes, *, pcr0: bytes) -> ImageSignature:
    """Read the section's bytes, and verify the signature against the measured PCR0.

    :raises InvalidEif: the section isn't what the format says.
    """
    if len(raw) > MAX_SIGNATURE_BYTES:
        raise InvalidEif(f"its signature section has {len(raw)} bytes; {MAX_SIGNATURE_BYTES} are allowed")
    try:
        pem, message = _first_entry(load_cbor(raw))
        certificate = x509.load_pem_x509_certificate(pem)
        return ImageSignature(_described(certificate), _signs(certificate, Sign1.parse(message), pcr0))
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as exc:
        raise InvalidEif(f"its signature section can't be read: {exc}") from exc


def _first_entry(entries: Any) -> tuple[bytes, bytes]:
    match entries:
        case [{"signing_certificate": pem, "signature": message}, *_]:
            return _octets(pem), _octets(message)
    raise ValueError("not a list of certificates with signatures")


def _octets(value: Any) -> bytes:
    """The format writes octets as an array of integers; nitro-cli takes a byte string as well."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, list) and all(isinstance(octet, int) for octet in value):
        return bytes(value)
    raise ValueError("not an array of octets")


def _described(certificate: x509.Certificate) -> SigningCertificate:
    return SigningCertificate(
        issuer=[(name.oid.dotted_string, str(name.value)) for name in certificate.issuer],
        algorithm=certificate.signature_algorithm_oid.dotted_string,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        signature=certificate.signature,
        der=certificate.public_bytes(Encoding.DER),
    )


def _signs(certificate: x509.Certificate, message: Sign1, pcr0: bytes) -> bool:
    signed = cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})
    return message.payload == signed and message.is_signed_by(certificate.public_key())
