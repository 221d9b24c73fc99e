"""Attestation documents of Nitro Enclaves, and what it takes to believe one.

A document is a COSE_Sign1 over a CBOR map: the PCRs, three values that the enclave chose (public key, user
data, nonce), and the certificates that lead from the signing key to a root. Everything in it is hostile until
`verify_document` has returned.

Specification: docs/attestation_process.md in aws/aws-nitro-enclaves-nsm-api.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

from necli.cose import Sign1, load_cbor
from necli.errors import AttestationInvalid, InputError

MAX_DOCUMENT_BYTES: Final = 16 * 1024
MAX_CLOCK_SKEW: Final = timedelta(minutes=5)
PCR_BYTES: Final = 48
_MAX_PCRS: Final = 32
_MAX_CERTIFICATE_BYTES: Final = 1024
_MAX_CABUNDLE: Final = 8
_MAX_PUBLIC_KEY_BYTES: Final = 1024
_MAX_USER_BYTES: Final = 512
_ES384: Final = bytes.fromhex("a1013822")  # {1: -35}
_REQUIRED: Final = frozenset(("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"))
_OPTIONAL: Final = frozenset(("public_key", "user_data", "nonce"))


class _AnyPcrs(Enum):
    UNSAFE = "unsafe_any_pcrs"


unsafe_any_pcrs: Final = _AnyPcrs.UNSAFE
"""Given as `expected`: any image will do. Only for a caller that judges the PCRs itself, as KMS does."""


@dataclass(frozen=True)
class TrustedRoot:
    """The certificate that a chain must end in, by the SHA-256 of its DER."""

    name: str
    fingerprint: bytes
    simulated: ClassVar[bool] = False


@dataclass(frozen=True)
class SimulatedRoot(TrustedRoot):
    """The root of the local target. It vouches for a process, not for an isolated enclave."""

    simulated: ClassVar[bool] = True

    @classmethod
    def from_pem(cls, pem: bytes) -> SimulatedRoot:
        """:raises InputError: no certificate is in it."""
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, x509.InvalidVersion) as exc:
            raise InputError("the root isn't a certificate in PEM", code="not_a_certificate") from exc
        return cls(certificate.subject.rfc4514_string(), certificate.fingerprint(hashes.SHA256()))


NITRO_ROOT: Final = TrustedRoot(
    "aws.nitro-enclaves, root G1",
    bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"),
)


@dataclass(frozen=True)
class Step:
    """One of the numbered steps of `verify_document`."""

    title: str
    codes: frozenset[str]
    """Of the errors that end the verification there."""


STEPS: Final = (
    Step("structure: a COSE_Sign1 by ES384, with the members of a document", frozenset(("malformed",))),
    Step("root: its CA bundle starts with a trusted one", frozenset(("untrusted_root",))),
    Step("chain: one path to the leaf, P-384, valid at that time", frozenset(("bad_chain", "expired"))),
    Step("leaf: may sign data, and is no CA", frozenset()),
    Step("signature: the leaf's key signed these bytes", frozenset(("bad_signature",))),
    Step("time: made by then, and not too long before", frozenset(("not_yet_valid", "too_old"))),
    Step(
        "PCRs: each expected one is there and equal",
        frozenset(("no_expected_pcrs", "debug_mode", "pcr_mismatch")),
    ),
    Step("nonce and user data: the expected ones", frozenset(("nonce_mismatch", "user_data_mismatch"))),
)
"""A leaf that may not sign is told from a broken chain by the message only: both are `bad_chain`."""


def passed_steps(failure: AttestationInvalid) -> int:
    """How many of STEPS a document passed before `verify_document` raised this."""
    return next(number for number, step in enumerate(STEPS) if failure.code in step.codes)


@dataclass(frozen=True)
class AttestationDocument:
    """What a document says. Nothing of it is proven unless `verify_document` returned it."""

    module_id: str
    digest: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    """DER of the certificate whose key signed the document."""
    cabundle: tuple[bytes, ...]
    """DER of its issuers, the root first."""
    public_key: bytes | None = None
    user_data: bytes | None = None
    nonce: bytes | None = None

    @classmethod
    def parse(cls, data: bytes) -> AttestationDocument:
        """Read a signed document without verifying it.

        :raises AttestationInvalid: it isn't one.
        """
        return cls._from_payload(_parse_sign1(data).payload)

    @classmethod
    def _from_payload(cls, payload: bytes) -> AttestationDocument:
        with _refusing("not an attestation document", "malformed"):
            members = load_cbor(payload)
        if not isinstance(members, dict) or members.keys() - _REQUIRED - _OPTIONAL:
            raise _malformed("the payload isn't a map of the known members")
        if missing := sorted(_REQUIRED - members.keys()):
            raise _malformed(f"it has no {missing[0]}")
        if members["digest"] != "SHA384":
            raise _malformed("digest isn't SHA384")
        return cls(
            module_id=_text(members, "module_id"),
            digest="SHA384",
            timestamp=_timestamp(members["timestamp"]),
            pcrs=_pcrs(members["pcrs"]),
            certificate=_byte_string(members["certificate"], "certificate", 1, _MAX_CERTIFICATE_BYTES),
            cabundle=_cabundle(members["cabundle"]),
            public_key=_optional_bytes(members, "public_key", 1, _MAX_PUBLIC_KEY_BYTES),
            user_data=_optional_bytes(members, "user_data", 0, _MAX_USER_BYTES),
            nonce=_optional_bytes(members, "nonce", 0, _MAX_USER_BYTES),
        )

    @property
    def is_debug(self) -> bool:
        """Whether the enclave ran in debug mode: it attests zeros, and its console is readable."""
        return not any(any(self.pcrs.get(index, b"")) for index in (0, 1, 2))


def verify_document(
    data: bytes,
    *,
    roots: Sequence[TrustedRoot],
    expected: Mapping[int, bytes] | _AnyPcrs | None,
    at: datetime | None = None,
    max_age: timedelta | None = None,
    nonce: bytes | None = None,
    user_data: bytes | None = None,
) -> AttestationDocument:
    """Prove what a document says, as of the time `at` (now, if it isn't given).

    1. It is a COSE_Sign1 by ES384 with no other header, and its payload has the members of a document.
    2. Its CA bundle starts with one of `roots`; a simulated root counts only if it is among them.
    3. The certificates form one path from that root to the leaf, all valid at `at`, all P-384 with SHA-384,
       CAs where they must be, within their path lengths.
    4. The leaf may sign data, and is no CA.
    5. The leaf's key signed exactly the bytes received.
    6. The document was made by `at`, and no longer than `max_age` before.
    7. Each of the `expected` PCRs is there and equal. No expectation is a failure, not a match.
    8. Nonce and user data are the expected ones, where they are given.

    :raises AttestationInvalid: one of these is not so; `code` says which.
    """
    at = at or datetime.now(UTC)

    # 1.
    message = _parse_sign1(data)
    document = AttestationDocument._from_payload(message.payload)

    # 2.
    fingerprint = hashlib.sha256(document.cabundle[0]).digest()
    if not any(hmac.compare_digest(fingerprint, root.fingerprint) for root in roots):
        raise AttestationInvalid(
            "the document's root certificate isn't a trusted one",
            hint="a document of the local target is accepted only where its simulated root is named",
            code="untrusted_root",
        )

    # 3. and 4.
    leaf = _verify_chain(document, at)

    # 5.
    with _refusing("the leaf certificate's key is unusable", "bad_chain"):
        key = leaf.public_key()
    if not message.is_signed_by(key):
        raise AttestationInvalid("the document's signature doesn't hold", code="bad_signature")

    # 6.
    _check_age(document.timestamp, at, max_age)

    # 7.
    _check_pcrs(document, expected)

    # 8.
    _check_equal("nonce", document.nonce, nonce)
    _check_equal("user_data", document.user_data, user_data)
    return document


def _parse_sign1(data: bytes) -> Sign1:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _malformed(f"it is larger than {MAX_DOCUMENT_BYTES} bytes")
    with _refusing("not an attestation document", "malformed"):
        message = Sign1.parse(data)
    if message.protected != _ES384 or message.unprotected:
        raise _malformed("its COSE header isn't ES384 alone")
    return message


def _verify_chain(document: AttestationDocument, at: datetime) -> x509.Certificate:
    with _refusing("the document's certificates don't lead to their root", "bad_chain"):
        leaf = x509.load_der_x509_certificate(document.certificate)
        bundle = [x509.load_der_x509_certificate(der) for der in document.cabundle]
        for certificate in (leaf, *bundle):
            _check_validity(certificate, at)
            _check_algorithms(certificate)
        path = _verifier(bundle[0], at).verify(leaf, bundle[1:]).chain
        if path != [leaf, *reversed(bundle)]:
            raise ValueError("the CA bundle isn't the path, root first")
    return leaf


def _verifier(root: x509.Certificate, at: datetime) -> verification.ClientVerifier:
    # Real leaves have neither a subject alternative name, an extended key usage nor an authority key
    # identifier, all of which the web's policy demands.
    leaf_policy = (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, _refuse_ca)
        .require_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _require_digital_signature)
    )
    return (
        verification.PolicyBuilder()
        .store(verification.Store([root]))
        .time(at)
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=leaf_policy
        )
        .build_client_verifier()
    )


def _refuse_ca(_: verification.Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if constraints.ca or constraints.path_length is not None:
        raise ValueError("the leaf certificate is a CA's")


def _require_digital_signature(_: verification.Policy, __: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature or usage.key_cert_sign:
        raise ValueError("the leaf certificate isn't for signing data")


def _check_validity(certificate: x509.Certificate, at: datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= at <= end:
        raise AttestationInvalid(
            f"a certificate of the document is valid from {start} to {end}, not at {at}", code="expired"
        )


def _check_algorithms(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("a certificate's key isn't P-384")
    if not isinstance(certificate.signature_hash_algorithm, hashes.SHA384):
        raise ValueError("a certificate isn't signed with SHA-384")


def _check_age(timestamp: datetime, at: datetime, max_age: timedelta | None) -> None:
    if timestamp > at + MAX_CLOCK_SKEW:
        raise AttestationInvalid(f"the document is from the future: {timestamp}", code="not_yet_valid")
    if max_age is not None and at - timestamp > max_age:
        raise AttestationInvalid(f"the document is older than {max_age}: {timestamp}", code="too_old")


def _check_pcrs(document: AttestationDocument, expected: Mapping[int, bytes] | _AnyPcrs | None) -> None:
    if expected is unsafe_any_pcrs:
        return
    if not expected:
        raise AttestationInvalid("no PCRs to expect: any image at all would pass", code="no_expected_pcrs")
    if document.is_debug:
        raise AttestationInvalid(
            "the enclave ran in debug mode: its PCRs are zero and prove nothing",
            hint="run it again without --debug-mode",
            code="debug_mode",
        )
    different = [
        f"PCR{index}"
        for index, value in sorted(expected.items())
        if index not in document.pcrs or not hmac.compare_digest(document.pcrs[index], value)
    ]
    if different:
        raise AttestationInvalid(f"another image was measured: {', '.join(different)}", code="pcr_mismatch")


def _check_equal(name: str, found: bytes | None, expected: bytes | None) -> None:
    if expected is not None and (found is None or not hmac.compare_digest(found, expected)):
        raise AttestationInvalid(f"the document's {name} isn't the expected one", code=f"{name}_mismatch")


def _malformed(reason: str) -> AttestationInvalid:
    return AttestationInvalid(f"not an attestation document: {reason}", code="malformed")


@contextmanager
def _refusing(what: str, code: str) -> Iterator[None]:
    """Turn what the CBOR and X.509 libraries raise on hostile bytes into AttestationInvalid."""
    try:
        yield
    except (
        ValueError,
        UnsupportedAlgorithm,
        verification.VerificationError,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as exc:
        raise AttestationInvalid(f"{what}: {exc}", code=code) from exc


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members[name]
    if not isinstance(value, str) or not value:
        raise _malformed(f"{name} isn't a text")
    return value


def _timestamp(value: object) -> datetime:
    if type(value) is not int or value <= 0:
        raise _malformed("timestamp isn't a positive number")
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise _malformed("timestamp is out of range") from exc


def _pcrs(value: object) -> Mapping[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= _MAX_PCRS:
        raise _malformed(f"pcrs isn't a map of 1 to {_MAX_PCRS} entries")
    for index, digest in value.items():
        if type(index) is not int or not 0 <= index < _MAX_PCRS:
            raise _malformed("the number of a PCR is out of range")
        _byte_string(digest, f"PCR{index}", PCR_BYTES, PCR_BYTES)
    return MappingProxyType(value)


def _cabundle(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_CABUNDLE:
        raise _malformed(f"cabundle isn't an array of 1 to {_MAX_CABUNDLE} certificates")
    return tuple(_byte_string(der, "cabundle", 1, _MAX_CERTIFICATE_BYTES) for der in value)


def _optional_bytes(members: Mapping[str, Any], name: str, low: int, high: int) -> bytes | None:
    value = members.get(name)
    return None if value is None else _byte_string(value, name, low, high)


def _byte_string(value: object, name: str, low: int, high: int) -> bytes:
    if not isinstance(value, bytes) or not low <= len(value) <= high:
        raise _malformed(f"{name} isn't a byte string of {low} to {high} bytes")
    return value
