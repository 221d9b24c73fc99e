"""From an encrypted message to an answer and its receipt. Blocks; runs in a worker thread."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from enclave_payload.config import Config
from enclave_payload.envelope import OpenedMessage
from enclave_payload.imaging import DecodedImage, Pixels, decode_image
from enclave_payload.incoming import DetectionRequest
from enclave_payload.kms import credentials
from enclave_payload.receipt import receipt_user_data, sealed_user_data, six_digits
from enclave_payload.sealing import owner_key, seal_answer

ANSWER_SCHEMA = 1


class Detection(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def box(self) -> tuple[float, float, float, float]: ...


class Detector(Protocol):
    @property
    def input_size(self) -> int | None: ...
    def detect(self, pixels: Pixels, /) -> Sequence[Detection]: ...


class Opener(Protocol):
    def open(self, message: io.BytesIO, /) -> OpenedMessage: ...


class Attester(Protocol):
    def attest(
        self, *, public_key: bytes | None = None, user_data: bytes | None = None, nonce: bytes | None = None
    ) -> bytes: ...


@dataclass(frozen=True)
class DetectionResult:
    answer: dict[str, object] | bytes
    """Bytes, if it is sealed to the data owner."""
    receipt: bytes
    timings_ms: dict[str, float]


class Pipeline:
    """What a ready enclave can do: decrypt through attested KMS, decode, detect, sign."""

    def __init__(self, config: Config, *, opener: Opener, detector: Detector, nsm: Attester) -> None:
        self._config = config
        self._opener = opener
        self._detector = detector
        self._nsm = nsm

    def run(self, message: io.BytesIO, request: DetectionRequest) -> DetectionResult:
        """Consumes and closes `message`. Raises PayloadError."""
        laps = _Laps()
        digest = _sha384(message)
        with credentials(request.credentials):
            opened = self._opener.open(message)
        message.close()  # each of these steps may hold tens of MiB, so none outlives its use
        laps.end("decrypt", without={"kms": opened.kms_seconds})
        owner = owner_key(opened.encryption_context)
        limits, input_size = self._config.limits, self._detector.input_size
        image = decode_image(opened.plaintext, max_pixels=limits.max_pixels, input_size=input_size)
        del opened
        laps.end("decode")
        detections = self._detector.detect(image.pixels)
        laps.end("infer")
        answer = self._answer(digest, image, detections, request.min_score)
        sealed = seal_answer(answer, owner) if owner else None
        user_data = receipt_user_data(answer) if sealed is None else sealed_user_data(sealed)
        receipt = self._nsm.attest(user_data=user_data, nonce=request.nonce)
        laps.end("receipt")
        return DetectionResult(answer if sealed is None else sealed, receipt, laps.milliseconds)

    def _answer(
        self, digest: str, image: DecodedImage, detections: Sequence[Detection], min_score: float
    ) -> dict[str, object]:
        found = [detection for detection in detections if detection.score >= min_score]
        return {
            "schema": ANSWER_SCHEMA,
            "version": self._config.version,
            "input_digest": digest,
            "model_digest": self._config.model.digest,
            "min_score": six_digits(min_score),
            "image": {"width": image.width, "height": image.height, "format": image.format},
            "objects": [
                {
                    "name": detection.name,
                    "score": six_digits(detection.score),
                    "box": [six_digits(edge) for edge in detection.box],
                }
                for detection in found[: self._config.limits.max_objects]
            ],
        }


def _sha384(message: io.BytesIO) -> str:
    with message.getbuffer() as content:
        return hashlib.sha384(content).hexdigest()


class _Laps:
    """How long each step took, counted from the end of the one before."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, step: str, *, without: Mapping[str, float] = MappingProxyType({})) -> None:
        """`without` names parts of the step, in seconds, that are told apart from the rest of it."""
        now = time.perf_counter()
        seconds = {**without, step: now - self._last - sum(without.values())}
        self.milliseconds |= {name: round(value * 1000, 3) for name, value in seconds.items()}
        self._last = now
