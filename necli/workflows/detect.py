"""Sends encrypted photos into the enclave and checks what comes back."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from necli.backends import Credentials
from necli.envelope import context_of, is_message
from necli.errors import AccessDenied, InputError, MeasurementMismatch, NecliError, NotReady, ServiceFailed
from necli.images import FoundObject
from necli.receipt import Receipt, SealedReceipt, input_digest
from necli.sealing import SEAL_TO
from necli.workflows.denial import explain_denial
from necli.workflows.encrypt import encrypt_image, read_input
from necli.workflows.workload import ENCLAVE, Workload

if TYPE_CHECKING:
    import httpx

_NONCE_BYTES = 32

# What the enclave's answers mean to the user, and what helps.
_ERRORS: Mapping[str, tuple[type[NecliError], str]] = {
    "bad_request": (ServiceFailed, "this necli and the enclave don't fit together: run necli up"),
    "starting": (NotReady, "wait a moment, or look at necli status"),
    "busy": (ServiceFailed, "the enclave is at its limit: try again"),
    "message_too_large": (InputError, "use a smaller image"),
    "message_invalid": (InputError, "encrypt the image again with necli encrypt"),
    "wrong_key": (InputError, "encrypt the image again with necli encrypt: it uses this enclave's key"),
    "wrong_context": (InputError, "encrypt the image again with necli encrypt: it adds the context"),
    "not_an_image": (InputError, "use a JPEG, PNG or WebP file"),
    "image_truncated": (InputError, "use a complete image file"),
    "image_too_large": (InputError, "use an image with fewer pixels"),
    "credentials_missing": (AccessDenied, "run necli doctor"),
    "credentials_expired": (AccessDenied, "run the command again with fresh credentials"),
    "kms_error": (ServiceFailed, "run necli doctor"),
    "kms_unreachable": (ServiceFailed, "necli proxy start, or necli up for everything"),
    "timeout": (ServiceFailed, "try again, or a smaller image"),
}
_UNKNOWN = (ServiceFailed, "look at necli status")


@dataclass(frozen=True)
class Detection:
    """What the enclave found in one file, with the receipt that was verified."""

    file: str
    objects: Sequence[FoundObject] | None
    """None: the answer is sealed to the data owner."""
    model_digest: str | None
    timings_ms: Mapping[str, float]
    receipt: Receipt | SealedReceipt
    photo: bytes | None = field(repr=False)
    """The plaintext, where it was on this machine."""

    def to_json(self) -> dict[str, Any]:
        answer = {
            "objects": [
                {"name": found.name, "score": found.score, "box": list(found.box)}
                for found in self.objects or ()
            ],
            "model_digest": self.model_digest,
        }
        return {
            "file": self.file,
            **({"sealed": True} if self.objects is None else answer),
            "timings_ms": dict(self.timings_ms),
            "receipt": self.receipt.to_json(),
        }


class EnclaveSession:
    """Requests to one enclave, which was checked to run what was built.

    :raises NotReady: nothing is built or the enclave isn't running.
    :raises MeasurementMismatch: it runs another image than the one built last.
    """

    def __init__(self, workload: Workload, name: str = ENCLAVE) -> None:
        self._workload = workload
        self._build = workload.build()
        self.enclave = workload.running_enclave(name)
        if self.enclave.measurements != self._build.measurements:
            raise MeasurementMismatch(
                f"the enclave {name} runs another image than the one built last",
                hint="run necli up",
                code="enclave_outdated",
            )
        self._client = workload.backend.connect(name)
        self._headers = _credential_headers(workload.backend.credentials_for_enclave())
        self._roots = workload.backend.attestation_roots()

    def detect(self, file: Path, *, min_score: float, context: Mapping[str, str] | None = None) -> Detection:
        """Objects in an image, which is encrypted first, or in a message.

        :raises InputError: the file is missing, damaged, or of another kind, or not for this enclave.
        :raises AccessDenied: KMS refused the data key.
        :raises AttestationInvalid: the receipt doesn't verify.
        """
        content = read_input(file)
        photo = None if is_message(content) else content
        if photo is None:
            _check_sealing(file, content, (context or {}).get(SEAL_TO))
        message = content if photo is None else encrypt_image(self._workload, photo, file, context or {})
        body, receipt = self._ask(message, min_score)
        self._verify(receipt, message)
        with _well_formed():
            answer = None if isinstance(receipt, SealedReceipt) else receipt.answer
            return Detection(
                file=str(file),
                objects=None if answer is None else [_found(each) for each in answer["objects"]],
                model_digest=None if answer is None else str(answer["model_digest"]),
                timings_ms={name: float(value) for name, value in body["timings_ms"].items()},
                receipt=receipt,
                photo=photo,
            )

    def _verify(self, receipt: Receipt | SealedReceipt, message: bytes) -> None:
        expected, now = self._build.measurements.pcrs(), datetime.now(UTC)
        if isinstance(receipt, SealedReceipt):
            receipt.verify(roots=self._roots, expected=expected, at=now)
        else:
            digest = input_digest(message)
            receipt.verify(roots=self._roots, expected=expected, at=now, message_digest=digest)

    def detect_message(self, message: bytes, *, credentials: Credentials | None = None) -> None:
        """Ask about a message, maybe with other credentials, and drop what is found; raises as `detect`."""
        self._ask(message, 1.0, _credential_headers(credentials) if credentials else {})

    def _ask(
        self, message: bytes, min_score: float, headers: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[dict[str, Any], Receipt | SealedReceipt]:
        nonce = os.urandom(_NONCE_BYTES)
        encoded_nonce = base64.urlsafe_b64encode(nonce).rstrip(b"=").decode()
        response = self._client.post(
            "/detect",
            params={"min_score": min_score},
            content=message,
            headers={
                **self._headers,
                **headers,
                "content-type": "application/octet-stream",
                "x-necli-nonce": encoded_nonce,
            },
        )
        with _well_formed():
            if response.status_code != 200:
                raise self._error(response, message)
            body = response.json()
            document = base64.b64decode(body["receipt"], validate=True)
            if "sealed" in body:
                return body, SealedReceipt(base64.b64decode(body["sealed"], validate=True), document, nonce)
            return body, Receipt(body["answer"], document, nonce)

    def _error(self, response: httpx.Response, sent: bytes) -> NecliError:
        error = response.json()["error"]
        code, message, detail = str(error["code"]), str(error["message"]), error.get("detail") or {}
        if code == "access_denied":
            reason = str(detail.get("aws_message", message))
            return explain_denial(self._workload, self.enclave, sent, reason)
        kind, hint = _ERRORS.get(code, _UNKNOWN)
        extra = "".join(f"; {name}: {value}" for name, value in detail.items())
        return kind(f"the enclave says: {message}{extra}", hint=hint, code=code)


def _check_sealing(file: Path, message: bytes, owner: str | None) -> None:
    """Whom the answer is sealed to was decided when the message was made: nobody can change it since."""
    if owner is not None and context_of(message).get(SEAL_TO) != owner:
        raise InputError(
            f"{file} doesn't ask for its answer to be sealed to this key",
            hint="encrypt the image again with necli encrypt --seal-to",
            code="not_sealed",
        )


def _found(value: Mapping[str, Any]) -> FoundObject:
    top, left, bottom, right = (float(share) for share in value["box"])
    return FoundObject(str(value["name"]), float(value["score"]), (top, left, bottom, right))


def _credential_headers(credentials: Credentials) -> dict[str, str]:
    headers = {
        "x-aws-access-key-id": credentials.access_key_id,
        "x-aws-secret-access-key": credentials.secret_access_key,
    }
    if credentials.session_token:
        headers["x-aws-session-token"] = credentials.session_token
    return headers


@contextmanager
def _well_formed() -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ServiceFailed("the enclave gave an answer that can't be read", hint="run necli up") from exc
