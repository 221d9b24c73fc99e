"""`python -m tests.fuzz.make_corpus` makes the kept seeds anew.

Inputs that once broke something are added to them by hand.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from datetime import timedelta

import cbor2
import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image

from necli.eif.cpio import CpioEntry, write_cpio
from necli.keypolicy import initial_policy
from necli.local.cms import seal_enveloped_data
from necli.local.nsm import sign_document
from necli.local.pki import AttestationChain, CertifiedKey
from tests.eif.eif_images import image
from tests.fuzz.targets import CORPUS, DOCUMENT_TIME
from tests.payload.stand_in_server import small_png

_HOUR = timedelta(hours=1)


def eif() -> Iterator[tuple[str, bytes]]:
    yield "plain.eif", image()
    signed = CORPUS.parents[1] / "eif" / "assets" / "signed.eif"
    yield "signed.eif", signed.read_bytes()


def cpio() -> Iterator[tuple[str, bytes]]:
    out = io.BytesIO()
    folder, file = CpioEntry("a", 0o040755, b""), CpioEntry("a/b", 0o644, b"content")
    write_cpio([folder, file, CpioEntry("c", 0o755, b"")], out)
    yield "small.cpio", out.getvalue()


def attestation_document() -> bytes:
    issuers = [CertifiedKey.self_signed("root", start=DOCUMENT_TIME - 24 * _HOUR, life=timedelta(days=100))]
    for path_length in (2, 1, 0):
        issuers.append(
            issuers[-1].issue_ca(
                "CA", start=DOCUMENT_TIME - _HOUR, life=timedelta(days=1), path_length=path_length
            )
        )
    leaf = issuers[-1].issue_attestation_leaf("leaf", start=DOCUMENT_TIME - _HOUR, life=3 * _HOUR)
    signer = AttestationChain(leaf, tuple(issuers))
    payload = {
        "module_id": "i-0-enc0",
        "digest": "SHA384",
        "timestamp": int(DOCUMENT_TIME.timestamp() * 1000),
        "pcrs": {index: bytes([index + 1]) * 48 for index in range(16)},
        "certificate": signer.leaf.der,
        "cabundle": signer.cabundle,
        "public_key": b"key",
        "user_data": b"data",
        "nonce": b"nonce",
    }
    return sign_document(cbor2.dumps(payload), signer.leaf)


def receipt(document: bytes) -> Iterator[tuple[str, bytes]]:
    answer = {
        "schema": 1,
        "input_digest": "00",
        "objects": [{"name": "cat", "score": 0.5, "box": [0, 0, 1, 1]}],
    }
    text = {"document": base64.b64encode(document).decode(), "nonce": "bm9uY2U=", "answer": answer}
    yield "receipt.json", json.dumps(text).encode()
    yield "results.json", json.dumps({"results": [{"file": "a.jpg", "receipt": text}]}).encode()


def cms() -> Iterator[tuple[str, bytes]]:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (CORPUS / "recipient-key.pem").write_bytes(pem)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    yield "sealed.ber", seal_enveloped_data(bytes(range(32)), public)


def policy() -> Iterator[tuple[str, bytes]]:
    roles = {f"{who}_arn": f"arn:aws:iam::111122223333:role/{who}" for who in ("admin", "parent", "owner")}
    yield "initial.json", initial_policy(**roles, account="111122223333").to_text().encode()


def pictures() -> Iterator[tuple[str, bytes]]:
    gradient = np.add.outer(np.arange(24) * 5, np.arange(32) * 4).astype(np.uint8)
    colours = Image.fromarray(np.dstack([gradient, gradient.T.reshape(24, 32), 255 - gradient]))
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = colours.copy()
    alpha.putalpha(128)
    wide = Image.fromarray(gradient.astype(np.uint16) << 8)
    yield from (
        (name, _encoded(picture, **options))
        for name, picture, options in (
            ("baseline.jpg", colours, {"format": "JPEG", "exif": exif}),
            ("progressive.jpg", colours, {"format": "JPEG", "progressive": True}),
            ("cmyk.jpg", colours.convert("CMYK"), {"format": "JPEG"}),
            ("rgb.png", colours, {"format": "PNG"}),
            ("palette.png", colours.quantize(16), {"format": "PNG", "transparency": 0}),
            ("alpha.png", alpha, {"format": "PNG"}),
            ("grey16.png", wide, {"format": "PNG"}),
            (
                "moving.png",
                colours,
                {"format": "PNG", "save_all": True, "append_images": [alpha.convert("RGB")]},
            ),
            ("lossy.webp", colours, {"format": "WEBP"}),
            ("lossless.webp", alpha, {"format": "WEBP", "lossless": True}),
            ("moving.webp", colours, {"format": "WEBP", "save_all": True, "append_images": [alpha]}),
        )
    )


def _encoded(picture: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, **options)  # type: ignore[arg-type]
    return out.getvalue()


def http() -> Iterator[tuple[str, bytes]]:
    png = small_png()
    credentials = "x-aws-access-key-id: ASIAEXAMPLE\r\nx-aws-secret-access-key: secret\r\n"
    detect = f"POST /detect?min_score=0.4 HTTP/1.1\r\nhost: e\r\n{credentials}x-necli-nonce: bm9uY2U\r\n"
    attest = b'{"nonce": "bm9uY2U=", "user_data": "eA=="}'
    yield "health", b"GET /health HTTP/1.1\r\nhost: e\r\nx-request-id: 7\r\n\r\n"
    yield "detect", f"{detect}content-length: {len(png)}\r\n\r\n".encode() + png
    yield (
        "chunked",
        f"{detect}transfer-encoding: chunked\r\n\r\n{len(png):x}\r\n".encode() + png + b"\r\n0\r\n\r\n",
    )
    yield (
        "attest",
        f"POST /attest HTTP/1.1\r\nhost: e\r\ncontent-length: {len(attest)}\r\n\r\n".encode() + attest,
    )


def main() -> None:
    document = attestation_document()
    CORPUS.mkdir(exist_ok=True)
    for name, made in {
        "eif": eif(),
        "cpio": cpio(),
        "attestation": iter([("simulated.cose", document)]),
        "receipt": receipt(document),
        "cms": cms(),
        "policy": policy(),
        "image": pictures(),
        "http": http(),
    }.items():
        (CORPUS / name).mkdir(exist_ok=True)
        for file, content in made:
            (CORPUS / name / file).write_bytes(content)


if __name__ == "__main__":
    main()
