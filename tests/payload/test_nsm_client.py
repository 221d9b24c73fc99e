"""The payload's NSM client, over the real protocol, against modules that answer well, badly or not at all."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2
import pytest

from enclave_payload.nsm import Nsm, NsmError, PcrDescription
from necli.attestation import AttestationDocument
from necli.local.nsm import SimulatedNsm, serve_nsm
from necli.local.pki import LocalPki

PCR0 = b"\x01" * 48


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> SimulatedNsm:
    return SimulatedNsm(LocalPki.ensure(tmp_path_factory.mktemp("pki")), "i-0-enc0", {0: PCR0})


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "nsm.sock"))
        listener.listen()
        yield listener
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def nsm(listener: socket.socket, module: SimulatedNsm) -> Nsm:
    threading.Thread(target=serve_nsm, args=(module, listener), daemon=True).start()
    return Nsm(listener.getsockname())


def answering(listener: socket.socket, answer: bytes | None) -> Nsm:
    """A module that answers one request with these bytes, or hangs up."""

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(0x1000)
            if answer is not None:
                client.send(answer)

    threading.Thread(target=serve, daemon=True).start()
    return Nsm(listener.getsockname())


def test_a_document_carries_what_was_asked_for(nsm: Nsm) -> None:
    document = AttestationDocument.parse(nsm.attest(public_key=b"key", user_data=b"data", nonce=b"nonce"))
    assert (document.public_key, document.user_data, document.nonce) == (b"key", b"data", b"nonce")
    assert document.pcrs[0] == PCR0
    bare = AttestationDocument.parse(nsm.attest())
    assert (bare.public_key, bare.user_data, bare.nonce) == (None, None, None)


def test_entropy_has_any_length(nsm: Nsm) -> None:
    assert [len(nsm.random(count)) for count in (0, 1, 256, 1000)] == [0, 1, 256, 1000]
    assert nsm.random(32) != nsm.random(32)


def test_the_module_and_its_registers_are_described(nsm: Nsm) -> None:
    assert nsm.describe_pcr(0) == PcrDescription(locked=True, value=PCR0)
    assert nsm.describe_pcr(16) == PcrDescription(locked=False, value=bytes(48))
    description = nsm.describe()
    assert (description.module_id, description.max_pcrs, description.digest) == ("i-0-enc0", 32, "SHA384")
    assert description.locked_pcrs == set(range(16))


def test_the_modules_own_errors_keep_their_codes(nsm: Nsm) -> None:
    with pytest.raises(NsmError, match="the NSM answered InvalidIndex") as caught:
        nsm.describe_pcr(32)
    assert caught.value.code == "InvalidIndex"
    with pytest.raises(NsmError, match="InputTooLarge"):
        nsm.attest(nonce=bytes(513))


def test_a_request_above_the_devices_limit_is_not_even_sent() -> None:
    with pytest.raises(NsmError, match="InputTooLarge"):
        Nsm("/nowhere").attest(user_data=bytes(0x1000))


def test_it_is_used_from_many_threads_at_once(nsm: Nsm) -> None:
    nonces = [bytes([number]) for number in range(16)]
    found: dict[bytes, bytes | None] = {}

    def ask(nonce: bytes) -> None:
        found[nonce] = AttestationDocument.parse(nsm.attest(nonce=nonce)).nonce

    threads = [threading.Thread(target=ask, args=(nonce,)) for nonce in nonces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {nonce: nonce for nonce in nonces}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"\xff",
        b"\xa1",
        cbor2.dumps("Attestation"),
        cbor2.dumps({"GetRandom": {"random": b"x"}}),
        cbor2.dumps({"Attestation": None}),
        cbor2.dumps({"Attestation": {}}),
        cbor2.dumps({"Attestation": {"document": "text"}}),
        cbor2.dumps({"Error": 7}),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(listener: socket.socket, answer: bytes | None) -> None:
    with pytest.raises(NsmError, match="can't be understood") as caught:
        answering(listener, answer).attest()
    assert caught.value.code == "InvalidResponse"


def test_a_module_that_gives_empty_entropy_is_not_asked_for_ever(listener: socket.socket) -> None:
    with pytest.raises(NsmError, match="can't be understood"):
        answering(listener, cbor2.dumps({"GetRandom": {"random": b""}})).random(1)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_path_without_a_module_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NsmError, match=f"{tmp_path / name} can't be used") as caught:
        Nsm(tmp_path / name).attest()
    assert caught.value.code == "InternalError"


class TestDevice:
    """The ioctl, with this function in the kernel's place: it reads and writes the process's own memory."""

    @pytest.fixture
    def kernel(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[bytes], bytes]], Nsm]:
        def install(handle: Callable[[bytes], bytes]) -> Nsm:
            def ioctl(device: int, number: int, message: ctypes.Structure) -> int:
                assert os.readlink(f"/proc/self/fd/{device}") == "/dev/null"
                assert number == 0xC0200A00
                request, request_length, answer, capacity = struct.unpack("@PNPN", bytes(message))
                assert capacity == 0x3000
                data = handle(ctypes.string_at(request, request_length))
                ctypes.memmove(answer, data, len(data))
                struct.pack_into("@PNPN", message, 0, request, request_length, answer, len(data))
                return 0

            monkeypatch.setattr(fcntl, "ioctl", ioctl)
            return Nsm("/dev/null")

        return install

    def test_requests_and_answers_pass_through_two_io_vectors(
        self, kernel: Callable[[Callable[[bytes], bytes]], Nsm], module: SimulatedNsm
    ) -> None:
        nsm = kernel(module.handle)
        assert AttestationDocument.parse(nsm.attest(nonce=b"nonce")).nonce == b"nonce"
        assert nsm.describe().max_pcrs == 32

    def test_the_drivers_refusal_of_the_size_is_told_as_such(
        self, kernel: Callable[[Callable[[bytes], bytes]], Nsm]
    ) -> None:
        def refuse(_: bytes) -> bytes:
            raise OSError(90, "Message too long")

        with pytest.raises(NsmError) as caught:
            kernel(refuse).describe()
        assert caught.value.code == "InputTooLarge"
