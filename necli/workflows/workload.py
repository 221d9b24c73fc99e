"""One workload: a key, an enclave image and an enclave, on one target and in one state folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from necli.backends import Backend, EnclaveInfo, Identity
from necli.envelope import CONTEXT
from necli.errors import MeasurementMismatch, NotReady
from necli.home import Home
from necli.keypolicy import KeyPolicy, caller_arns, evaluate
from necli.keypolicy.measurement_set import attested_registers
from necli.keypolicy.simulation import request_of
from necli.measurements import Measurements
from necli.progress import Progress
from necli.state import Build, Key, State

ALIAS = "alias/necli"
ENCLAVE = "necli"
CPUS = 2


@dataclass(frozen=True)
class Workload:
    home: Home
    target: str
    backend: Backend
    progress: Progress
    _clients: dict[Identity, Any] = field(default_factory=dict, repr=False, compare=False)

    def kms(self, identity: Identity) -> Any:
        """The backend's client; one an identity, for it takes a tenth of a second to make.

        :raises ServiceFailed: KMS isn't running.
        """
        if identity not in self._clients:
            self._clients[identity] = self.backend.kms(identity)
        return self._clients[identity]

    @property
    def state(self) -> State:
        return State.load(self.home, self.target)

    def update_state(self, change: Callable[[State], State]) -> None:
        change(self.state).save(self.home, self.target)

    def key(self) -> Key:
        """:raises NotReady: there is none yet."""
        if key := self.state.key:
            return key
        raise NotReady("there is no key yet", hint="run necli setup, or necli up for everything at once")

    def build(self) -> Build:
        """The last build, as it was recorded.

        :raises NotReady: nothing is built, or its file is gone.
        """
        build = self.state.build
        if build is None:
            raise NotReady("nothing is built yet", hint="run necli build, or necli up for everything at once")
        if not build.path.is_file():
            raise NotReady(f"the built image {build.path} is gone", hint="run necli build")
        return build

    def measured_build(self) -> Build:
        """The last build, after measuring its file again.

        :raises MeasurementMismatch: the file was changed since it was built.
        """
        from necli.eif import InvalidEif, read_eif

        build = self.build()
        try:
            measurements, reason = read_eif(build.path).measurements, "it measures differently"
        except InvalidEif as exc:
            measurements, reason = None, exc.message
        if measurements != build.measurements:
            raise MeasurementMismatch(
                f"{build.path} was changed after it was built: {reason}",
                hint="run necli build",
                code="eif_changed",
            )
        return build

    def running_enclave(self, name: str) -> EnclaveInfo:
        """:raises NotReady: it isn't running."""
        enclave = self.backend.enclave(name)
        if enclave.state != "RUNNING":
            reason = f": {enclave.exit_reason}" if enclave.exit_reason else ""
            raise NotReady(f"the enclave {name} is not running{reason}", hint="run necli up")
        return enclave

    def policy_allows(self, policy: KeyPolicy, measurements: Measurements, key_arn: str) -> bool:
        """Whether KMS lets an enclave that attests these measurements decrypt for the parent."""
        parent = self.backend.parent_arn
        attested = attested_registers(measurements, caller_arns(parent)[-1])
        context = {f"kms:EncryptionContext:{name}": value for name, value in self.required_context().items()}
        return evaluate(policy, request_of(parent, "kms:Decrypt", key_arn, attested, context)).allowed

    def required_context(self) -> Mapping[str, str]:
        """What the built enclave asks for; before there is one, what it will ask for by default."""
        build = self.state.build
        return build.encryption_context if build else CONTEXT
