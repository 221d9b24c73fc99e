"""The simulated NSM: byte for byte the protocol of aws-nitro-enclaves-nsm-api, and as strict as the real one.

The requests and answers in hexadecimal were printed by that crate (version 0.4, serde_cbor).
"""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509

from necli.attestation import AttestationDocument, verify_document
from necli.local.nsm import MAX_REQUEST_BYTES, SimulatedNsm, serve_nsm
from necli.local.pki import LocalPki

MODULE = "i-0123456789abcdef0-enc0123456789abcdef"
PCRS = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}
START = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)  # the root must be valid by then


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> LocalPki:
    return LocalPki.ensure(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nsm(pki: LocalPki, clock: Clock) -> SimulatedNsm:
    return SimulatedNsm(pki, MODULE, PCRS, clock=clock)


def ask(nsm: SimulatedNsm, request: object) -> Any:
    return cbor2.loads(nsm.handle(cbor2.dumps(request)))


def attest(nsm: SimulatedNsm, **fields: object) -> bytes:
    request = {"user_data": None, "nonce": None, "public_key": None, **fields}
    document: bytes = ask(nsm, {"Attestation": request})["Attestation"]["document"]
    return document


class TestWireFormat:
    def test_descriptions(self, pki: LocalPki) -> None:
        short = SimulatedNsm(pki, "i-0", {16: b"\x07" * 48})
        answer = short.handle(bytes.fromhex("6b44657363726962654e534d")).hex()
        assert answer.startswith(
            "a16b44657363726962654e534da76d76657273696f6e5f6d616a6f72016d76657273696f6e5f6d696e6f72006d"
            "76657273696f6e5f706174636800696d6f64756c655f696463692d30686d61785f7063727318206b6c6f636b65"
            "645f70637273"
        )
        assert answer.endswith("66646967657374665348413338" + "34")
        assert short.handle(bytes.fromhex("a16b4465736372696265504352a165696e64657810")).hex() == (
            "a16b4465736372696265504352a2646c6f636bf46464617461" + "5830" + "07" * 48
        )

    def test_locking(self, nsm: SimulatedNsm) -> None:
        assert nsm.handle(bytes.fromhex("a1674c6f636b504352a165696e64657810")).hex() == "674c6f636b504352"
        assert nsm.handle(bytes.fromhex("a1684c6f636b50435273a16572616e676514")).hex() == "684c6f636b50435273"

    def test_extension(self, nsm: SimulatedNsm) -> None:
        answer = nsm.handle(bytes.fromhex("a169457874656e64504352a265696e64657810646461746143010203")).hex()
        value = hashlib.sha384(bytes(48) + b"\x01\x02\x03").hexdigest()
        assert answer == "a169457874656e64504352a16464617461" + "5830" + value

    @pytest.mark.parametrize(
        "request_hex",
        [
            "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6",
            "a16b4174746573746174696f6ea369757365725f646174614101656e6f6e636541026a7075626c69635f6b65794103",
        ],
    )
    def test_attestation(self, nsm: SimulatedNsm, request_hex: str) -> None:
        answer = nsm.handle(bytes.fromhex(request_hex))
        assert answer.hex().startswith("a16b4174746573746174696f6ea168646f63756d656e7459")

    def test_entropy(self, nsm: SimulatedNsm) -> None:
        first, second = (nsm.handle(bytes.fromhex("6947657452616e646f6d")) for _ in range(2))
        assert first.hex().startswith("a16947657452616e646f6da16672616e646f6d590100")
        assert first != second

    def test_errors(self, nsm: SimulatedNsm) -> None:
        answer = nsm.handle(cbor2.dumps({"DescribePCR": {"index": 32}}))
        assert answer.hex() == "a1654572726f726c496e76616c6964496e646578"


class TestRegisters:
    def test_the_platforms_registers_are_locked_and_the_others_are_not(self, nsm: SimulatedNsm) -> None:
        described = [ask(nsm, {"DescribePCR": {"index": index}})["DescribePCR"] for index in range(32)]
        assert [pcr["lock"] for pcr in described] == [True] * 16 + [False] * 16
        assert [pcr["data"] for pcr in described] == [*PCRS.values(), *[bytes(48)] * 29]
        assert ask(nsm, "DescribeNSM")["DescribeNSM"]["locked_pcrs"] == list(range(16))

    @pytest.mark.parametrize("index", [0, 15])
    def test_a_platform_register_is_neither_extended_nor_locked_again(
        self, nsm: SimulatedNsm, index: int
    ) -> None:
        assert ask(nsm, {"ExtendPCR": {"index": index, "data": b"x"}}) == {"Error": "ReadOnlyIndex"}
        assert ask(nsm, {"LockPCR": {"index": index}}) == {"Error": "ReadOnlyIndex"}

    def test_extensions_follow_one_another_until_the_register_is_locked(self, nsm: SimulatedNsm) -> None:
        value = bytes(48)
        for data in (b"a", b"b"):
            value = hashlib.sha384(value + data).digest()
            assert ask(nsm, {"ExtendPCR": {"index": 31, "data": data}}) == {"ExtendPCR": {"data": value}}
        assert ask(nsm, {"LockPCR": {"index": 31}}) == "LockPCR"
        assert ask(nsm, {"ExtendPCR": {"index": 31, "data": b"c"}}) == {"Error": "ReadOnlyIndex"}
        assert ask(nsm, {"DescribePCR": {"index": 31}}) == {"DescribePCR": {"lock": True, "data": value}}

    def test_a_range_is_locked_at_once_and_may_hold_locked_ones(self, nsm: SimulatedNsm) -> None:
        assert ask(nsm, {"LockPCRs": {"range": 18}}) == "LockPCRs"
        assert ask(nsm, "DescribeNSM")["DescribeNSM"]["locked_pcrs"] == list(range(18))
        assert ask(nsm, {"LockPCRs": {"range": 33}}) == {"Error": "InvalidIndex"}

    def test_a_document_carries_exactly_the_locked_registers(self, nsm: SimulatedNsm) -> None:
        assert sorted(AttestationDocument.parse(attest(nsm)).pcrs) == list(range(16))
        extended = ask(nsm, {"ExtendPCR": {"index": 20, "data": b"x"}})["ExtendPCR"]["data"]
        assert 20 not in AttestationDocument.parse(attest(nsm)).pcrs
        ask(nsm, {"LockPCR": {"index": 20}})
        assert AttestationDocument.parse(attest(nsm)).pcrs[20] == extended


class TestDocuments:
    def test_a_document_verifies_under_the_simulated_root(self, nsm: SimulatedNsm, pki: LocalPki) -> None:
        data = attest(nsm, public_key=b"k" * 1024, user_data=b"u" * 512, nonce=b"n" * 512)
        document = verify_document(
            data, roots=[pki.simulated_root], at=START, expected=PCRS, nonce=b"n" * 512, user_data=b"u" * 512
        )
        assert document.module_id == MODULE
        assert document.timestamp == START
        assert document.public_key == b"k" * 1024

    @pytest.mark.parametrize(
        "fields", [{"nonce": bytes(513)}, {"user_data": bytes(513)}, {"public_key": bytes(1025)}]
    )
    def test_an_oversized_field_is_refused(self, nsm: SimulatedNsm, fields: dict[str, bytes]) -> None:
        assert ask(nsm, {"Attestation": fields}) == {"Error": "InputTooLarge"}

    def test_octets_as_an_array_are_understood_as_serde_understands_them(self, nsm: SimulatedNsm) -> None:
        assert AttestationDocument.parse(attest(nsm, nonce=[1, 255])).nonce == b"\x01\xff"

    def test_the_leaf_is_kept_while_it_lives_and_renewed_before_it_ends(
        self, nsm: SimulatedNsm, clock: Clock, pki: LocalPki
    ) -> None:
        def leaf() -> bytes:
            return AttestationDocument.parse(attest(nsm)).certificate

        first = leaf()
        clock.now = START + timedelta(hours=2, minutes=45)
        assert leaf() == first
        clock.now = START + timedelta(hours=2, minutes=55)
        second = leaf()
        assert second != first
        assert x509.load_der_x509_certificate(second).not_valid_after_utc == clock.now + timedelta(hours=3)
        clock.now = START + timedelta(days=40)
        verify_document(attest(nsm), roots=[pki.simulated_root], at=clock.now, expected=PCRS)


@pytest.mark.parametrize(
    ("request_bytes", "error"),
    [
        (b"", "InvalidArgument"),
        (b"\xff", "InvalidArgument"),
        (b"\xa1", "InvalidArgument"),
        (b"\x81" * 3000, "InvalidArgument"),
        (cbor2.dumps("DescribeNSM") + b"\0", "InvalidArgument"),
        (cbor2.dumps("Nonsense"), "InvalidOperation"),
        (cbor2.dumps({"Nonsense": {}}), "InvalidOperation"),
        (cbor2.dumps(["DescribeNSM"]), "InvalidOperation"),
        (cbor2.dumps({"DescribePCR": {"index": -1}}), "InvalidArgument"),
        (cbor2.dumps({"DescribePCR": {"index": "0"}}), "InvalidArgument"),
        (cbor2.dumps({"DescribePCR": {"index": True}}), "InvalidArgument"),
        (cbor2.dumps({"DescribePCR": {"index": 65536}}), "InvalidArgument"),
        (cbor2.dumps({"ExtendPCR": {"index": 20, "data": "text"}}), "InvalidArgument"),
        (cbor2.dumps({"ExtendPCR": {"index": 20, "data": [256]}}), "InvalidArgument"),
        (cbor2.dumps({"Attestation": {"nonce": 5}}), "InvalidArgument"),
        (bytes(MAX_REQUEST_BYTES + 1), "InputTooLarge"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:24].hex(),
)
def test_a_bad_request_is_answered_with_the_nsms_own_error(
    nsm: SimulatedNsm, request_bytes: bytes, error: str
) -> None:
    assert cbor2.loads(nsm.handle(request_bytes)) == {"Error": error}


class TestSocket:
    @pytest.fixture
    def address(self, nsm: SimulatedNsm, tmp_path: Path) -> Iterator[str]:
        address = str(tmp_path / "nsm.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            listener.listen()
            server = threading.Thread(target=serve_nsm, args=(nsm, listener))
            server.start()
            yield address
            listener.shutdown(socket.SHUT_RDWR)
            server.join(timeout=5)
            assert not server.is_alive()

    def connect(self, address: str) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(5)
        client.connect(address)
        return client

    def test_each_packet_is_one_request_and_gets_one_answer(self, address: str) -> None:
        with self.connect(address) as client:
            for _ in range(3):
                client.send(cbor2.dumps("GetRandom"))
                assert len(cbor2.loads(client.recv(0x3000))["GetRandom"]["random"]) == 256

    def test_clients_that_misbehave_disturb_no_other(self, address: str) -> None:
        with self.connect(address) as silent, self.connect(address) as other:
            with self.connect(address) as rude:
                rude.send(cbor2.dumps("GetRandom"))
            with self.connect(address) as large:
                large.send(bytes(100_000))
                assert cbor2.loads(large.recv(0x3000)) == {"Error": "InputTooLarge"}
            other.send(cbor2.dumps("DescribeNSM"))
            assert "DescribeNSM" in cbor2.loads(other.recv(0x3000))
            assert silent.fileno() > 0
