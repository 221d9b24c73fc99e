"""JSON lines on the console, with nothing in them that was derived from a payload.

In debug mode the parent reads the console. So of an exception only its type and where it was raised are
written, and of other libraries' records not even the text.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Final

_WITHOUT_PAYLOAD: Final = ("enclave_payload", "uvicorn")


def start_logging() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.ERROR, force=True)
    logging.getLogger("enclave_payload").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    # The SDK logs every refusal of KMS as an exception; it's answered, and counted as an answer.
    logging.getLogger("aws_encryption_sdk").setLevel(logging.CRITICAL + 1)
    logging.raiseExceptions = False


def log_event(
    logger: logging.Logger, event: str, *, exc: BaseException | None = None, **fields: object
) -> None:
    logger.log(logging.ERROR if exc else logging.INFO, event, exc_info=exc, extra={"fields": fields})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage() if record.name.startswith(_WITHOUT_PAYLOAD) else "withheld",
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = _where(record.exc_info[1])
        return json.dumps(line)


def _where(exc: BaseException) -> dict[str, object]:
    frames = traceback.extract_tb(exc.__traceback__)
    return {"type": type(exc).__name__, "at": [f"{frame.filename}:{frame.lineno}" for frame in frames]}
