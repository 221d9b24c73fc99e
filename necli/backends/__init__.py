"""What a target offers: its services, KMS as each identity, and enclaves from image to console."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from necli.errors import UsageError
from necli.home import Home
from necli.measurements import Measurements
from necli.progress import Progress

if TYPE_CHECKING:
    import httpx

    from necli.attestation import TrustedRoot
    from necli.nitro.nitro_cli import Signing

Identity = Literal["administrator", "parent", "owner"]
"""Who talks to KMS: the key's administrator, the parent instance's role, the data's owner."""


@dataclass(frozen=True)
class Credentials:
    """AWS credentials of one identity; a secret never shows in `repr`."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class BuildSpec:
    """Everything that decides an enclave image's measurements, besides the runtime it is built with."""

    name: str
    model: Path
    """A SavedModel folder."""
    model_name: str
    model_digest: str
    """SHA-384 in hex, as `necli.models` computes it."""
    payload: Path
    """The folder that holds the package `enclave_payload`."""
    key_arn: str
    region: str
    encryption_context: Mapping[str, str]
    kms_client: Literal["native", "kmstool"] = "native"
    trust_roots_pem: bytes | None = None
    """CAs that KMS's certificate must chain to; None: those of the target's own KMS."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Overrides of the payload's default limits, by the names of its configuration."""
    arch: Literal["x86_64", "aarch64"] = "x86_64"
    base_image: str | None = None
    """The Docker image that brings Python 3.11, by digest; the local target has no use for one."""
    signing: Signing | None = None
    fresh: bool = False
    """Take nothing from a cache: whether two builds measure the same is the question."""


@dataclass(frozen=True)
class BuiltEif:
    """An enclave image on disk and what it measures."""

    name: str
    path: Path
    measurements: Measurements
    size: int
    distributions: int
    """How many third-party distributions are measured into it."""


@dataclass(frozen=True)
class EnclaveInfo:
    """One enclave; `to_json` speaks nitro-cli's describe-enclaves, then adds what only necli knows."""

    name: str
    enclave_id: str
    cid: int
    state: Literal["STARTING", "RUNNING", "TERMINATING", "TERMINATED"]
    process_id: int | None
    cpu_ids: Sequence[int]
    memory_mib: int
    debug: bool
    measurements: Measurements
    """What the image measures; in debug mode the enclave attests zeros all the same."""
    eif: Path | None
    """None for one that something else than necli started."""
    simulated: bool
    network_isolated: bool | None = None
    memory_limit: str | None = None
    """What enforces the memory limit, in words."""
    started_at: datetime | None = None
    ready_after_s: float | None = None
    exit_reason: str | None = None
    """Why it isn't running any more, for one that stopped by itself."""

    def to_json(self) -> dict[str, Any]:
        return {
            "EnclaveName": self.name,
            "EnclaveID": self.enclave_id,
            "ProcessID": self.process_id,
            "EnclaveCID": self.cid,
            "NumberOfCPUs": len(self.cpu_ids),
            "CPUIDs": list(self.cpu_ids),
            "MemoryMiB": self.memory_mib,
            "State": self.state,
            "Flags": "DEBUG_MODE" if self.debug else "NONE",
            "Measurements": self.measurements.to_json(),
            "Simulated": self.simulated,
            "EifPath": str(self.eif) if self.eif else None,
            "NetworkIsolated": self.network_isolated,
            "MemoryLimit": self.memory_limit,
            "StartedAt": self.started_at.isoformat() if self.started_at else None,
            "ReadyAfterSeconds": self.ready_after_s,
            "ExitReason": self.exit_reason,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EnclaveInfo:
        """Read what `to_json` made."""
        started_at = value["StartedAt"]
        return cls(
            name=value["EnclaveName"],
            enclave_id=value["EnclaveID"],
            cid=value["EnclaveCID"],
            state=value["State"],
            process_id=value["ProcessID"],
            cpu_ids=tuple(value["CPUIDs"]),
            memory_mib=value["MemoryMiB"],
            debug=value["Flags"] == "DEBUG_MODE",
            measurements=Measurements.from_json(value["Measurements"]),
            eif=Path(value["EifPath"]) if value["EifPath"] else None,
            simulated=value["Simulated"],
            network_isolated=value["NetworkIsolated"],
            memory_limit=value["MemoryLimit"],
            started_at=datetime.fromisoformat(started_at) if started_at else None,
            ready_after_s=value["ReadyAfterSeconds"],
            exit_reason=value["ExitReason"],
        )


@dataclass(frozen=True)
class ServiceStatus:
    """A service of necli's own on this machine: the local KMS, the parent's proxy."""

    name: str
    running: bool
    pid: int | None = None
    address: str | None = None
    log: Path | None = None
    last_error: str | None = None


class Backend(ABC):
    """A target. Methods raise NecliError children; none of them prints."""

    simulated: bool
    """True where nothing protects the enclave from the host. Whatever shows a result shows this too."""

    region: str

    @abstractmethod
    def ensure_services(self, progress: Progress) -> None:
        """Start what isn't running of KMS and proxy; nothing happens to what runs."""

    @abstractmethod
    def stop_services(self) -> None: ...

    @abstractmethod
    def stop_proxy(self) -> None: ...

    @abstractmethod
    def services(self) -> list[ServiceStatus]:
        """The proxy, and the KMS where it is necli's own: named `proxy` and `kms`."""

    @abstractmethod
    def kms(self, identity: Identity) -> Any:
        """A boto3 KMS client that signs as `identity`, whatever the caller's environment says.

        :raises ServiceFailed: KMS can't be reached.
        """

    @abstractmethod
    def arn(self, identity: Identity) -> str: ...

    @abstractmethod
    def credentials_for_enclave(self) -> Credentials:
        """The parent's own: what it passes to the enclave with a request."""

    def expired_credentials(self) -> Credentials | None:
        """A session of the parent's that is over; None where none can be had."""
        return None

    def document_of_another_enclave(
        self, pcrs: Mapping[int, bytes], *, public_key: bytes, made_at: datetime
    ) -> bytes | None:
        """What the platform signs for an enclave of the parent's own that measures `pcrs`.

        None where only such an enclave could have it, which is so wherever nothing is simulated.
        """
        return None

    @abstractmethod
    def build_eif(self, spec: BuildSpec, progress: Progress) -> BuiltEif: ...

    @abstractmethod
    def memory_for(self, eif: Path) -> int:
        """How many MiB an enclave of this image is best given."""

    @abstractmethod
    def run_enclave(
        self, name: str, eif: Path, *, memory_mib: int, cpus: int, debug: bool, progress: Progress
    ) -> EnclaveInfo:
        """Boot and wait until the payload itself says ready.

        :raises Conflict: an enclave of that name runs or another command is at work on it.
        :raises MeasurementMismatch: code `runtime_drift`: the runtime isn't the measured one.
        :raises ServiceFailed: it ended, or wasn't ready in time; the message says why.
        """

    @abstractmethod
    def stop_enclave(self, name: str) -> None: ...

    @abstractmethod
    def enclave(self, name: str) -> EnclaveInfo:
        """:raises NotReady: there is none of that name."""

    @abstractmethod
    def enclaves(self) -> list[EnclaveInfo]: ...

    @abstractmethod
    def console(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """The lines of a debug-mode enclave's console.

        :raises NotReady: it isn't in debug mode: a production enclave has no console.
        """

    @abstractmethod
    def connect(self, name: str) -> httpx.Client:
        """A client of the payload's HTTP API, over the enclave's socket.

        :raises NotReady: it isn't running.
        """

    @abstractmethod
    def attestation_roots(self) -> list[TrustedRoot]: ...

    def service(self, name: str) -> ServiceStatus:
        return next(service for service in self.services() if service.name == name)

    @property
    def administrator_arn(self) -> str:
        return self.arn("administrator")

    @property
    def parent_arn(self) -> str:
        return self.arn("parent")

    @property
    def owner_arn(self) -> str:
        return self.arn("owner")


def open_backend(target: str, home: Home, region: str) -> Backend:
    """:raises UsageError: no such target."""
    if target == "local":
        from necli.backends.local import LocalBackend

        return LocalBackend(home, region)
    if target == "nitro":
        from necli.backends.nitro import NitroBackend

        return NitroBackend(home, region)
    raise UsageError(f"there is no target {target!r}", hint="use --target local")
