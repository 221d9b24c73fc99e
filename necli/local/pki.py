"""The local target's certificates: a CA for TLS to the local KMS, and the root of simulated attestation.

Each authority is one PEM file that holds key and certificate together, so that no crash can part them; the
public `.pem` files beside them are copies. Every subject says SIMULATED.
"""

from __future__ import annotations

import fcntl
import hashlib
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from necli.attestation import SimulatedRoot
from necli.errors import InputError
from necli.home import host_errors, make_private_folder, write_atomically

ORGANIZATION: Final = "necli SIMULATED"
_KEY_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_ROOT_LIFE: Final = timedelta(days=30 * 365)
_SERVER_LIFE: Final = timedelta(days=90)
_SERVER_RENEWAL: Final = timedelta(days=30)
_CLOCK_STEP: Final = timedelta(seconds=3)
"""How long before now a certificate starts; a real NSM's leaf leaves as much."""


@dataclass(frozen=True)
class CertifiedKey:
    """A private key with its certificate, which may issue others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def self_signed(
        cls, common_name: str, *, start: datetime, life: timedelta, path_length: int | None = None
    ) -> CertifiedKey:
        key = ec.generate_private_key(ec.SECP384R1())
        builder = _builder(common_name, key, start, start + life).issuer_name(_name(common_name))
        return cls(_as_ca(builder, key, path_length).sign(key, hashes.SHA384()), key)

    def issue_ca(
        self, common_name: str, *, start: datetime, life: timedelta, path_length: int | None
    ) -> CertifiedKey:
        key = ec.generate_private_key(ec.SECP384R1())
        builder = self._issued_builder(common_name, key, start, start + life)
        return CertifiedKey(_as_ca(builder, key, path_length).sign(self.key, hashes.SHA384()), key)

    def issue_attestation_leaf(self, common_name: str, *, start: datetime, life: timedelta) -> CertifiedKey:
        """For signing documents: neither alternative name, extended key usage nor AKI, as the real ones."""
        key = ec.generate_private_key(ec.SECP384R1())
        builder = (
            _builder(common_name, key, start, start + life)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage("digital_signature", "content_commitment"), critical=False)
        )
        return CertifiedKey(builder.sign(self.key, hashes.SHA384()), key)

    def issue_server(self, host_names: Sequence[str], *, start: datetime, life: timedelta) -> CertifiedKey:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._issued_builder(host_names[0], key, start, start + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in host_names]), critical=False
            )
        )
        return CertifiedKey(builder.sign(self.key, hashes.SHA384()), key)

    def _issued_builder(
        self, common_name: str, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
    ) -> x509.CertificateBuilder:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            _builder(common_name, key, start, end)
            .issuer_name(self.certificate.subject)
            .add_extension(authority, critical=False)
        )

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_and_certificate_pem(self) -> bytes:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.pem

    @classmethod
    def load(cls, path: Path) -> CertifiedKey:
        """:raises InputError: the file is damaged."""
        pem = path.read_bytes()
        try:
            key = load_pem_private_key(pem, password=None)
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as exc:
            raise InputError(f"{path} is damaged: {exc}", hint=f"remove {path.parent}") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(f"{path} holds a key of another kind", hint=f"remove {path.parent}")
        return cls(certificate, key)


@dataclass(frozen=True)
class AttestationChain:
    """What an NSM signs with: the leaf, and its issuers from the root down to the instance."""

    leaf: CertifiedKey
    issuers: tuple[CertifiedKey, ...]

    @property
    def cabundle(self) -> list[bytes]:
        return [issuer.der for issuer in self.issuers]

    @property
    def end(self) -> datetime:
        return self.leaf.certificate.not_valid_after_utc


@dataclass(frozen=True)
class LocalPki:
    folder: Path
    tls_ca: CertifiedKey
    attestation_root: CertifiedKey

    @classmethod
    def ensure(cls, folder: Path) -> LocalPki:
        """The authorities in `folder`, made at the first call.

        :raises InputError: a file there is damaged.
        :raises HostError: the folder can't be written.
        """
        with _locked(folder):
            tls_ca = _ensure_root(folder, "tls-ca", "TLS CA", path_length=0)
            root = _ensure_root(folder, "simulated-root", "necli.simulated-nitro-enclaves")
        return cls(folder, tls_ca, root)

    @property
    def tls_ca_pem(self) -> Path:
        return self.folder / "tls-ca.pem"

    @property
    def simulated_root_pem(self) -> Path:
        return self.folder / "simulated-root.pem"

    @property
    def simulated_root(self) -> SimulatedRoot:
        return SimulatedRoot.from_pem(self.attestation_root.pem)

    def issue_attestation_chain(self, module_id: str, now: datetime) -> AttestationChain:
        """A fresh chain with the depth, path lengths and life times of the real ones."""
        root = self.attestation_root
        start = now - _CLOCK_STEP
        regional = root.issue_ca("regional", start=start, life=timedelta(days=20), path_length=2)
        zonal = regional.issue_ca("zonal", start=start, life=timedelta(days=6), path_length=1)
        instance = zonal.issue_ca(
            module_id.partition("-enc")[0], start=start, life=timedelta(days=1), path_length=0
        )
        leaf = instance.issue_attestation_leaf(module_id, start=start, life=timedelta(hours=3) + _CLOCK_STEP)
        return AttestationChain(leaf, (root, regional, zonal, instance))

    def server_pem(self, host_names: Sequence[str]) -> Path:
        """A file with a server's key and certificate for these names; renewed when it has a month left."""
        digest = hashlib.sha256("\n".join(host_names).encode()).hexdigest()[:16]
        path = self.folder / f"server-{digest}.pem"
        with _locked(self.folder):
            now = datetime.now(UTC)
            if not path.exists() or not self._serves(CertifiedKey.load(path), now + _SERVER_RENEWAL):
                server = self.tls_ca.issue_server(host_names, start=now - _CLOCK_STEP, life=_SERVER_LIFE)
                write_atomically(path, server.key_and_certificate_pem)
        return path

    def _serves(self, server: CertifiedKey, until: datetime) -> bool:
        try:
            server.certificate.verify_directly_issued_by(self.tls_ca.certificate)
        except (ValueError, InvalidSignature):
            return False
        return server.certificate.not_valid_after_utc > until

    def server_context(self, host_names: Sequence[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.server_pem(host_names))
        return context


def _ensure_root(folder: Path, name: str, common_name: str, path_length: int | None = None) -> CertifiedKey:
    private, public = folder / f"{name}-key.pem", folder / f"{name}.pem"
    if private.exists():
        root = CertifiedKey.load(private)
    else:
        start = datetime.now(UTC) - _CLOCK_STEP
        root = CertifiedKey.self_signed(common_name, start=start, life=_ROOT_LIFE, path_length=path_length)
        write_atomically(private, root.key_and_certificate_pem)
    if not public.exists() or public.read_bytes() != root.pem:
        write_atomically(public, root.pem, mode=0o644)
    return root


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    make_private_folder(folder)
    with host_errors(f"can't write in {folder}"), open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _builder(
    common_name: str, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _as_ca(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, path_length: int | None
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_key_usage("digital_signature", "key_cert_sign", "crl_sign"), critical=True)
    )


def _key_usage(*usages: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in usages for usage in _KEY_USAGES})


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_name(host_name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host_name))
    except ValueError:
        return x509.DNSName(host_name)
