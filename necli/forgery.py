"""Attestation documents that the parent can come by without being the enclave, and KMS must not accept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import cbor2

from necli.cose import Sign1

_RSA_BITS = 2048


def new_public_key() -> bytes:
    """Of a key pair of the attacker's own, to which KMS would seal the data key."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pair = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    return pair.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def with_public_key(document: bytes, public_key: bytes) -> bytes:
    """A genuine document with the attacker's key written into it; its signature is the old one."""
    message = Sign1.parse(document)
    payload = cbor2.dumps({**cbor2.loads(message.payload), "public_key": public_key})
    return cbor2.dumps([message.protected, {}, payload, message.signature])


def self_signed(pcrs: Mapping[int, bytes], public_key: bytes) -> bytes:
    """All as KMS wants it, the right PCRs too, but under a root that the attacker made."""
    from necli.local.nsm import SimulatedNsm
    from necli.local.pki import LocalPki

    with tempfile.TemporaryDirectory(prefix="necli-forgery-") as folder:
        pki = LocalPki.ensure(Path(folder))
        return SimulatedNsm(pki, "i-0-forged", pcrs).attest(public_key=public_key)
