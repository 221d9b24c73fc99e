"""From a photo to a message for the enclave, as the data owner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from necli.envelope import MAX_PLAINTEXT_BYTES, is_message, seal
from necli.errors import InputError, NecliError
from necli.home import host_errors
from necli.images import photo_format
from necli.workflows.workload import Workload

_MAX_FILE_BYTES = MAX_PLAINTEXT_BYTES + (1 << 20)


def read_input(file: Path) -> bytes:
    """An image or a message.

    :raises InputError: there is no such file, it is empty, too large, or neither image nor message.
    """
    try:
        with host_errors(f"can't read {file}"), open(file, "rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    except NecliError as exc:
        if isinstance(exc.__cause__, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            raise InputError(exc.message, hint="check the path", code="no_such_file") from exc
        raise
    if not content:
        raise InputError(f"{file} is empty", hint="use a JPEG, PNG or WebP file", code="empty_file")
    if len(content) > _MAX_FILE_BYTES:
        raise InputError(
            f"{file} is larger than the {MAX_PLAINTEXT_BYTES >> 20} MiB that an enclave accepts",
            hint="use a smaller image",
            code="message_too_large",
        )
    if not is_message(content) and photo_format(content) is None:
        raise InputError(
            f"{file} is neither an image nor an encrypted message",
            hint="use a JPEG, PNG or WebP file, or what necli encrypt wrote",
            code="not_an_image",
        )
    return content


def encrypt_image(workload: Workload, image: bytes, file: Path, context: Mapping[str, str]) -> bytes:
    """The image as a message for the enclave, encrypted as the data owner.

    :raises InputError: it is encrypted already.
    """
    if is_message(image):
        raise InputError(f"{file} is encrypted already", hint="run necli detect on it", code="not_an_image")
    sealed = seal(
        image,
        kms=workload.kms("owner"),
        key_arn=workload.key().arn,
        context={**workload.required_context(), **context},
    )
    return sealed.message
