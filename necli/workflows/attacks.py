"""Everything that `necli prove` tries, each with the refusal that it must meet.

The attacker is the parent instance: it has its own AWS credentials, every message and every document that
passes through it, enclaves of its own, and a KMS key of its own. It may call KMS itself, or send the enclave
what it likes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from necli import forgery, kms, tampering
from necli.attestation import AttestationDocument
from necli.backends import Credentials
from necli.envelope import FRAME_BYTES, SealedMessage, seal
from necli.keypolicy import KeyPolicy
from necli.measurements import ZERO
from necli.workflows.attest import fetch_document
from necli.workflows.detect import EnclaveSession
from necli.workflows.workload import Workload

REFUSED = "AccessDeniedException"
"""By the key policy."""
INVALID = "ValidationException"
"""How KMS refuses a document before it asks the key policy."""
TAMPERED = "message_invalid"
DESTINATION_ALIAS = "alias/necli-prove-destination"

_FRAMES = 3
_PAIR = ("necli:prove", "as-made", "altered")


class NotTriable(Exception):
    """This target has no means for the attack: it would take an enclave of the attacker's own."""


class Scene:
    """One data key and one message, made now, and what an attacker can get hold of."""

    def __init__(self, workload: Workload, name: str) -> None:
        self._workload = workload
        self._name = name

    @cached_property
    def sealed(self) -> SealedMessage:
        return self.seal(self._context)

    @property
    def message(self) -> bytes:
        return self.sealed.message

    @cached_property
    def another_message(self) -> bytes:
        return self.seal(self._context).message

    @cached_property
    def key_arn(self) -> str:
        return self._workload.key().arn

    @property
    def _context(self) -> dict[str, str]:
        name, value, _ = _PAIR
        return {**self._workload.required_context(), name: value}

    def seal(self, context: Mapping[str, str]) -> SealedMessage:
        """As the data owner."""
        owner = self._workload.kms("owner")
        return seal(_picture(), kms=owner, key_arn=self.key_arn, context=context)

    def sealed_by_parent(self) -> bytes:
        """Under a key of the parent's own, and else as the owner does it."""
        own = self.key_of_the_parents_own
        return seal(_picture(), kms=self._workload.kms("parent"), key_arn=own, context=self._context).message

    def context_with(self, value: str) -> dict[str, str]:
        """The context that the enclave requires, with this in the place of each value."""
        return dict.fromkeys(self._workload.required_context(), value)

    @cached_property
    def _session(self) -> EnclaveSession:
        return EnclaveSession(self._workload, self._name)

    def ask_enclave(self, message: bytes, credentials: Credentials | None = None) -> None:
        self._session.detect_message(message, credentials=credentials)

    def decrypt(self, *, document: bytes | None = None, context: Mapping[str, str] | None = None) -> None:
        """As the parent; with a document, as an enclave would."""
        data_key = self.sealed.data_key
        request: dict[str, Any] = {
            "KeyId": data_key.key_arn,
            "CiphertextBlob": data_key.ciphertext,
            "EncryptionContext": dict(data_key.encryption_context if context is None else context),
        }
        if document is not None:
            request["Recipient"] = {
                "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
                "AttestationDocument": document,
            }
        with kms.kms_errors("decrypt the data key as the parent"):
            self._workload.kms("parent").decrypt(**request)

    def reencrypt(self) -> None:
        data_key, destination = self.sealed.data_key, self.key_of_the_parents_own
        with kms.kms_errors("re-encrypt the data key as the parent"):
            self._workload.kms("parent").re_encrypt(
                CiphertextBlob=data_key.ciphertext,
                SourceKeyId=data_key.key_arn,
                SourceEncryptionContext=dict(data_key.encryption_context),
                DestinationKeyId=destination,
            )

    @cached_property
    def key_of_the_parents_own(self) -> str:
        """A key that the parent may use in every way, as an attacker would have; made once.

        That the parent can encrypt under it shows that a refusal is about our key, not about this one.
        """
        administrator = self._workload.kms("administrator")
        arn = kms.find_key(administrator, DESTINATION_ALIAS)
        if arn is None:
            policy = _open_policy(self._workload.backend.parent_arn)
            arn = kms.create_key(administrator, policy, "necli prove: where an attacker moves a data key to")
            kms.point_alias(administrator, DESTINATION_ALIAS, arn)
        with kms.kms_errors("encrypt under a key of the parent's own"):
            self._workload.kms("parent").encrypt(KeyId=arn, Plaintext=b"necli prove")
        return arn

    @cached_property
    def public_key(self) -> bytes:
        return forgery.new_public_key()

    @cached_property
    def genuine_document(self) -> bytes:
        """The enclave makes one for whoever asks; it names no key to which KMS could seal."""
        return fetch_document(self._workload, self._name, nonce=b"necli prove", user_data=b"")

    @property
    def pcrs(self) -> Mapping[int, bytes]:
        return AttestationDocument.parse(self.genuine_document).pcrs

    def document_of_another_enclave(
        self, change: Callable[[bytes], bytes] = bytes, *, age: timedelta = timedelta(0)
    ) -> bytes:
        """Signed by the platform; `change` is made to each of PCR0 to PCR2."""
        pcrs = {index: change(value) if index <= 2 else value for index, value in self.pcrs.items()}
        made_at = datetime.now(UTC) - age
        document = self._workload.backend.document_of_another_enclave(
            pcrs, public_key=self.public_key, made_at=made_at
        )
        if document is None:
            raise NotTriable
        return document

    def expired_credentials(self) -> Credentials:
        credentials = self._workload.backend.expired_credentials()
        if credentials is None:
            raise NotTriable
        return credentials


@dataclass(frozen=True)
class Attack:
    name: str
    expected: str
    """The code of the refusal."""
    tried: str
    """For a reader who doesn't know necli: what the attacker does."""
    make: Callable[[Scene], None]
    """Returns if it succeeds; raises NecliError where it is refused."""


def _tampered(name: str, tried: str, change: Callable[[bytes], bytes]) -> Attack:
    return Attack(name, TAMPERED, tried, lambda scene: scene.ask_enclave(change(scene.message)))


ATTACKS = (
    Attack(
        "parent Decrypt", REFUSED,
        "The parent asks KMS to decrypt the data key, with its own credentials.",
        lambda scene: scene.decrypt(),
    ),
    Attack(
        "parent ReEncrypt", REFUSED,
        "The parent asks KMS to move the data key under a key of its own, which it could use.",
        lambda scene: scene.reencrypt(),
    ),
    Attack(
        "self-signed document", INVALID,
        "The parent attests itself: the right PCRs, but under a root certificate that it made.",
        lambda scene: scene.decrypt(document=forgery.self_signed(scene.pcrs, scene.public_key)),
    ),
    Attack(
        "forged document", INVALID,
        "The parent writes its own public key into a genuine document of the enclave.",
        lambda scene: scene.decrypt(
            document=forgery.with_public_key(scene.genuine_document, scene.public_key)
        ),
    ),
    Attack(
        "document taken over", INVALID,
        "The parent sends a genuine document that the enclave made for it, unchanged.",
        lambda scene: scene.decrypt(document=scene.genuine_document),
    ),
    Attack(
        "replayed document", INVALID,
        "The parent sends a document with the right PCRs that was made an hour ago.",
        lambda scene: scene.decrypt(document=scene.document_of_another_enclave(age=timedelta(hours=1))),
    ),
    Attack(
        "wrong PCRs", REFUSED,
        "The parent runs another image as an enclave, which attests itself to KMS.",
        lambda scene: scene.decrypt(
            document=scene.document_of_another_enclave(lambda value: tampering.flip_bit(value, 0))
        ),
    ),
    Attack(
        "debug PCRs", REFUSED,
        "The parent runs the image in debug mode, where it attests zeros and its console is readable.",
        lambda scene: scene.decrypt(document=scene.document_of_another_enclave(lambda _: ZERO)),
    ),
    Attack(
        "wrong encryption context", "wrong_context",
        "The enclave gets a message that was encrypted for another purpose.",
        lambda scene: scene.ask_enclave(scene.seal(scene.context_with("another")).message),
    ),
    Attack(
        "missing encryption context", "wrong_context",
        "The enclave gets a message that was encrypted for no stated purpose.",
        lambda scene: scene.ask_enclave(scene.seal({}).message),
    ),
    _tampered(
        "altered encryption context",
        "A value of the encryption context is replaced in the message's header.",
        lambda message: tampering.with_context_value(message, _PAIR[1], _PAIR[2]),
    ),
    Attack(
        "swapped data key", TAMPERED,
        "The wrapped data key of another message stands in the place of the message's own.",
        lambda scene: scene.ask_enclave(tampering.with_data_key_of(scene.message, scene.another_message)),
    ),
    Attack(
        "key of the parent's own", "wrong_key",
        "The enclave gets a message under a key of the parent's choice.",
        lambda scene: scene.ask_enclave(scene.sealed_by_parent()),
    ),
    Attack(
        "key of another account", "wrong_key",
        "The message's header names a key of another AWS account.",
        lambda scene: scene.ask_enclave(tampering.with_key_of_another_account(scene.message, scene.key_arn)),
    ),
    _tampered(
        "flipped bit in header", "One bit of the message's header is flipped.",
        tampering.with_header_bit_flipped,
    ),
    _tampered(
        "flipped bit in frame", "One bit of the encrypted photo is flipped.",
        tampering.with_frame_bit_flipped,
    ),
    _tampered(
        "flipped bit in tag", "One bit of the last authentication tag is flipped.",
        tampering.with_tag_bit_flipped,
    ),
    _tampered(
        "dropped frame", "A frame is left out, and the others are numbered anew.",
        tampering.without_a_frame,
    ),
    _tampered("cut-off message", "The last frame is left out.", tampering.without_the_last_frame),
    _tampered(
        "reordered frames", "Two frames change places, each with the other's number.",
        tampering.with_frames_reordered,
    ),
    Attack(
        "expired credentials", "credentials_expired",
        "The parent passes credentials on to the enclave whose session is over.",
        lambda scene: scene.ask_enclave(scene.message, scene.expired_credentials()),
    ),
)  # fmt: skip


def _picture() -> bytes:
    """A small image, with enough behind its end to fill several frames."""
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(picture, "PNG")
    return picture.getvalue().ljust(_FRAMES * FRAME_BYTES - 1, b"\0")


def _open_policy(parent_arn: str) -> KeyPolicy:
    principals = [f"arn:aws:iam::{parent_arn.split(':')[4]}:root", parent_arn]
    statement = {"Effect": "Allow", "Principal": {"AWS": principals}, "Action": "kms:*", "Resource": "*"}
    return KeyPolicy.from_json({"Version": "2012-10-17", "Statement": [{"Sid": "All", **statement}]})
