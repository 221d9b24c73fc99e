"""What there is, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from necli import kms
from necli.backends import EnclaveInfo, ServiceStatus
from necli.errors import NecliError
from necli.state import Build, Key
from necli.workflows.workload import Workload


@dataclass(frozen=True)
class Status:
    target: str
    simulated: bool
    services: Sequence[ServiceStatus]
    key: Key | None
    build: Build | None
    policy: str
    """`bound`, `not bound` to the build, or `unknown` with the reason."""
    enclaves: Sequence[EnclaveInfo]

    @property
    def ready(self) -> bool:
        """Whether `necli detect` would work."""
        return self.policy == "bound" and any(
            e.state == "RUNNING" and not e.debug and self.build and e.measurements == self.build.measurements
            for e in self.enclaves
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "simulated": self.simulated,
            "ready": self.ready,
            "services": [
                {"name": s.name, "running": s.running, "pid": s.pid, "address": s.address}
                for s in self.services
            ],
            "key": {"arn": self.key.arn, "alias": self.key.alias} if self.key else None,
            "build": self.build.to_json() if self.build else None,
            "policy": self.policy,
            "enclaves": [enclave.to_json() for enclave in self.enclaves],
        }


def read_status(workload: Workload) -> Status:
    state = workload.state
    return Status(
        target=workload.target,
        simulated=workload.backend.simulated,
        services=workload.backend.services(),
        key=state.key,
        build=state.build,
        policy=_policy(workload, state.key, state.build),
        enclaves=workload.backend.enclaves(),
    )


def _policy(workload: Workload, key: Key | None, build: Build | None) -> str:
    if key is None or build is None:
        return "not bound"
    try:
        policy = kms.read_policy(workload.kms("administrator"), key.arn)
    except NecliError as exc:
        return f"unknown: {exc.message}"
    return "bound" if workload.policy_allows(policy, build.measurements, key.arn) else "not bound"
