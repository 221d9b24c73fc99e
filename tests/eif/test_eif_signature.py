"""Signed images: who signed, and whether the signature is one of this image."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from necli.eif import EifImage, InvalidEif, read_eif
from tests.eif.eif_images import METADATA, SECTIONS, SIGNATURE, image, pcr

MEASURED = b"".join(data for kind, data in SECTIONS if kind != METADATA)
PCR0 = pcr(MEASURED)
CURVES = {
    "P-256": (ec.SECP256R1(), -7, hashes.SHA256()),
    "P-384": (ec.SECP384R1(), -35, hashes.SHA384()),
    "P-521": (ec.SECP521R1(), -36, hashes.SHA512()),
}


def _certificate(key) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the signer")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + timedelta(days=9))
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA384())


def _sign1(key, digest, protected: bytes, *, pcr0: bytes = PCR0, index: int = 0) -> list:
    payload = cbor2.dumps({"register_index": index, "register_value": list(pcr0)})
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    half = (key.curve.key_size + 7) // 8
    parts = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
    return [protected, {}, payload, b"".join(part.to_bytes(half) for part in parts)]


def _signed(certificate: x509.Certificate, sign1: object) -> bytes:
    entry = {
        "signing_certificate": list(certificate.public_bytes(Encoding.PEM)),
        "signature": list(cbor2.dumps(sign1)),
    }
    return cbor2.dumps([entry])


@pytest.fixture
def read(tmp_path: Path):
    def read(signature: bytes) -> EifImage:
        (tmp_path / "signed.eif").write_bytes(image([*SECTIONS, (SIGNATURE, signature)]))
        return read_eif(tmp_path / "signed.eif")

    return read


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


ES384 = cbor2.dumps({1: -35})


@pytest.mark.parametrize(("curve", "algorithm", "digest"), CURVES.values(), ids=CURVES)
def test_a_signature_over_pcr0_holds(curve, algorithm: int, digest, read):
    signer = ec.generate_private_key(curve)
    certificate = _certificate(signer)
    eif = read(_signed(certificate, _sign1(signer, digest, cbor2.dumps({1: algorithm}))))
    assert eif.signature.is_valid
    assert eif.measurements.pcr0 == PCR0
    assert eif.measurements.pcr8 == pcr(certificate.public_bytes(Encoding.DER))


def test_a_tagged_message_and_byte_strings_are_understood(key, read):
    entry = {
        "signing_certificate": _certificate(key).public_bytes(Encoding.PEM),
        "signature": cbor2.dumps(cbor2.CBORTag(18, _sign1(key, hashes.SHA384(), ES384))),
    }
    assert read(cbor2.dumps([entry])).signature.is_valid


def test_only_the_first_signature_counts(key, read):
    good, other = (
        cbor2.loads(_signed(_certificate(key), _sign1(key, hashes.SHA384(), ES384, pcr0=value)))[0]
        for value in (PCR0, bytes(48))
    )
    assert read(cbor2.dumps([good, other])).signature.is_valid
    assert not read(cbor2.dumps([other, good])).signature.is_valid


def _flip(message: list) -> list:
    return [*message[:3], bytes([message[3][0] ^ 1]) + message[3][1:]]


FORGERIES = {
    "another image's PCR0": lambda key: _sign1(key, hashes.SHA384(), ES384, pcr0=pcr(b"another image")),
    "another register": lambda key: _sign1(key, hashes.SHA384(), ES384, index=1),
    "a flipped bit": lambda key: _flip(_sign1(key, hashes.SHA384(), ES384)),
    "a short signature": lambda key: [*_sign1(key, hashes.SHA384(), ES384)[:3], bytes(95)],
    "zeros for a signature": lambda key: [*_sign1(key, hashes.SHA384(), ES384)[:3], bytes(96)],
    "another algorithm's name": lambda key: _sign1(key, hashes.SHA384(), cbor2.dumps({1: -7})),
    "no algorithm": lambda key: _sign1(key, hashes.SHA384(), b""),
    "a header that isn't a map": lambda key: _sign1(key, hashes.SHA384(), cbor2.dumps([1, -35])),
    "another signer's key": lambda key: _sign1(
        ec.generate_private_key(ec.SECP384R1()), hashes.SHA384(), ES384
    ),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_signature_does_not_hold_with(forge, key, read):
    assert read(_signed(_certificate(key), forge(key))).signature.is_valid is False


@pytest.mark.parametrize(
    "other",
    [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()],
    ids=["RSA", "Ed25519"],
)
def test_a_key_that_cannot_sign_images_signs_none(other, key, read):
    eif = read(_signed(_certificate(other), _sign1(key, hashes.SHA384(), ES384)))
    assert eif.signature.is_valid is False


PEM = list(_certificate(ec.generate_private_key(ec.SECP256R1())).public_bytes(Encoding.PEM))
MESSAGE = list(cbor2.dumps([b"", {}, b"", b""]))
MALFORMED = {
    "nothing": b"",
    "no list": cbor2.dumps({}),
    "an empty list": cbor2.dumps([]),
    "a list of something else": cbor2.dumps([1]),
    "an entry without a signature": cbor2.dumps([{"signing_certificate": PEM}]),
    "a certificate of large numbers": cbor2.dumps([{"signing_certificate": [256], "signature": MESSAGE}]),
    "a certificate that is none": cbor2.dumps([{"signing_certificate": b"PEM", "signature": MESSAGE}]),
    "a certificate cut short": cbor2.dumps([{"signing_certificate": PEM[:300], "signature": MESSAGE}]),
    "a signature that isn't COSE": cbor2.dumps([{"signing_certificate": PEM, "signature": list(b"\x01")}]),
    "a signature of three parts": cbor2.dumps(
        [{"signing_certificate": PEM, "signature": cbor2.dumps([b"", {}, b""])}]
    ),
    "something behind it": cbor2.dumps([{"signing_certificate": PEM, "signature": MESSAGE}]) + b"\0",
    "nesting without end": b"\x81" * 30_000,
    "an array of 2 to the 64 items": b"\x9b" + b"\xff" * 8,
}


@pytest.mark.parametrize("section", MALFORMED.values(), ids=MALFORMED)
def test_a_section_is_refused_that_holds(section: bytes, read):
    with pytest.raises(InvalidEif, match="signature section can't be read"):
        read(section)


GOOD = _signed(
    _certificate(signer := ec.generate_private_key(ec.SECP384R1())), _sign1(signer, hashes.SHA384(), ES384)
)


@given(st.dictionaries(st.integers(0, len(GOOD) - 1), st.integers(0, 255), min_size=1, max_size=3))
def test_a_damaged_section_never_gives_an_exception(tmp_path_factory, changes):
    damaged = bytearray(GOOD)
    for position, value in changes.items():
        damaged[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.eif"
    path.write_bytes(image([*SECTIONS, (SIGNATURE, bytes(damaged))]))
    try:
        read_eif(path)
    except InvalidEif:
        return
