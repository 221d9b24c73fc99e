"""Makes the images here anew, with AWS's own code; needs eif-tool (tests/conformance/install-eif-tools.sh).

`unsigned.eif` and `signed.eif` are what nitro-cli assembles and signs; the JSON beside each is what
`nitro-cli describe-eif` prints of it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.eif.eif_images import CMDLINE, KERNEL, METADATA, RAMDISK, SECTIONS

HERE = Path(__file__).parent


def eif_tool(*arguments: str | Path) -> str:
    return subprocess.run(
        ["eif-tool", *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    content: dict[int, list[bytes]] = {}
    for kind, data in SECTIONS:
        content.setdefault(kind, []).append(data)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "kernel").write_bytes(content[KERNEL][0])
        (work / "metadata").write_bytes(content[METADATA][0])
        ramdisks = [work / f"ramdisk{index}" for index in range(len(content[RAMDISK]))]
        for path, data in zip(ramdisks, content[RAMDISK], strict=True):
            path.write_bytes(data)
        cmdline = content[CMDLINE][0].decode()
        unsigned, signed = HERE / "unsigned.eif", HERE / "signed.eif"
        eif_tool("build", work / "kernel", cmdline, work / "metadata", unsigned, *ramdisks)
        shutil.copy(unsigned, signed)
        make_signer(work)
        eif_tool("sign", signed, work / "signer.key", work / "signer.crt")
    for path in (unsigned, signed):
        path.with_suffix(".json").write_text(eif_tool("describe", path), encoding="utf-8")


def make_signer(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Berlin"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "necli's tests"),
            x509.NameAttribute(NameOID.COMMON_NAME, "a signer of images"),
        ]
    )
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, start, start + timedelta(days=36500))
    certificate = builder.sign(key, hashes.SHA384())
    (folder / "signer.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "signer.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )


if __name__ == "__main__":
    main()
