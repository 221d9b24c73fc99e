"""A configuration as the build bakes it."""

from __future__ import annotations

from typing import Any

from tests.payload.stand_in_kms import CONTEXT, KEY_ARN


def baked_config(**limits: int) -> dict[str, Any]:
    return {
        "schema": 1,
        "version": "0.1.0",
        "listen": "vsock:5005",
        "nsm": "/dev/nsm",
        "kms": {
            "client": "native",
            "region": "eu-central-1",
            "host": "kms.eu-central-1.amazonaws.com",
            "address": "vsock:3:8000",
            "trust_roots": "trust/kms-ca.pem",
            "timeout_s": 10,
            "kmstool": "/app/kmstool_enclave_cli",
        },
        "key_arn": KEY_ARN,
        "encryption_context": dict(CONTEXT),
        "model": {"name": "m", "path": "model", "digest": "ab" * 48},
        "limits": {
            "max_message_bytes": 67108864,
            "max_pixels": 50000000,
            "request_timeout_s": 60,
            "concurrency": 2,
            "queue": 16,
            "max_objects": 300,
            **limits,
        },
    }
