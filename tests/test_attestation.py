"""Attestation documents: the real one verifies at its own time, and every forgery is told from it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from necli.attestation import (
    MAX_DOCUMENT_BYTES,
    NITRO_ROOT,
    AttestationDocument,
    SimulatedRoot,
    TrustedRoot,
    unsafe_any_pcrs,
    verify_document,
)
from necli.errors import AttestationInvalid, InputError
from necli.local.nsm import sign_document
from necli.local.pki import AttestationChain, CertifiedKey

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PCRS = {index: bytes([index + 1]) * 48 for index in range(16)}
EXPECTED = {0: PCRS[0], 1: PCRS[1], 2: PCRS[2]}
HOUR = timedelta(hours=1)
NO_CA = x509.BasicConstraints(ca=False, path_length=None)
SHA384 = hashes.SHA384()


@cache
def authority() -> CertifiedKey:
    return CertifiedKey.self_signed("root", start=NOW - 24 * HOUR, life=timedelta(days=100))


def chain(
    *,
    root: CertifiedKey | None = None,
    path_lengths: tuple[int | None, ...] = (2, 1, 0),
    leaf_start: datetime = NOW - HOUR,
    leaf_life: timedelta = 3 * HOUR,
) -> AttestationChain:
    issuers = [root or authority()]
    for path_length in path_lengths:
        issuers.append(
            issuers[-1].issue_ca("CA", start=NOW - HOUR, life=timedelta(days=1), path_length=path_length)
        )
    leaf = issuers[-1].issue_attestation_leaf("leaf", start=leaf_start, life=leaf_life)
    return AttestationChain(leaf, tuple(issuers))


@cache
def good_chain() -> AttestationChain:
    return chain()


def payload(signer: AttestationChain, **changes: Any) -> dict[str, Any]:
    return {
        "module_id": "i-0-enc0",
        "digest": "SHA384",
        "timestamp": int(NOW.timestamp() * 1000),
        "pcrs": PCRS,
        "certificate": signer.leaf.der,
        "cabundle": signer.cabundle,
        "public_key": b"key",
        "user_data": b"data",
        "nonce": b"nonce",
        **changes,
    }


def document(signer: AttestationChain | None = None, **changes: Any) -> bytes:
    signer = signer or good_chain()
    return sign_document(cbor2.dumps(payload(signer, **changes)), signer.leaf)


def root_of(signer: AttestationChain | None = None) -> SimulatedRoot:
    return SimulatedRoot.from_pem((signer or good_chain()).issuers[0].pem)


def verify(data: bytes, **options: Any) -> AttestationDocument:
    return verify_document(data, **{"roots": [root_of()], "at": NOW, "expected": EXPECTED, **options})


def refused(code: str) -> Any:
    return pytest.raises(AttestationInvalid, check=lambda error: error.code == code)


class TestGoodDocument:
    def test_it_verifies_and_is_returned(self) -> None:
        verified = verify(document(), nonce=b"nonce", user_data=b"data", max_age=timedelta(0))
        assert verified.module_id == "i-0-enc0"
        assert verified.timestamp == NOW
        assert verified.pcrs == PCRS
        assert (verified.public_key, verified.user_data, verified.nonce) == (b"key", b"data", b"nonce")

    def test_a_cose_tag_around_it_is_accepted(self) -> None:
        assert verify(b"\xd2" + document()).module_id == "i-0-enc0"

    def test_maps_of_indefinite_length_are_accepted_as_they_were_signed(self) -> None:
        encoded = cbor2.dumps(payload(good_chain()))
        assert encoded[0] == 0xA9
        verify(sign_document(b"\xbf" + encoded[1:] + b"\xff", good_chain().leaf))

    def test_absent_and_null_members_are_the_same(self) -> None:
        members = payload(good_chain(), user_data=None)
        del members["nonce"], members["public_key"]
        verified = verify(sign_document(cbor2.dumps(members), good_chain().leaf))
        assert (verified.public_key, verified.user_data, verified.nonce) == (None, None, None)

    def test_parsing_alone_proves_nothing_but_reads_the_same(self) -> None:
        assert AttestationDocument.parse(document()) == verify(document())

    def test_pcrs_cannot_be_changed_afterwards(self) -> None:
        with pytest.raises(TypeError):
            verify(document()).pcrs[0] = b""  # type: ignore[index]


class TestWhoIsTrusted:
    def test_no_root_trusts_nobody(self) -> None:
        with refused("untrusted_root"):
            verify(document(), roots=[])

    def test_a_simulated_document_is_no_nitro_document(self) -> None:
        with refused("untrusted_root"):
            verify(document(), roots=[NITRO_ROOT])

    def test_a_self_signed_root_of_the_same_name_is_not_the_root(self) -> None:
        forger = CertifiedKey.self_signed("root", start=NOW - HOUR, life=timedelta(days=1))
        with refused("untrusted_root"):
            verify(document(chain(root=forger)))

    def test_the_true_root_before_a_foreign_chain_is_no_help(self) -> None:
        forger = CertifiedKey.self_signed("root", start=NOW - HOUR, life=timedelta(days=1))
        forged = chain(root=forger)
        with refused("bad_chain"):
            verify(document(replace(forged, issuers=(authority(), *forged.issuers[1:]))))

    def test_simulated_and_real_roots_are_told_apart(self) -> None:
        assert root_of().simulated
        assert not NITRO_ROOT.simulated
        assert "SIMULATED" in root_of().name
        assert TrustedRoot(root_of().name, root_of().fingerprint) != root_of()

    def test_a_root_that_is_no_certificate_is_an_input_error(self) -> None:
        with pytest.raises(InputError, match="PEM"):
            SimulatedRoot.from_pem(b"-----BEGIN NONSENSE-----")


class TestChain:
    def test_an_expired_leaf_is_refused(self) -> None:
        with refused("expired"):
            verify(document(chain(leaf_start=NOW - 3 * HOUR, leaf_life=2 * HOUR)))

    def test_a_leaf_that_is_not_valid_yet_is_refused(self) -> None:
        with refused("expired"):
            verify(document(chain(leaf_start=NOW + HOUR)))

    def test_an_expired_root_is_refused(self) -> None:
        old = CertifiedKey.self_signed("root", start=NOW - 9 * HOUR, life=HOUR)
        with refused("expired"):
            verify(document(chain(root=old)), roots=[root_of(chain(root=old))])

    def test_a_chain_longer_than_a_path_length_is_refused(self) -> None:
        with refused("bad_chain"):
            verify(document(chain(path_lengths=(2, 0, 0))))

    def test_a_missing_intermediate_is_refused(self) -> None:
        short = good_chain()
        with refused("bad_chain"):
            verify(document(replace(short, issuers=(short.issuers[0], *short.issuers[2:]))))

    def test_a_bundle_in_another_order_is_refused(self) -> None:
        root, regional, zonal, instance = good_chain().issuers
        with refused("bad_chain"):
            verify(document(replace(good_chain(), issuers=(root, zonal, regional, instance))))

    def test_a_certificate_more_than_the_path_needs_is_refused(self) -> None:
        issuers = good_chain().issuers
        with refused("bad_chain"):
            verify(document(replace(good_chain(), issuers=(*issuers, issuers[1]))))

    def test_a_ca_cannot_sign_a_document(self) -> None:
        signer = good_chain()
        instance = signer.issuers[-1]
        with refused("bad_chain"):
            verify(document(AttestationChain(instance, signer.issuers[:-1])))

    def test_a_leaf_cannot_issue_another_leaf(self) -> None:
        signer = good_chain()
        second = signer.leaf.issue_attestation_leaf("second", start=NOW - HOUR, life=2 * HOUR)
        with refused("bad_chain"):
            verify(document(AttestationChain(second, (*signer.issuers, signer.leaf))))

    def test_a_certificate_for_a_server_cannot_sign_a_document_for_its_curve_is_another(self) -> None:
        signer = good_chain()
        server = signer.issuers[-1].issue_server(["localhost"], start=NOW - HOUR, life=2 * HOUR)
        with refused("bad_chain"):
            verify(document(AttestationChain(server, signer.issuers)))

    @pytest.mark.parametrize("usages", [{"key_agreement"}, {"digital_signature", "key_cert_sign"}, None])
    def test_a_leaf_without_the_right_key_usage_is_refused(self, usages: Set[str] | None) -> None:
        with refused("bad_chain"):
            verify(document(odd_leaf(usages=usages)))

    @pytest.mark.parametrize("constraints", [x509.BasicConstraints(ca=True, path_length=0), None])
    def test_a_leaf_that_doesnt_say_it_is_no_ca_is_refused(
        self, constraints: x509.BasicConstraints | None
    ) -> None:
        with refused("bad_chain"):
            verify(document(odd_leaf(constraints=constraints)))

    def test_the_odd_leaf_of_these_tests_is_good_when_it_is_not_odd(self) -> None:
        verify(document(odd_leaf()))

    def test_a_certificate_signed_with_another_hash_is_refused(self) -> None:
        with refused("bad_chain"):
            verify(document(odd_leaf(digest=hashes.SHA256())))


def odd_leaf(
    *,
    usages: Set[str] | None = frozenset({"digital_signature"}),
    constraints: x509.BasicConstraints | None = NO_CA,
    digest: hashes.SHA256 | hashes.SHA384 = SHA384,
) -> AttestationChain:
    issuer, key = good_chain().issuers[-1], ec.generate_private_key(ec.SECP384R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
    )
    if constraints:
        builder = builder.add_extension(constraints, critical=True)
    if usages is not None:
        names = (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        )
        builder = builder.add_extension(
            x509.KeyUsage(**{name: name in usages for name in names}), critical=True
        )
    return AttestationChain(CertifiedKey(builder.sign(issuer.key, digest), key), good_chain().issuers)


class TestSignature:
    def test_a_document_signed_by_another_key_is_refused(self) -> None:
        stranger = CertifiedKey(good_chain().leaf.certificate, ec.generate_private_key(ec.SECP384R1()))
        with refused("bad_signature"):
            verify(document(AttestationChain(stranger, good_chain().issuers)))

    def test_a_certificate_swapped_for_another_of_the_same_issuer_is_refused(self) -> None:
        other = good_chain().issuers[-1].issue_attestation_leaf("leaf", start=NOW - HOUR, life=2 * HOUR)
        with refused("bad_signature"):
            verify(document(certificate=other.der))

    def test_a_payload_changed_after_signing_is_refused(self) -> None:
        data = document()
        assert data.count(PCRS[0]) == 1
        with refused("bad_signature"):
            verify(data.replace(PCRS[0], PCRS[1]), expected={0: PCRS[1]})

    @pytest.mark.parametrize("algorithm", [-7, -36, -37, 5])
    def test_another_algorithm_in_the_header_is_refused(self, algorithm: int) -> None:
        with refused("malformed"):
            verify(cose(protected={1: algorithm}))

    def test_a_header_with_the_algorithm_twice_is_refused(self) -> None:
        with refused("malformed"):
            verify(cose(protected=bytes.fromhex("a2013822013822")))

    def test_an_unprotected_header_is_refused(self) -> None:
        with refused("malformed"):
            verify(cose(unprotected={4: b"key id"}))

    def test_a_der_signature_is_refused(self) -> None:
        with refused("bad_signature"):
            verify(cose(signature=lambda der: der))

    def test_a_null_signature_is_refused(self) -> None:
        with refused("bad_signature"):
            verify(cose(signature=lambda _: bytes(96)))

    def test_the_open_cose_message_of_these_tests_is_good_when_nothing_is_changed(self) -> None:
        verify(cose())


def raw(der: bytes) -> bytes:
    return b"".join(number.to_bytes(48) for number in decode_dss_signature(der))


def cose(
    *,
    protected: Mapping[int, int] | bytes = {1: -35},
    unprotected: Mapping[int, Any] = {},
    signature: Callable[[bytes], bytes] = raw,
) -> bytes:
    """A message that is properly signed over whatever header it has."""
    header = protected if isinstance(protected, bytes) else cbor2.dumps(protected)
    body = cbor2.dumps(payload(good_chain()))
    signed = cbor2.dumps(["Signature1", header, b"", body])
    der = good_chain().leaf.key.sign(signed, ec.ECDSA(hashes.SHA384()))
    return cbor2.dumps([header, dict(unprotected), body, signature(der)])


class TestTime:
    def test_an_old_document_is_refused_where_an_age_is_set(self) -> None:
        with refused("too_old"):
            verify(document(), at=NOW + timedelta(seconds=301), max_age=timedelta(seconds=300))
        verify(document(), at=NOW + timedelta(seconds=300), max_age=timedelta(seconds=300))

    def test_a_document_from_the_future_is_refused(self) -> None:
        with refused("not_yet_valid"):
            verify(document(), at=NOW - timedelta(minutes=6))

    def test_now_is_the_time_when_none_is_given(self) -> None:
        with refused("expired"):
            verify(document(), at=None)

    @pytest.mark.parametrize("timestamp", [0, -1, 2**63, 2**64 - 1, 1.5, "1", None, True])
    def test_a_timestamp_that_is_none_is_refused(self, timestamp: object) -> None:
        with refused("malformed"):
            verify(document(timestamp=timestamp))


class TestExpectations:
    @pytest.mark.parametrize("expected", [None, {}])
    def test_no_expected_pcrs_is_a_failure_and_not_a_match(self, expected: dict[int, bytes] | None) -> None:
        with refused("no_expected_pcrs"):
            verify(document(), expected=expected)

    def test_any_pcrs_must_be_asked_for_by_name(self) -> None:
        assert verify(document(), expected=unsafe_any_pcrs).pcrs == PCRS

    def test_every_differing_pcr_is_named(self) -> None:
        with pytest.raises(AttestationInvalid, match=r"PCR1, PCR2$"):
            verify(document(), expected={0: PCRS[0], 1: PCRS[2], 2: PCRS[1]})

    @pytest.mark.parametrize("expected", [{16: bytes(48)}, {16: b""}, {0: b""}, {0: PCRS[0][:47]}])
    def test_an_absent_or_shortened_pcr_is_no_match(self, expected: dict[int, bytes]) -> None:
        with refused("pcr_mismatch"):
            verify(document(), expected=expected)

    def test_a_debug_enclave_proves_nothing_even_where_zeros_are_expected(self) -> None:
        zeros = {0: bytes(48), 1: bytes(48), 2: bytes(48)}
        with refused("debug_mode"):
            verify(document(pcrs=PCRS | zeros), expected=zeros)

    def test_another_nonce_is_refused(self) -> None:
        with refused("nonce_mismatch"):
            verify(document(), nonce=b"another")

    def test_other_user_data_is_refused(self) -> None:
        with refused("user_data_mismatch"):
            verify(document(), user_data=b"another")

    def test_an_expected_nonce_that_is_absent_is_refused(self) -> None:
        with refused("nonce_mismatch"):
            verify(document(nonce=None), nonce=b"nonce")
        with refused("nonce_mismatch"):
            verify(document(nonce=None), nonce=b"")


class TestForm:
    @pytest.mark.parametrize(
        "changes",
        [
            {"module_id": ""},
            {"module_id": b"i-0"},
            {"digest": "SHA256"},
            {"digest": None},
            {"pcrs": {}},
            {"pcrs": {32: bytes(48)}},
            {"pcrs": {-1: bytes(48)}},
            {"pcrs": {"0": bytes(48)}},
            {"pcrs": {False: bytes(48)}},
            {"pcrs": {0: bytes(32)}},
            {"pcrs": {0: "0" * 48}},
            {"pcrs": [bytes(48)]},
            {"certificate": b""},
            {"certificate": bytes(1025)},
            {"certificate": None},
            {"cabundle": []},
            {"cabundle": [b""]},
            {"cabundle": [b"\0"] * 9},
            {"cabundle": b"\0"},
            {"public_key": bytes(1025)},
            {"public_key": b""},
            {"user_data": bytes(513)},
            {"nonce": bytes(513)},
            {"nonce": "nonce"},
            {"more": 1},
        ],
        ids=str,
    )
    def test_a_member_of_the_wrong_kind_or_size_is_refused(self, changes: dict[str, Any]) -> None:
        with refused("malformed"):
            verify(document(**changes))

    @pytest.mark.parametrize("name", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"])
    def test_a_missing_member_is_refused_by_name(self, name: str) -> None:
        members = payload(good_chain())
        del members[name]
        with pytest.raises(AttestationInvalid, match=f"it has no {name}"):
            verify(sign_document(cbor2.dumps(members), good_chain().leaf))

    def test_a_key_twice_in_the_payload_is_refused(self) -> None:
        encoded = cbor2.dumps(payload(good_chain()))
        twice = b"\xaa" + encoded[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"other")
        with pytest.raises(AttestationInvalid, match="twice"):
            verify(sign_document(twice, good_chain().leaf))

    def test_a_pcr_twice_is_refused(self) -> None:
        members = payload(good_chain())
        pcrs = cbor2.dumps(members["pcrs"])
        assert pcrs[0] == 0xB0
        twice = b"\xb1" + pcrs[1:] + cbor2.dumps(0) + cbor2.dumps(PCRS[5])
        with pytest.raises(AttestationInvalid, match="twice"):
            verify(sign_document(cbor2.dumps(members).replace(pcrs, twice), good_chain().leaf))

    def test_bytes_after_the_document_are_refused(self) -> None:
        with refused("malformed"):
            verify(document() + b"\0")

    def test_bytes_after_the_payload_are_refused(self) -> None:
        with refused("malformed"):
            verify(sign_document(cbor2.dumps(payload(good_chain())) + b"\0", good_chain().leaf))

    def test_another_tag_is_refused(self) -> None:
        with refused("malformed"):
            verify(b"\xd1" + document())

    def test_a_document_above_the_limit_is_not_even_read(self) -> None:
        with pytest.raises(AttestationInvalid, match="larger"):
            verify(bytes(MAX_DOCUMENT_BYTES + 1))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x84",
            b"{}",
            b"\x81" * 9000,
            b"\xa1" * 9000,
            b"\x9f" * 9000,
            b"\xd2" * 9000,
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
            b"\xff",
            b"\xa1\x80\x80",
        ],
        ids=lambda data: data[:8].hex(),
    )
    def test_nonsense_is_refused(self, data: bytes) -> None:
        with refused("malformed"):
            verify(data)

    @given(data=st.binary(max_size=512))
    def test_no_bytes_raise_anything_else(self, data: bytes) -> None:
        with pytest.raises(AttestationInvalid):
            verify(data)

    @given(certificate=st.binary(min_size=1, max_size=64))
    def test_no_certificate_raises_anything_else(self, certificate: bytes) -> None:
        with refused("bad_chain"):
            verify(document(certificate=certificate))


@dataclass(frozen=True)
class RealDocument:
    data: bytes
    parsed: AttestationDocument

    def verify(self, data: bytes, **options: Any) -> AttestationDocument:
        defaults = {"roots": [NITRO_ROOT], "at": self.parsed.timestamp, "expected": unsafe_any_pcrs}
        return verify_document(data, **{**defaults, **options})


@pytest.fixture(scope="module")
def real() -> RealDocument:
    folder = Path(os.environ.get("NECLI_VECTORS", Path(__file__).parents[2] / "shared"))
    path = folder / "vectors" / "nitro-attestation-2024-08.cose"
    if not path.is_file():
        pytest.skip(f"NOT TESTED against a real document: {path} is missing; set NECLI_VECTORS to its folder")
    data = path.read_bytes()
    return RealDocument(data, AttestationDocument.parse(data))


class TestRealDocument:
    """A document of a Nitro hypervisor, from August 2024."""

    def test_it_verifies_at_its_own_time(self, real: RealDocument) -> None:
        verified = real.verify(real.data, expected={0: real.parsed.pcrs[0], 2: real.parsed.pcrs[2]})
        assert verified.module_id == "i-084e1dd2f1b2c529b-enc0190fecc5b166251"
        assert verified.pcrs[0].hex().startswith("5fec1b73727425848d725d68")
        assert len(verified.pcrs) == 16
        assert not verified.is_debug

    def test_it_verifies_with_a_tag(self, real: RealDocument) -> None:
        assert real.verify(b"\xd2" + real.data) == real.parsed

    def test_it_is_expired_today(self, real: RealDocument) -> None:
        with refused("expired"):
            real.verify(real.data, at=None)

    def test_it_is_no_simulated_document(self, real: RealDocument) -> None:
        with refused("untrusted_root"):
            real.verify(real.data, roots=[root_of()])

    def test_no_copy_with_a_flipped_bit_verifies(self, real: RealDocument) -> None:
        rng = random.Random(1)
        for position in range(0, len(real.data), 3):
            mutated = bytearray(real.data)
            mutated[position] ^= 1 << rng.randrange(8)
            with pytest.raises(AttestationInvalid):
                real.verify(bytes(mutated))

    def test_no_shortened_copy_verifies(self, real: RealDocument) -> None:
        for length in range(0, len(real.data), 7):
            with pytest.raises(AttestationInvalid):
                real.verify(real.data[:length])

    def test_no_copy_with_bytes_put_in_taken_out_or_replaced_verifies(self, real: RealDocument) -> None:
        rng = random.Random(2)
        for _ in range(1000):
            start, length = rng.randrange(len(real.data)), rng.randrange(1, 9)
            put = rng.randbytes(rng.randrange(9))
            mutated = real.data[:start] + put + real.data[start + length :]
            assert mutated != real.data
            with pytest.raises(AttestationInvalid):
                real.verify(mutated)
