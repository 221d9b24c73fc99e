"""What `nitro-cli describe-eif` prints of an image, key for key."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from necli.eif.reader import EifImage
from necli.eif.signature import SigningCertificate

_NAMES = {
    "2.5.4.3": "commonName",
    "2.5.4.4": "surname",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "countryName",
    "2.5.4.7": "localityName",
    "2.5.4.8": "stateOrProvinceName",
    "2.5.4.9": "streetAddress",
    "2.5.4.10": "organizationName",
    "2.5.4.11": "organizationalUnitName",
    "2.5.4.12": "title",
    "2.5.4.42": "givenName",
    "1.2.840.113549.1.9.1": "emailAddress",
    "0.9.2342.19200300.100.1.25": "domainComponent",
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
}
"""OpenSSL's names of object identifiers; any other is shown in dotted form."""


def describe(eif: EifImage) -> dict[str, Any]:
    """The image's description. `CheckCRC` is always true: no `EifImage` exists of a file where it isn't."""
    description: dict[str, Any] = {
        "EifVersion": eif.header.version,
        "Measurements": eif.measurements.to_json(),
        "IsSigned": eif.signature is not None,
    }
    if eif.signature:
        description["SigningCertificate"] = _certificate(eif.signature.certificate)
    description["CheckCRC"] = True
    if eif.signature:
        description["SignatureCheck"] = eif.signature.is_valid
    if eif.metadata:
        description |= _metadata(eif.metadata)
    return description


def _certificate(certificate: SigningCertificate) -> dict[str, Any]:
    issuer = {_NAMES.get(oid, oid): value for oid, value in certificate.issuer}
    return {
        "IssuerName": dict(sorted(issuer.items())),
        "Algorithm": _NAMES.get(certificate.algorithm, certificate.algorithm),
        "NotBefore": _openssl_time(certificate.not_before),
        "NotAfter": _openssl_time(certificate.not_after),
        "Signature": certificate.signature.hex(":").upper(),
    }


def _openssl_time(time: datetime) -> str:
    return f"{time:%b} {time.day:2} {time:%H:%M:%S} {time.year} GMT"


def _metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    custom = metadata.get("CustomMetadata")
    fixed = {**metadata["BuildMetadata"], "DockerInfo": metadata["DockerInfo"]}
    return {
        "ImageName": metadata["ImageName"],
        "ImageVersion": metadata["ImageVersion"],
        # Custom fields stand beside the others, behind them, and can't replace them.
        "Metadata": {**fixed, **(custom if isinstance(custom, dict) else {}), **fixed},
    }
