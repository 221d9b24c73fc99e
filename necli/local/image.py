"""The local target's enclave image, built and read: an EIF whose parts are those of a Python process.

    kernel      JSON that identifies what boots: interpreter and boot code
    cmdline     init=, the module that runs
    ramdisk 0   cpio: distributions.json, the measured third-party distributions
    ramdisk 1   cpio: payload/, model/, trust/ and config.json

Nothing in them depends on a path of this machine, a time or a umask: the same input measures the same.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

from necli import __version__
from necli.backends import BuildSpec, BuiltEif
from necli.eif import EifImage, SectionType, image_metadata, write_eif
from necli.eif.cpio import CpioEntry, folder_entries, unpack_cpio, write_cpio
from necli.errors import InputError, MeasurementMismatch
from necli.home import host_errors, make_private_folder, write_atomically
from necli.local import boot
from necli.local.distributions import MeasuredDistribution, find_drift, required_by
from necli.local.enclave import LISTEN, NSM, PROXY
from necli.sbom import model_component, sbom, sbom_path

_CMDLINE = "init=enclave_payload"
_MAX_KERNEL_BYTES = 1 << 16

_DEFAULT_LIMITS = {
    "max_message_bytes": 64 << 20,
    "max_pixels": 50_000_000,
    "request_timeout_s": 60,
    "concurrency": 2,
    "queue": 16,
    "max_objects": 300,
}
_JUNK = ("__pycache__", "*.pyc", ".DS_Store")
# TensorFlow writes another one each time it saves the same model.
_NOT_THE_MODEL = ("fingerprint.pb", *_JUNK)


def build_local_eif(spec: BuildSpec, path: Path, *, trust_roots_pem: bytes) -> BuiltEif:
    """Write the image to `path`, whole or not at all.

    :raises InputError: payload or model aren't where `spec` says.
    :raises HostError: a distribution that the payload needs isn't installed.
    """
    found = required_by(spec.payload.parent / "pyproject.toml")
    distributions = [MeasuredDistribution.of(distribution) for distribution in found]
    make_private_folder(path.parent)
    with (
        host_errors(f"can't build {path}"),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as work,
    ):
        runtime, application = Path(work) / "runtime.cpio", Path(work) / "application.cpio"
        _write_ramdisk(runtime, _runtime_entries(distributions))
        _write_ramdisk(application, _application_entries(spec, trust_roots_pem))
        measurements = write_eif(
            path,
            kernel=runtime_identity(),
            cmdline=_CMDLINE,
            ramdisks=[runtime, application],
            metadata=_metadata(spec),
            arch=spec.arch,
        )
    packages = [(distribution.name, distribution.version) for distribution in distributions]
    model = model_component(spec.model_name, spec.model_digest)
    version = _payload_version(spec.payload)
    text = sbom("enclave-payload", version, measurements, model=model, packages=packages)
    write_atomically(sbom_path(path), text)
    return BuiltEif(spec.name, path, measurements, path.stat().st_size, len(distributions))


@dataclass(frozen=True)
class LocalImage:
    """An image that was built for the local target."""

    eif: EifImage
    runtime: Mapping[str, str]
    """Interpreter and boot code that it was built with."""
    module: str
    """What it runs."""

    @classmethod
    def of(cls, eif: EifImage) -> Self:
        """:raises InputError: it was built for something else."""
        cmdline = _read(eif, SectionType.CMDLINE).decode(errors="replace")
        runtime = _parse_json(_read(eif, SectionType.KERNEL))
        module = re.fullmatch(r"init=([A-Za-z_][\w.]*)", cmdline)
        if module is None or not isinstance(runtime, dict) or len(eif.ramdisks) != 2:
            raise InputError("the image wasn't built for the local target", hint="build one with necli build")
        return cls(eif, runtime, module[1])

    def unpack(self, root: Path) -> list[MeasuredDistribution]:
        """Unpack it into the empty folder `root`; returns the distributions that belong to it.

        :raises MeasurementMismatch: code `runtime_drift`: this machine has another runtime.
        """
        self._unpack(0, root)
        listing = _parse_json((root / "distributions.json").read_bytes())
        distributions = [MeasuredDistribution.from_json(value) for value in listing or ()]
        here = json.loads(runtime_identity())
        drift = [
            f"{name} is {here[name]}, not {self.runtime.get(name)}"
            for name in here
            if here[name] != self.runtime.get(name)
        ] + find_drift(distributions)
        if drift:
            raise MeasurementMismatch(
                f"this machine has another runtime than the image was built with: {'; '.join(drift)}",
                hint="build it again with necli build, then run necli policy update",
                code="runtime_drift",
            )
        self._unpack(1, root)
        return distributions

    def _unpack(self, index: int, root: Path) -> None:
        with self.eif.open_section(self.eif.ramdisks[index]) as ramdisk:
            unpack_cpio(ramdisk, root)


def _read(eif: EifImage, kind: SectionType) -> bytes:
    with eif.open_section(eif.section(kind)) as section:
        return section.read(_MAX_KERNEL_BYTES)


def _parse_json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


@cache
def runtime_identity() -> bytes:
    """The kernel section for the interpreter that runs this."""
    with open(Path(sys.executable).resolve(), "rb") as interpreter:
        digest = hashlib.file_digest(interpreter, "sha256").hexdigest()
    return _canonical_json(
        {
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
            "machine": platform.machine(),
            "interpreter_sha256": digest,
            "boot_sha256": hashlib.sha256(Path(boot.__file__).read_bytes()).hexdigest(),
        }
    )


def configuration(spec: BuildSpec) -> dict[str, Any]:
    """The payload's config.json."""
    return {
        "schema": 1,
        "version": _payload_version(spec.payload),
        "listen": f"unix:{LISTEN}",
        "nsm": NSM,
        "kms": {
            "client": spec.kms_client,
            "region": spec.region,
            "host": f"kms.{spec.region}.amazonaws.com",
            "address": f"unix:{PROXY}",
            "trust_roots": "trust/kms-ca.pem",
            "timeout_s": 10,
        },
        "key_arn": spec.key_arn,
        "encryption_context": dict(spec.encryption_context),
        "model": {"name": spec.model_name, "path": "model", "digest": spec.model_digest},
        "limits": {**_DEFAULT_LIMITS, **spec.limits},
    }


def _write_ramdisk(path: Path, entries: Sequence[CpioEntry]) -> None:
    with path.open("wb") as file:
        write_cpio(entries, file)


def _runtime_entries(distributions: Sequence[MeasuredDistribution]) -> list[CpioEntry]:
    listing = _canonical_json([distribution.to_json() for distribution in distributions])
    return [CpioEntry("distributions.json", 0o644, listing)]


def _application_entries(spec: BuildSpec, trust_roots_pem: bytes) -> list[CpioEntry]:
    package = spec.payload / "enclave_payload"
    for folder in (package, spec.model):
        if not folder.is_dir():
            raise InputError(f"{folder} isn't a folder", hint="necli model pull")
    return [
        *folder_entries(package, "payload/enclave_payload", exclude=_JUNK),
        *folder_entries(spec.model, "model", exclude=_NOT_THE_MODEL),
        CpioEntry("config.json", 0o644, _canonical_json(configuration(spec))),
        CpioEntry("trust/kms-ca.pem", 0o644, trust_roots_pem),
    ]


def _metadata(spec: BuildSpec) -> dict[str, Any]:
    return image_metadata(
        name=spec.name,
        version=_payload_version(spec.payload),
        build_time=datetime.now(UTC).isoformat(timespec="seconds"),
        build_tool_version=__version__,
        operating_system="Linux",
        kernel_version=f"{platform.python_implementation()} {platform.python_version()}",
        custom={"Target": "local", "Simulated": True, "Model": spec.model_name},
    )


def _payload_version(payload: Path) -> str:
    source = (payload / "enclave_payload" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if match is None:
        raise InputError(f"{payload} has no version", hint="install necli again")
    return match[1]


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
