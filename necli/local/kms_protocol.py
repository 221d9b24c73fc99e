"""The JSON protocol of KMS (x-amz-json-1.1): its errors, and its requests' parameters."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Self

CONTENT_TYPE = "application/x-amz-json-1.1"
_MAX_CONTEXT_BYTES = 8192


class KmsError(Exception):
    """An error as AWS answers it: its name, message and status.

    `detail` is for the service's log: what an administrator may know and a caller of KMS isn't told.
    """

    def __init__(self, code: str, message: str = "", *, status: int = 400, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.detail = detail

    def body(self) -> dict[str, str]:
        # IAM writes Message and everything else message; InvalidCiphertextException has none at all.
        name = "Message" if self.code == "AccessDeniedException" else "message"
        return {"__type": self.code, **({name: self.message} if self.message else {})}


class Parameters:
    """The members of one request, each checked when it is read."""

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = members

    @classmethod
    def parse(cls, body: bytes) -> Self:
        try:
            members = json.loads(body or b"{}")
        except (ValueError, RecursionError) as exc:
            raise KmsError("SerializationException", "the request's body is not JSON") from exc
        if not isinstance(members, dict):
            raise KmsError("SerializationException", "the request's body is not a JSON object")
        return cls(members)

    def text(self, name: str, *, max_length: int = 2048, pattern: str = "(?s).+") -> str | None:
        value = self._member(name, str)
        if value is None:
            return None
        _utf8(name, value)
        if len(value) > max_length:
            raise _invalid(name, f"Member must have length less than or equal to {max_length}")
        if not re.fullmatch(pattern, value):
            raise _invalid(name, f"Member must satisfy regular expression pattern: {pattern}")
        return str(value)

    def required_text(self, name: str, *, max_length: int = 2048, pattern: str = "(?s).+") -> str:
        value = self.text(name, max_length=max_length, pattern=pattern)
        if value is None:
            raise _invalid(name, "Member must not be null")
        return value

    def choice(self, name: str, *values: str) -> str | None:
        value = self.text(name)
        if value is not None and value not in values:
            raise _invalid(name, f"Member must satisfy enum value set: [{', '.join(values)}]")
        return value

    def blob(self, name: str, *, max_length: int) -> bytes:
        value = self._member(name, str)
        if value is None:
            raise _invalid(name, "Member must not be null")
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise KmsError("SerializationException", f"{name} is not base64") from exc
        if not 1 <= len(data) <= max_length:
            raise _invalid(name, f"Member must have length between 1 and {max_length}")
        return data

    def integer(self, name: str, lowest: int, highest: int) -> int | None:
        value = self._member(name, int)
        if value is None:
            return None
        if isinstance(value, bool) or not lowest <= value <= highest:
            raise _invalid(name, f"Member must be between {lowest} and {highest}")
        return int(value)

    def flag(self, name: str) -> bool:
        return bool(self._member(name, bool))

    def structure(self, name: str) -> Parameters | None:
        value = self._member(name, dict)
        return None if value is None else Parameters(value)

    def encryption_context(self, name: str = "EncryptionContext") -> dict[str, str]:
        context = self._member(name, dict) or {}
        if not all(isinstance(value, str) for value in context.values()):
            raise KmsError("SerializationException", f"a value of {name} is not a string")
        if len(_utf8(name, json.dumps(context, ensure_ascii=False))) > _MAX_CONTEXT_BYTES:
            raise _invalid(name, f"Member must have length less than or equal to {_MAX_CONTEXT_BYTES}")
        if len({key.lower() for key in context}) != len(context):
            # A condition key's name has no case: such a pair would be one condition key with two values.
            raise KmsError("ValidationException", f"Keys in {name} must not differ in case only")
        return context

    def refuse(self, *names: str) -> None:
        """Say no to what this service doesn't do, rather than leave it out in silence."""
        for name in names:
            if self._members.get(name):
                raise KmsError("UnsupportedOperationException", f"{name} is not supported by the local KMS")

    def _member(self, name: str, kind: type) -> Any:
        value = self._members.get(name)
        if value is not None and not isinstance(value, kind):
            raise KmsError("SerializationException", f"{name} can not be converted to {kind.__name__}")
        return value


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise KmsError("SerializationException", f"{name} is not valid Unicode") from None


def _invalid(name: str, constraint: str) -> KmsError:
    member = name[0].lower() + name[1:]
    return KmsError(
        "ValidationException",
        f"1 validation error detected: Value at '{member}' failed to satisfy constraint: {constraint}",
    )
