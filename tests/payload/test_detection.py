"""The payload whole: booted from its image, the real model, attested by an NSM, against the local KMS.

Nothing stands in for anything here but the local target for Nitro.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from necli import kms
from necli.attestation import verify_document
from necli.backends import BuildSpec, BuiltEif
from necli.backends.local import LocalBackend
from necli.envelope import CONTEXT, seal
from necli.home import Home
from necli.keypolicy import initial_policy, plan_measurements
from necli.models import InstalledModel
from necli.progress import Progress
from necli.receipt import Receipt, input_digest
from necli.resources import resource_folder

NAME = "payload-test"


@dataclass
class Workload:
    backend: LocalBackend
    key_arn: str
    eif: BuiltEif

    def seal(self, plaintext: bytes, context: dict[str, str] = CONTEXT) -> bytes:
        owner = self.backend.kms("owner")
        return seal(plaintext, kms=owner, key_arn=self.key_arn, context=context).message

    def bind_key(self, *, bound: bool) -> None:
        backend, client = self.backend, self.backend.kms("administrator")
        policy = initial_policy(
            admin_arn=backend.administrator_arn,
            parent_arn=backend.parent_arn,
            owner_arn=backend.owner_arn,
            account=backend.parent_arn.split(":")[4],
        )
        if bound:
            policy = plan_measurements(policy, self.eif.measurements, parent_arn=backend.parent_arn).after
        kms.write_policy(client, self.key_arn, policy)

    def detect(self, message: bytes, nonce: bytes = b"n", **headers: str) -> httpx.Response:
        credentials = self.backend.credentials_for_enclave()
        with self.backend.connect(NAME) as client:
            return client.post(
                "/detect",
                content=message,
                headers={
                    "x-aws-access-key-id": credentials.access_key_id,
                    "x-aws-secret-access-key": credentials.secret_access_key,
                    "x-aws-session-token": str(credentials.session_token),
                    "x-necli-nonce": base64.urlsafe_b64encode(nonce).decode(),
                    **headers,
                },
            )

    def verify(self, value: dict[str, Any], message: bytes, nonce: bytes) -> None:
        receipt = Receipt(value["answer"], base64.b64decode(value["receipt"]), nonce)
        receipt.verify(
            roots=self.backend.attestation_roots(),
            expected=self.eif.measurements.pcrs(),
            at=datetime.now(UTC),
            message_digest=input_digest(message),
        )


@pytest.fixture(scope="module")
def workload(embedded_model: InstalledModel) -> Iterator[Workload]:
    with tempfile.TemporaryDirectory(prefix="necli-") as folder:
        backend = LocalBackend(Home(state=Path(folder), cache=Path(folder) / "cache"), "eu-central-1")
        progress = Progress()
        try:
            backend.ensure_services(progress)
            key_arn = backend.kms("administrator").create_key()["KeyMetadata"]["Arn"]
            spec = BuildSpec(
                name=NAME,
                model=embedded_model.path,
                model_name=embedded_model.name,
                model_digest=embedded_model.digest,
                payload=resource_folder("enclave_payload") / "src",
                key_arn=key_arn,
                region=backend.region,
                encryption_context=CONTEXT,
                limits={"max_pixels": 25_000_000},
            )
            eif = backend.build_eif(spec, progress)
            workload = Workload(backend, key_arn, eif)
            workload.bind_key(bound=True)
            backend.run_enclave(NAME, eif.path, memory_mib=3072, cpus=2, debug=False, progress=progress)
            yield workload
            with backend.connect(NAME) as client:
                assert client.get("/health").json()["status"] == "ready"
            backend.stop_enclave(NAME)
        finally:
            backend.stop_services()


def picture(size: tuple[int, int] = (300, 200), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "white").save(file, kind, **options)
    return file.getvalue()


def code_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


def test_the_objects_of_an_encrypted_photo_are_found(workload: Workload, air_show: bytes) -> None:
    message, nonce = workload.seal(air_show), os.urandom(32)
    response = workload.detect(message, nonce)
    assert response.status_code == 200, response.text
    value = response.json()
    found = Counter(each["name"] for each in value["answer"]["objects"] if each["score"] > 0.5)
    assert found == {"airplane": 5}
    assert value["answer"]["image"]["format"] == "JPEG"
    workload.verify(value, message, nonce)
    timings = value["timings_ms"]
    assert all(milliseconds > 0 for milliseconds in timings.values())
    assert sum(timings.values()) - timings["total"] <= timings["total"]


def test_many_at_once_get_their_own_answers(workload: Workload) -> None:
    def ask(width: int) -> int:
        message, nonce = workload.seal(picture((width, 50))), os.urandom(8)
        value = workload.detect(message, nonce).json()
        workload.verify(value, message, nonce)
        return int(value["answer"]["image"]["width"])

    widths = list(range(100, 112))
    with ThreadPoolExecutor(6) as clients:
        assert list(clients.map(ask, widths)) == widths


def test_an_attestation_on_demand_verifies(workload: Workload) -> None:
    with workload.backend.connect(NAME) as client:
        value = client.post("/attest", json={"nonce": base64.b64encode(b"fresh").decode()}).json()
    document = verify_document(
        base64.b64decode(value["document"]),
        roots=workload.backend.attestation_roots(),
        expected=workload.eif.measurements.pcrs(),
        nonce=b"fresh",
    )
    assert document.public_key is None


@pytest.mark.parametrize(
    ("plaintext", "code"),
    [
        (b"just text", "not_an_image"),
        (b"", "not_an_image"),
        (picture(kind="JPEG")[:400], "image_truncated"),
        (picture((20_000, 20_000), optimize=False, compress_level=1), "image_too_large"),
    ],
    ids=["text", "empty", "truncated", "bomb"],
)
def test_what_is_no_good_image_is_refused(workload: Workload, plaintext: bytes, code: str) -> None:
    assert code_of(workload.detect(workload.seal(plaintext))) == code


def test_a_message_for_another_purpose_is_refused(workload: Workload) -> None:
    assert code_of(workload.detect(workload.seal(picture(), {"necli:workload": "other"}))) == "wrong_context"


def test_a_message_for_another_key_is_refused(workload: Workload) -> None:
    other = workload.backend.kms("administrator").create_key()["KeyMetadata"]["Arn"]
    message = seal(picture(), kms=workload.backend.kms("owner"), key_arn=other, context=CONTEXT).message
    assert code_of(workload.detect(message)) == "wrong_key"


def test_a_tampered_message_is_refused(workload: Workload) -> None:
    message = bytearray(workload.seal(picture()))
    message[-20] ^= 1
    assert code_of(workload.detect(bytes(message))) == "message_invalid"


def test_credentials_that_aws_does_not_know_are_refused(workload: Workload) -> None:
    response = workload.detect(workload.seal(picture()), **{"x-aws-access-key-id": "ASIAUNKNOWNUNKNOWNAB"})
    assert (code_of(response), response.status_code) == ("kms_error", 502)
    assert response.json()["error"]["detail"]["aws_code"] == "UnrecognizedClientException"


def test_an_unbound_key_policy_is_the_end_of_it(workload: Workload) -> None:
    message = workload.seal(picture())
    workload.bind_key(bound=False)
    try:
        response = workload.detect(message)
        assert (code_of(response), response.status_code) == ("access_denied", 403)
        assert response.json()["error"]["detail"]["aws_code"] == "AccessDeniedException"
    finally:
        workload.bind_key(bound=True)
    assert workload.detect(message).status_code == 200


def test_without_the_proxy_kms_is_unreachable(workload: Workload) -> None:
    message = workload.seal(picture())
    workload.backend.stop_proxy()
    try:
        assert code_of(workload.detect(message)) == "kms_unreachable"
    finally:
        workload.backend.ensure_services(Progress())
    assert workload.detect(message).status_code == 200
