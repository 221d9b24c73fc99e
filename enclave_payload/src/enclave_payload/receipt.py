"""What an attestation document of this enclave vouches for.

`user_data` of every document is a SHA-384 over a domain and a body, so that nobody can have the enclave
attest text of his own choice (`POST /attest`) that would pass for the receipt of an answer:

    receipt      SHA-384("necli:receipt:v1" 00 || canonical JSON of the answer)
    sealed       SHA-384("necli:sealed:v1" 00 || the sealed answer): a digest of the answer itself would let
                 the parent check its guesses
    attestation  SHA-384("necli:attest:v1" 00 || user data of the request)

Canonical JSON has sorted keys, no white space, UTF-8, and floats that were rounded to six digits beforehand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

RECEIPT_DOMAIN: Final = b"necli:receipt:v1\0"
SEALED_DOMAIN: Final = b"necli:sealed:v1\0"
ATTESTATION_DOMAIN: Final = b"necli:attest:v1\0"


def canonical_json(value: object) -> bytes:
    """The one encoding that both ends hash. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def six_digits(value: float) -> float:
    return round(float(value), 6)


def receipt_user_data(answer: Mapping[str, object]) -> bytes:
    return hashlib.sha384(RECEIPT_DOMAIN + canonical_json(answer)).digest()


def sealed_user_data(sealed: bytes) -> bytes:
    return hashlib.sha384(SEALED_DOMAIN + sealed).digest()


def attestation_user_data(user_data: bytes) -> bytes:
    return hashlib.sha384(ATTESTATION_DOMAIN + user_data).digest()
