"""`python -m tests.payload.stand_in_server`: the real server in the current folder, with a stand-in inside.

Messages are commands to it: `sleep:SECONDS`, `fail:CODE`, `crash:TEXT`; any other message is taken for the
plaintext of an image. While a file `hold` exists it isn't ready, and with a file `broken` it never is.
"""

from __future__ import annotations

import base64
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from enclave_payload import incoming, server
from enclave_payload.app import make_app
from enclave_payload.config import Config
from enclave_payload.envelope import OpenedMessage
from enclave_payload.errors import PayloadError
from enclave_payload.imaging import Pixels
from enclave_payload.logs import start_logging
from enclave_payload.pipeline import Pipeline


def small_png() -> bytes:
    png = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(png, "PNG")
    return png.getvalue()


class StandInOpener:
    def open(self, message: io.BytesIO, /) -> OpenedMessage:
        content = message.read()
        command, _, argument = content[:100].partition(b":")
        match command:
            case b"sleep":
                time.sleep(float(argument))
                content = small_png()
            case b"fail":
                raise PayloadError(argument.decode(), "as was asked for", detail={"aws_code": "Asked"})
            case b"crash":
                raise RuntimeError(argument.decode())
        return OpenedMessage(content, kms_seconds=0.001)


@dataclass(frozen=True)
class StandInDetection:
    name: str
    score: float
    box: tuple[float, float, float, float]


class StandInDetector:
    input_size = 512

    def detect(self, pixels: Pixels, /) -> list[StandInDetection]:
        return [
            StandInDetection("Zebra é", 0.87654321, (0.1, 0.2, 0.3, 1.0)),
            StandInDetection("Zebra é", 0.4, (0.0, 0.0, 1.0, 1.0)),
        ]


class StandInNsm:
    def attest(
        self, *, public_key: bytes | None = None, user_data: bytes | None = None, nonce: bytes | None = None
    ) -> bytes:
        members = {"user_data": user_data, "nonce": nonce}
        text = {
            name: base64.b64encode(value).decode() for name, value in members.items() if value is not None
        }
        return json.dumps(text).encode()


def main() -> None:
    start_logging()
    # Nobody waits for ten seconds.
    server.HEAD_TIMEOUT_S = server.STALL_TIMEOUT_S = incoming.BODY_IDLE_TIMEOUT_S = 2.0  # type: ignore[misc]
    config = Config.load(Path("config.json"))
    nsm = StandInNsm()

    def load() -> Pipeline:
        while Path("hold").exists():
            time.sleep(0.01)
        if Path("broken").exists():
            raise OSError("the model is broken")
        return Pipeline(config, opener=StandInOpener(), detector=StandInDetector(), nsm=nsm)

    server.serve(make_app(config, nsm, load), server.listen(config.listen))


if __name__ == "__main__":
    main()
