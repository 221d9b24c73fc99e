"""The receipt of an answer: which image, on which input and with which model, found these objects.

The enclave's attestation document carries, as its `user_data`,

    SHA-384("necli:receipt:v1" 00 || canonical JSON of the answer)

and the client's nonce. Of an answer that is sealed to the data owner, it is the sealed bytes that are vouched
for, in the domain "necli:sealed:v1". The answer names the digests of the message and of the model. Canonical
JSON has sorted keys, no white space and UTF-8; the payload's `enclave_payload.receipt` is its other end.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from necli.errors import AttestationInvalid, InputError

if TYPE_CHECKING:
    from datetime import datetime

    from necli.attestation import AttestationDocument, TrustedRoot

_DOMAIN = b"necli:receipt:v1\0"
_SEALED_DOMAIN = b"necli:sealed:v1\0"


def canonical_json(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def input_digest(message: bytes) -> str:
    """How an answer names the message that it is about."""
    return hashlib.sha384(message).hexdigest()


@dataclass(frozen=True)
class Receipt:
    """An answer with the document that vouches for it; nothing is proven before `verify`."""

    answer: Mapping[str, Any]
    document: bytes
    nonce: bytes

    @classmethod
    def from_json(cls, value: Any) -> Receipt:
        """:raises InputError: this isn't a receipt."""
        try:
            answer, document, nonce = value["answer"], _decoded(value["document"]), _decoded(value["nonce"])
        except (KeyError, TypeError, ValueError, binascii.Error) as exc:
            raise InputError(
                "not a receipt: it needs answer, document and nonce", code="not_a_receipt"
            ) from exc
        if not isinstance(answer, dict):
            raise InputError("not a receipt: its answer is no JSON object", code="not_a_receipt")
        return cls(answer, document, nonce)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "answer": self.answer,
            "document": base64.b64encode(self.document).decode(),
            "nonce": base64.b64encode(self.nonce).decode(),
        }

    @property
    def user_data(self) -> bytes:
        try:
            return hashlib.sha384(_DOMAIN + canonical_json(self.answer)).digest()
        except ValueError as exc:
            raise AttestationInvalid("the answer holds a number that JSON can't carry") from exc

    def verify(
        self,
        *,
        roots: Sequence[TrustedRoot],
        expected: Mapping[int, bytes],
        at: datetime,
        message_digest: str | None = None,
    ) -> AttestationDocument:
        """Prove that an enclave with the `expected` PCRs gave exactly this answer.

        1. The answer is about the message with this digest, where one is given.
        2. The document is signed, and its certificates were valid under a root at the time `at`.
        3. Its PCRs are the expected ones, every one of them.
        4. It carries the nonce that was sent with the request.
        5. Its user data is the digest of the answer.

        :raises AttestationInvalid: one of these is not so; the message says which.
        """
        from necli.attestation import verify_document

        if message_digest is not None and self.answer.get("input_digest") != message_digest:
            raise AttestationInvalid("the receipt is about another message", code="receipt_other_input")
        return verify_document(
            self.document, roots=roots, at=at, expected=expected, nonce=self.nonce, user_data=self.user_data
        )


@dataclass(frozen=True)
class SealedReceipt:
    """An answer that only the data owner can open, with the document that vouches for it."""

    sealed: bytes
    document: bytes
    nonce: bytes

    @classmethod
    def from_json(cls, value: Any) -> SealedReceipt:
        """:raises InputError: this isn't one."""
        try:
            return cls(_decoded(value["sealed"]), _decoded(value["document"]), _decoded(value["nonce"]))
        except (KeyError, TypeError, ValueError, binascii.Error) as exc:
            raise InputError(
                "not a sealed receipt: it needs sealed, document and nonce", code="not_a_receipt"
            ) from exc

    def to_json(self) -> dict[str, Any]:
        fields = {"sealed": self.sealed, "document": self.document, "nonce": self.nonce}
        return {"schema": 1, **{name: base64.b64encode(value).decode() for name, value in fields.items()}}

    def verify(
        self, *, roots: Sequence[TrustedRoot], expected: Mapping[int, bytes], at: datetime
    ) -> AttestationDocument:
        """Prove that an enclave with the `expected` PCRs gave these sealed bytes, for this nonce.

        :raises AttestationInvalid: it didn't.
        """
        from necli.attestation import verify_document

        user_data = hashlib.sha384(_SEALED_DOMAIN + self.sealed).digest()
        return verify_document(
            self.document, roots=roots, at=at, expected=expected, nonce=self.nonce, user_data=user_data
        )


def receipt_from_json(value: Any) -> Receipt | SealedReceipt:
    """:raises InputError: it is neither."""
    sealed = isinstance(value, dict) and "sealed" in value
    return SealedReceipt.from_json(value) if sealed else Receipt.from_json(value)


def find_receipts(value: Any) -> list[tuple[str, Receipt | SealedReceipt]]:
    """The receipts in what `necli detect --json` printed, each with its file's name; or a receipt alone.

    :raises InputError: there is none.
    """
    if isinstance(value, dict) and isinstance(value.get("results"), list):
        found = [
            (str(result.get("file")), receipt_from_json(result["receipt"]))
            for result in value["results"]
            if isinstance(result, dict) and "receipt" in result
        ]
    else:
        inner = value.get("receipt", value) if isinstance(value, dict) else value
        found = [("receipt", receipt_from_json(inner))]
    if not found:
        raise InputError("no receipt in it: every file of that run failed", code="not_a_receipt")
    return found


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
