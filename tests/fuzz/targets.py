"""The parsers that hostile bytes reach, each with seeds that it accepts.

Where a checksum, a signature or a length guards a format, half of the inputs are changed behind the guard and
sealed again, as an attacker would.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import shutil
import socket
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from tests.fuzz.harness import Target
from tests.fuzz.mutation import mutate, mutate_json

CORPUS = Path(__file__).parent / "corpus"
DOCUMENT_TIME = datetime(2026, 3, 1, 12, tzinfo=UTC)
_MIB = 2**20


def _folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def seeds(name: str) -> list[bytes]:
    """The kept inputs of a target; `python -m tests.fuzz.make_corpus` made them."""
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert found, name
    return found


@contextmanager
def eif() -> Iterator[Target]:
    from necli.eif import InvalidEif, describe, read_eif
    from tests.eif.eif_images import HEADER_SIZE, checksummed

    def make(given: Sequence[bytes], random: Random) -> bytes:
        data = mutate(given, random)
        return checksummed(data) if len(data) >= HEADER_SIZE and random.random() < 0.7 else data

    with _folder_in_memory() as folder:
        path = Path(folder) / "image.eif"

        def parse(data: bytes) -> None:
            path.write_bytes(data)
            describe(read_eif(path))

        yield Target(parse, seeds("eif"), (InvalidEif,), make)


@contextmanager
def cpio() -> Iterator[Target]:
    from necli.eif import InvalidEif
    from necli.eif.cpio import unpack_cpio
    from necli.errors import HostError

    with _folder_in_memory() as folder:
        root = Path(folder) / "root"

        def parse(data: bytes) -> None:
            root.mkdir()
            try:
                unpack_cpio(io.BytesIO(data), root)
            finally:
                shutil.rmtree(root)
                assert not list(Path(folder).iterdir()), "it wrote outside of its folder"

        # HostError: a name that is longer than the file system allows.
        yield Target(parse, seeds("cpio"), (InvalidEif, HostError))


@contextmanager
def ramdisk() -> Iterator[Target]:
    from necli.eif import InvalidEif
    from necli.eif.listing import list_ramdisk

    def make(given: Sequence[bytes], random: Random) -> bytes:
        data = mutate(given, random)
        return gzip.compress(data, compresslevel=1, mtime=0) if random.random() < 0.3 else data

    yield Target(lambda data: list_ramdisk(io.BytesIO(data)), seeds("cpio"), (InvalidEif,), make)


@contextmanager
def attestation() -> Iterator[Target]:
    import cbor2

    from necli.attestation import AttestationDocument, TrustedRoot, unsafe_any_pcrs, verify_document
    from necli.cose import Sign1
    from necli.errors import AttestationInvalid

    def make(given: Sequence[bytes], random: Random) -> bytes:
        if random.random() < 0.4:
            return mutate(given, random)
        message = Sign1.parse(random.choice(given))
        payload = mutate([message.payload], random)
        if random.random() < 0.5:
            payload = _with_another_certificate(message.payload, random)
        return cbor2.dumps([message.protected, {}, payload, message.signature])

    def _with_another_certificate(payload: bytes, random: Random) -> bytes:
        members = cbor2.loads(payload)
        members["certificate"] = mutate([members["certificate"]], random)
        index = random.randrange(len(members["cabundle"]))
        members["cabundle"][index] = mutate([members["cabundle"][index]], random)
        return cbor2.dumps(members)

    def parse(data: bytes) -> None:
        # Whatever root it names is trusted, or no certificate but the seeds' would ever be looked at.
        root = TrustedRoot("any", hashlib.sha256(AttestationDocument.parse(data).cabundle[0]).digest())
        verify_document(
            data, roots=[root], at=DOCUMENT_TIME, max_age=timedelta(hours=1), expected=unsafe_any_pcrs
        )

    yield Target(parse, seeds("attestation"), (AttestationInvalid,), make)


@contextmanager
def receipt() -> Iterator[Target]:
    from necli.errors import AttestationInvalid, InputError
    from necli.receipt import find_receipts

    given = [json.loads(seed) for seed in seeds("receipt")]

    def make(raw: Sequence[bytes], random: Random) -> bytes:
        return mutate_json(random.choice(given), random).encode(errors="replace")

    def parse(data: bytes) -> None:
        for _, found in find_receipts(json.loads(data)):
            with suppress(AttestationInvalid):
                found.verify(roots=[], at=DOCUMENT_TIME, expected={0: bytes(48)}, message_digest="00")

    yield Target(parse, seeds("receipt"), (InputError, AttestationInvalid), make)


@contextmanager
def cms() -> Iterator[Target]:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from enclave_payload.cms import EnvelopeError, open_enveloped_data

    key = load_pem_private_key((CORPUS / "recipient-key.pem").read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    yield Target(lambda data: open_enveloped_data(data, key), seeds("cms"), (EnvelopeError,))


@contextmanager
def policy() -> Iterator[Target]:
    from necli.errors import InputError
    from necli.keypolicy.document import KeyPolicy
    from necli.keypolicy.evaluate import RequestContext, evaluate
    from necli.keypolicy.lint import lint
    from necli.keypolicy.words import who_can_do_what

    caller = "arn:aws:iam::111122223333:role/necli-parent-instance"
    request = RequestContext((caller,), "kms:Decrypt", "*", "111122223333")

    def make(given: Sequence[bytes], random: Random) -> bytes:
        if random.random() < 0.3:
            return mutate(given, random)
        return mutate_json(json.loads(random.choice(given)), random).encode(errors="replace")

    def parse(data: bytes) -> None:
        found = KeyPolicy.from_json(data.decode(errors="replace"))
        evaluate(found, request)
        list(found.problems())
        list(lint(found))
        list(who_can_do_what(found))

    yield Target(parse, seeds("policy"), (InputError,), make)


@contextmanager
def envelope() -> Iterator[Target]:
    from enclave_payload.envelope import MessageOpener
    from enclave_payload.errors import PayloadError
    from tests.payload.stand_in_kms import CONTEXT, KEY_ARN, StandInKms

    logging.disable()  # the SDK logs each failure at length
    kms = StandInKms()
    opener = MessageOpener(
        kms_client=kms.client, key_arn=KEY_ARN, encryption_context=CONTEXT, max_message_bytes=_MIB
    )
    photo = bytes(range(256)) * 20
    messages = [
        kms.encrypt(content, **options)
        for content in (b"", b"photo", photo)
        for options in ({"frame_length": 1024}, {"frame_length": 0})
    ]
    yield Target(lambda data: opener.open(io.BytesIO(data)), messages, (PayloadError,))


@contextmanager
def image() -> Iterator[Target]:
    from enclave_payload.imaging import ImageError, decode_image

    def make(given: Sequence[bytes], random: Random) -> bytes:
        data = mutate(given, random)
        return with_right_checksums(data) if random.random() < 0.7 else data

    warnings.simplefilter("ignore")
    yield Target(
        lambda data: decode_image(data, max_pixels=_MIB, input_size=512), seeds("image"), (ImageError,), make
    )


def with_right_checksums(png: bytes) -> bytes:
    """The CRC of each chunk as its bytes demand; anything but a PNG stays as it is."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        return png
    out, at = [png[:8]], 8
    while len(png) - at >= 12 and (end := at + 8 + struct.unpack_from(">I", png, at)[0]) + 4 <= len(png):
        out += [png[at:end], zlib.crc32(png[at + 4 : end]).to_bytes(4)]
        at = end + 4
    return b"".join(out) + png[at:]


_NO_SUCH_RESOURCE = (404, 405)


class _Refused(Exception):
    """The server answered with an error of its interface."""


@contextmanager
def http() -> Iterator[Target]:
    from enclave_payload.errors import STATUS_OF_CODE
    from tests.payload.test_server import running_server

    with running_server(max_message_bytes=_MIB) as server:

        def parse(data: bytes) -> None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(server.socket_path)
                answer = _exchange(connection, data)
            assert server.process.poll() is None, "the server ended"
            if not answer:
                raise _Refused
            head, _, body = answer.partition(b"\r\n\r\n")
            status = int(head.split()[1])
            if status >= 400 and b"content-type: application/json" in head.lower() and body:
                code = json.JSONDecoder().raw_decode(body.decode())[0]["error"]["code"]
                assert status in (STATUS_OF_CODE[code], *_NO_SUCH_RESOURCE)
            assert status != 500, answer
            if status != 200:
                raise _Refused

        yield Target(parse, seeds("http"), (_Refused,), pid=server.process.pid)


def _exchange(connection: socket.socket, data: bytes) -> bytes:
    """What the server answers to `data` and nothing after it; empty if it hangs up or waits for more."""
    with suppress(ConnectionError):
        connection.sendall(data)
        connection.settimeout(0.02)
        with suppress(TimeoutError):
            return connection.recv(65536)
        connection.settimeout(10)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)
    return b""


TARGETS: Mapping[str, Callable[[], AbstractContextManager[Target]]] = {
    "eif": eif,
    "cpio": cpio,
    "ramdisk": ramdisk,
    "attestation": attestation,
    "receipt": receipt,
    "cms": cms,
    "policy": policy,
    "envelope": envelope,
    "image": image,
    "http": http,
}
