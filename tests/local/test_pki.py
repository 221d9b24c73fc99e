"""The local certificates: made once, whole after every crash, renewed in time, and marked as simulated."""

from __future__ import annotations

import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from necli.errors import InputError
from necli.local.pki import CertifiedKey, LocalPki

KMS = "kms.eu-central-1.amazonaws.com"
NAMES = [KMS, "localhost", "127.0.0.1"]


@pytest.fixture
def pki(tmp_path: Path) -> LocalPki:
    return LocalPki.ensure(tmp_path / "pki")


def assert_whole(pki: LocalPki) -> None:
    for authority, public in (
        (pki.tls_ca, pki.tls_ca_pem),
        (pki.attestation_root, pki.simulated_root_pem),
    ):
        assert public.read_bytes() == authority.pem
        certified, held = (
            key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for key in (authority.certificate.public_key(), authority.key.public_key())
        )
        assert certified == held


class TestFiles:
    def test_the_second_call_finds_what_the_first_made(self, pki: LocalPki) -> None:
        again = LocalPki.ensure(pki.folder)
        assert again.tls_ca.pem == pki.tls_ca.pem
        assert again.simulated_root == pki.simulated_root
        assert_whole(again)

    def test_many_at_once_agree(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            roots = set(pool.map(lambda _: LocalPki.ensure(tmp_path).simulated_root, range(8)))
        assert len(roots) == 1

    def test_it_is_whole_after_a_kill_at_any_moment(self, tmp_path: Path) -> None:
        script = (
            "import sys, itertools, pathlib\n"
            "from necli.local.pki import LocalPki\n"
            "print(flush=True)\n"
            "for number in itertools.count():\n"
            "    LocalPki.ensure(pathlib.Path(sys.argv[1], str(number))).server_pem(['localhost'])\n"
        )
        for attempt in range(3):
            folder = tmp_path / str(attempt)
            process = subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE)
            assert process.stdout
            process.stdout.readline()
            time.sleep(random.uniform(0.05, 0.2))
            process.kill()
            process.communicate()
            last = max(folder.iterdir(), key=lambda path: int(path.name))
            pki = LocalPki.ensure(last)
            assert_whole(pki)
            assert pki.server_context(["localhost"])

    def test_a_lost_or_altered_public_copy_is_made_again(self, pki: LocalPki) -> None:
        pki.tls_ca_pem.unlink()
        pki.simulated_root_pem.write_text("something else")
        assert_whole(LocalPki.ensure(pki.folder))

    def test_a_damaged_authority_is_named_and_not_replaced(self, pki: LocalPki) -> None:
        damaged = pki.folder / "simulated-root-key.pem"
        damaged.write_bytes(damaged.read_bytes()[:100])
        with pytest.raises(InputError, match=r"simulated-root-key\.pem is damaged"):
            LocalPki.ensure(pki.folder)

    def test_keys_are_for_the_user_alone(self, pki: LocalPki) -> None:
        pki.server_pem(NAMES)
        assert pki.folder.stat().st_mode & 0o777 == 0o700
        for path in pki.folder.iterdir():
            if b"PRIVATE KEY" in path.read_bytes():
                assert path.stat().st_mode & 0o777 == 0o600

    def test_every_subject_says_simulated(self, pki: LocalPki) -> None:
        chain = pki.issue_attestation_chain("i-0-enc0", datetime.now(UTC))
        server = CertifiedKey.load(pki.server_pem(NAMES))
        for owner in (pki.tls_ca, server, chain.leaf, *chain.issuers):
            assert "O=necli SIMULATED" in owner.certificate.subject.rfc4514_string()


class TestTls:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_client_that_trusts_the_ca_connects_by_each_name(self, pki: LocalPki, name: str) -> None:
        assert handshake(pki.server_context(NAMES), pki.tls_ca_pem, name) in ("TLSv1.2", "TLSv1.3")

    def test_another_name_is_refused(self, pki: LocalPki) -> None:
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(pki.server_context(NAMES), pki.tls_ca_pem, "kms.us-east-1.amazonaws.com")

    def test_another_ca_is_refused(self, pki: LocalPki, tmp_path: Path) -> None:
        other = LocalPki.ensure(tmp_path / "other")
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            handshake(pki.server_context(NAMES), other.tls_ca_pem, KMS)

    def test_the_attestation_root_is_no_tls_ca(self, pki: LocalPki) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(pki.server_context(NAMES), pki.simulated_root_pem, KMS)

    def test_a_server_certificate_stays_until_its_last_month(self, pki: LocalPki) -> None:
        path = pki.server_pem(NAMES)
        first = path.read_bytes()
        assert pki.server_pem(NAMES).read_bytes() == first
        soon_over = pki.tls_ca.issue_server(NAMES, start=datetime.now(UTC), life=timedelta(days=29))
        path.write_bytes(soon_over.key_and_certificate_pem)
        assert pki.server_pem(NAMES).read_bytes() not in (first, soon_over.key_and_certificate_pem)

    def test_a_server_certificate_of_another_ca_is_replaced(self, pki: LocalPki, tmp_path: Path) -> None:
        other = LocalPki.ensure(tmp_path / "other")
        pki.server_pem(NAMES).write_bytes(other.server_pem(NAMES).read_bytes())
        handshake(pki.server_context(NAMES), pki.tls_ca_pem, KMS)


def handshake(server: ssl.SSLContext, ca: Path, name: str) -> str | None:
    """The protocol that a client and the server agree on; raises what the client raises."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, suppress(OSError):  # the client tells what is wrong
            server.wrap_socket(theirs, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours:
            context = ssl.create_default_context(cafile=ca)
            context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does by default
            with context.wrap_socket(ours, server_hostname=name) as client:
                return client.version()
    finally:
        thread.join()


class TestAttestationChain:
    def test_it_has_the_depth_lives_and_path_lengths_of_the_real_ones(self, pki: LocalPki) -> None:
        now = datetime(2026, 3, 1, tzinfo=UTC)
        chain = pki.issue_attestation_chain("i-0-enc0", now)
        certificates = [owner.certificate for owner in (*chain.issuers, chain.leaf)]
        assert [constraints(one).path_length for one in certificates] == [None, 2, 1, 0, None]
        assert [constraints(one).ca for one in certificates] == [True] * 4 + [False]
        lives = [one.not_valid_after_utc - one.not_valid_before_utc for one in certificates[1:]]
        assert [life.days for life in lives] == [20, 6, 1, 0]
        assert chain.end == now + timedelta(hours=3)
        assert all(len(owner.der) <= 1024 for owner in (*chain.issuers, chain.leaf))

    def test_the_leaf_has_only_the_extensions_of_a_real_one(self, pki: LocalPki) -> None:
        leaf = pki.issue_attestation_chain("i-0-enc0", datetime.now(UTC)).leaf.certificate
        assert [type(extension.value) for extension in leaf.extensions] == [
            x509.BasicConstraints,
            x509.KeyUsage,
        ]

    def test_each_chain_is_new(self, pki: LocalPki) -> None:
        first, second = (pki.issue_attestation_chain("i-0-enc0", datetime.now(UTC)) for _ in range(2))
        assert first.issuers[0].der == second.issuers[0].der
        assert (
            len({owner.der for chain in (first, second) for owner in (*chain.issuers[1:], chain.leaf)}) == 8
        )


def constraints(certificate: x509.Certificate) -> x509.BasicConstraints:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
