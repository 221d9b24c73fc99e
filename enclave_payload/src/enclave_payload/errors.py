"""What the server answers when it can't answer.

A code is part of the HTTP interface: clients act on it, so it's never renamed. Messages are for people and
never hold anything that was derived from the plaintext.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

STATUS_OF_CODE: Final[Mapping[str, int]] = MappingProxyType(
    {
        "bad_request": 400,
        "message_invalid": 400,  # no AWS Encryption SDK message, cut off, tampered with or not committed
        "wrong_key": 400,
        "wrong_context": 400,
        "not_an_image": 400,
        "image_truncated": 400,
        "image_too_large": 400,
        "credentials_missing": 401,
        "credentials_expired": 401,
        "access_denied": 403,
        "message_too_large": 413,
        "internal": 500,
        "kms_error": 502,
        "starting": 503,
        "busy": 503,
        "kms_unreachable": 504,
        "timeout": 504,
    }
)


class PayloadError(Exception):
    """A failure with a stable code, and the HTTP status that belongs to it."""

    def __init__(self, code: str, message: str, *, detail: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.detail = detail
        self.status = STATUS_OF_CODE[code]

    def to_json(self) -> dict[str, object]:
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail:
            error["detail"] = dict(self.detail)
        return {"error": error}
