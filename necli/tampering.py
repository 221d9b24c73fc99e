"""What somebody between the data owner and the enclave can do to a message, and must gain nothing by.

Works on framed messages of version 2 of the AWS Encryption SDK's format: header, 16 bytes that authenticate
it, then frames of sequence number, IV, content and tag. The last frame has a mark before and a length within.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Self

_MESSAGE_ID = slice(3, 35)
_HEADER_TAG_BYTES = 16
_SEQUENCE_BYTES = 4
_IV_BYTES = 12
_TAG_BYTES = 16
_OTHER_ACCOUNT = b"999988887777"


@dataclass(frozen=True)
class MessageParts:
    """A message, taken apart."""

    header: bytes
    """With its tag."""
    data_key: bytes
    frames: Sequence[bytes]
    """All but the last."""
    last_frame: bytes

    @classmethod
    def of(cls, message: bytes) -> Self:
        from aws_encryption_sdk.internal.formatting.deserialize import deserialize_header

        header, raw = deserialize_header(BytesIO(message))
        (data_key,) = header.encrypted_data_keys
        start = len(raw) + _HEADER_TAG_BYTES
        size = _SEQUENCE_BYTES + _IV_BYTES + header.frame_length + _TAG_BYTES
        frames = []
        at = start
        while message[at : at + _SEQUENCE_BYTES] != b"\xff" * _SEQUENCE_BYTES:
            frames.append(message[at : at + size])
            at += size
        return cls(message[:start], data_key.encrypted_data_key, frames, message[at:])

    def joined(self) -> bytes:
        return b"".join((self.header, *self.frames, self.last_frame))


def flip_bit(content: bytes, position: int) -> bytes:
    """The same but for one bit; a negative position counts from the end."""
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


def with_header_bit_flipped(message: bytes) -> bytes:
    """In the message's id, from which the SDK derives its keys."""
    return flip_bit(message, _MESSAGE_ID.start)


def with_frame_bit_flipped(message: bytes) -> bytes:
    """In the first byte of the first frame's content."""
    return flip_bit(message, len(MessageParts.of(message).header) + _SEQUENCE_BYTES + _IV_BYTES)


def with_tag_bit_flipped(message: bytes) -> bytes:
    """In the tag of the last frame."""
    return flip_bit(message, -1)


def without_a_frame(message: bytes) -> bytes:
    """The first frame is left out, and the following take its number."""
    parts = MessageParts.of(message)
    return _with_frames(parts, [_numbered(frame, n) for n, frame in enumerate(parts.frames[1:], 1)])


def without_the_last_frame(message: bytes) -> bytes:
    parts = MessageParts.of(message)
    return _with_frames(parts, parts.frames)[: -len(parts.last_frame)]


def with_frames_reordered(message: bytes) -> bytes:
    """The first two frames change places, each with the other's number."""
    parts = MessageParts.of(message)
    first, second, *rest = parts.frames
    return _with_frames(parts, [_numbered(second, 1), _numbered(first, 2), *rest])


def with_data_key_of(message: bytes, other: bytes) -> bytes:
    """The wrapped data key of another message in the place of its own."""
    return message.replace(MessageParts.of(message).data_key, MessageParts.of(other).data_key, 1)


def with_key_of_another_account(message: bytes, key_arn: str) -> bytes:
    """The header says that a key of another account wrapped the data key."""
    account = key_arn.split(":")[4].encode()
    foreign = key_arn.encode().replace(account, _OTHER_ACCOUNT)
    return message.replace(key_arn.encode(), foreign, 1)


def with_context_value(message: bytes, value: str, other: str) -> bytes:
    """One value of the encryption context replaced by another of the same length."""
    if len(value) != len(other):
        raise ValueError("the values differ in length")
    return message.replace(value.encode(), other.encode(), 1)


def _with_frames(parts: MessageParts, frames: Sequence[bytes]) -> bytes:
    return MessageParts(parts.header, parts.data_key, frames, parts.last_frame).joined()


def _numbered(frame: bytes, number: int) -> bytes:
    return number.to_bytes(_SEQUENCE_BYTES) + frame[_SEQUENCE_BYTES:]
