"""`necli attest`: a document from a running enclave, as whoever connects to it can have one."""

from __future__ import annotations

import base64
import hashlib

from necli.errors import ServiceFailed
from necli.workflows.workload import Workload

_DOMAIN = b"necli:attest:v1\0"


def attested_user_data(user_data: bytes) -> bytes:
    """What the enclave attests for user data from outside: its digest, which can't pass for a receipt's."""
    return hashlib.sha384(_DOMAIN + user_data).digest()


def fetch_document(workload: Workload, name: str, *, nonce: bytes, user_data: bytes) -> bytes:
    """A new document; nothing of it is verified.

    :raises NotReady: the enclave isn't running.
    :raises ServiceFailed: it can't be reached or doesn't attest.
    """
    fields = {"nonce": nonce, "user_data": user_data}
    body = {name: base64.b64encode(value).decode() for name, value in fields.items()}
    with workload.backend.connect(name) as client:
        response = client.post("/attest", json=body)
    try:
        if response.status_code != 200:
            raise ServiceFailed(
                f"the enclave says: {response.json()['error']['message']}",
                hint="look at necli status",
                code=response.json()["error"]["code"],
            )
        return base64.b64decode(response.json()["document"], validate=True)
    except (KeyError, TypeError, ValueError) as exc:
        raise ServiceFailed("the enclave gave an answer that can't be read", hint="run necli up") from exc
