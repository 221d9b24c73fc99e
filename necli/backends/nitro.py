"""The nitro target: nitro-cli, vsock, AWS's KMS, and the roles that the stack made.

Not exercised on Nitro: the tests run it on a nitro-cli that replays recorded answers, and against moto.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necli.backends import (
    Backend,
    BuildSpec,
    BuiltEif,
    Credentials,
    EnclaveInfo,
    Identity,
    ServiceStatus,
)
from necli.errors import Conflict, HostError, NecliError, NotReady, ServiceFailed
from necli.home import Home, make_private_folder, read_json, write_json_atomically
from necli.nitro.nitro_cli import NitroCli, NitroEnclave
from necli.progress import Progress
from necli.sockets import UnixAddress, VsockAddress
from necli.stacks import StackOutputs, StackRecord

if TYPE_CHECKING:
    import httpx

    from necli.attestation import TrustedRoot
    from necli.nitro.proxy import NitroProxy
    from necli.nitro.session import EnclaveSessions

PORT = 5005
"""Where the payload listens, on its enclave's own CID."""
READY_TIMEOUT_S = 300.0
_QUIET_S = 1.0
_START_HINT = "start it with necli enclave run, or necli up for everything"
_CONSOLE_HINT = "include --debug-mode in necli enclave run: it attests zeros then, and KMS refuses it"

Address = VsockAddress | UnixAddress


def vsock_of(cid: int) -> Address:
    return VsockAddress(cid, PORT)


@dataclass(frozen=True)
class Platform:
    """What the target uses of its machine, besides KMS."""

    nitro_cli: NitroCli = field(default_factory=NitroCli)
    address_of: Callable[[int], Address] = vsock_of
    """Where the payload of the enclave with this CID listens."""
    threads_per_core: int = 1
    page_mib: int = 2


class NitroBackend(Backend):
    simulated = False

    def __init__(self, home: Home, region: str, platform: Platform | None = None) -> None:
        self.home = home
        self.region = region
        self._platform = platform or platform_of_this_machine()

    def ensure_services(self, progress: Progress) -> None:
        self._proxy.start(progress)

    def stop_services(self) -> None:
        self._proxy.stop()

    def stop_proxy(self) -> None:
        self._proxy.stop()

    def services(self) -> list[ServiceStatus]:
        return [self._proxy.status()]

    def kms(self, identity: Identity) -> Any:
        """Administrator and owner sign with the environment's credentials, as the AWS CLI finds them."""
        from necli.aws import open_client

        if identity != "parent":
            return open_client("kms", self.region)
        import boto3

        session = self.credentials_for_enclave()
        return boto3.client(
            "kms",
            region_name=self.region,
            aws_access_key_id=session.access_key_id,
            aws_secret_access_key=session.secret_access_key,
            aws_session_token=session.session_token,
        )

    def arn(self, identity: Identity) -> str:
        outputs = self._outputs
        return {
            "administrator": outputs.administrator_arn,
            "parent": outputs.enclave_role_arn,
            "owner": outputs.data_owner_arn,
        }[identity]

    def credentials_for_enclave(self) -> Credentials:
        return self._sessions.credentials()

    def build_eif(self, spec: BuildSpec, progress: Progress) -> BuiltEif:
        from necli.nitro.building import BuildTools, build_nitro_eif

        tools = BuildTools(self.home.cache / "wheels", self._platform.nitro_cli)
        return build_nitro_eif(spec, self.home.builds / f"{spec.name}.eif", tools, progress)

    def memory_for(self, eif: Path) -> int:
        from necli.nitro.memory import advised_memory_mib

        return advised_memory_mib(eif, page_mib=self._platform.page_mib)

    def run_enclave(
        self, name: str, eif: Path, *, memory_mib: int, cpus: int, debug: bool, progress: Progress
    ) -> EnclaveInfo:
        from necli.nitro.memory import check_cpus, check_memory

        check_memory(eif, memory_mib)
        check_cpus(cpus, self._platform.threads_per_core)
        if any(enclave.name == name for enclave in self._running()):
            raise Conflict(f"an enclave {name} is running", hint=f"stop it first: necli enclave stop {name}")
        started_at = datetime.now(UTC)
        with progress.step("Enclave") as step:
            made = self._platform.nitro_cli.run_enclave(
                name, eif.absolute(), memory_mib=memory_mib, cpus=cpus, debug=debug
            )
            record = {"id": made.enclave_id, "eif": str(eif.absolute()), "at": started_at.isoformat()}
            write_json_atomically(self._record(name), record)
            self._await_ready(name, made)
            ready_after = (datetime.now(UTC) - started_at).total_seconds()
            write_json_atomically(self._record(name), {**record, "ready_after_s": ready_after})
            step.note(f"{name} ready, CID {made.cid}, {made.memory_mib} MiB, {len(made.cpu_ids)} CPUs")
        return self.enclave(name)

    def stop_enclave(self, name: str) -> None:
        enclave = self._find(name)
        if not self._platform.nitro_cli.terminate_enclave(enclave.enclave_id):
            raise ServiceFailed(
                f"nitro-cli could not end the enclave {name}", hint="look at necli enclave list, try again"
            )
        self._record(name).unlink(missing_ok=True)

    def enclave(self, name: str) -> EnclaveInfo:
        return self._info(self._find(name))

    def enclaves(self) -> list[EnclaveInfo]:
        return [self._info(enclave) for enclave in self._running()]

    def console(self, name: str, *, follow: bool = False) -> Iterator[str]:
        enclave = self._find(name)
        if not enclave.debug:
            raise NotReady(
                f"the enclave {name} was not started with the debug flag set", hint=_CONSOLE_HINT, code="E44"
            )
        return _console(self._platform.nitro_cli.console_argv(enclave.enclave_id), follow=follow)

    def connect(self, name: str) -> httpx.Client:
        from necli.transport import enclave_client

        return enclave_client(self._platform.address_of(self._find(name).cid), name=name)

    def attestation_roots(self) -> list[TrustedRoot]:
        from necli.attestation import NITRO_ROOT

        return [NITRO_ROOT]

    @property
    def _outputs(self) -> StackOutputs:
        record = StackRecord.load(self.home)
        if record is None:
            raise NotReady(
                "it isn't known which stack this is: no roles, no key",
                hint="give what necli stack outputs --json prints: necli setup --outputs FILE",
                code="stack_unknown",
            )
        return record.outputs

    @cached_property
    def _sessions(self) -> EnclaveSessions:
        from necli.aws import open_client
        from necli.nitro.session import EnclaveSessions

        outputs = self._outputs
        return EnclaveSessions(open_client("sts", self.region), outputs.enclave_role_arn, outputs.key_arn)

    @cached_property
    def _proxy(self) -> NitroProxy:
        from necli.nitro.proxy import NitroProxy

        return NitroProxy(self.home.proxy, self.region)

    def _record(self, name: str) -> Path:
        return make_private_folder(self.home.enclaves) / f"{name}.json"

    def _running(self) -> list[NitroEnclave]:
        return self._platform.nitro_cli.describe_enclaves()

    def _find(self, name: str) -> NitroEnclave:
        for enclave in self._running():
            if enclave.name == name:
                return enclave
        raise NotReady(f"there is no enclave {name}", hint=_START_HINT)

    def _info(self, enclave: NitroEnclave) -> EnclaveInfo:
        name = enclave.name or enclave.enclave_id
        if enclave.measurements is None:
            raise HostError(
                f"this nitro-cli doesn't say what the enclave {name} measures",
                hint="update aws-nitro-enclaves-cli: necli setup",
            )
        record = read_json(self._record(name)) or {}
        if record.get("id") != enclave.enclave_id:
            record = {}
        return EnclaveInfo(
            name=name,
            enclave_id=enclave.enclave_id,
            cid=enclave.cid,
            state="RUNNING" if enclave.state == "RUNNING" else "TERMINATING",
            process_id=enclave.process_id,
            cpu_ids=enclave.cpu_ids,
            memory_mib=enclave.memory_mib,
            debug=enclave.debug,
            measurements=enclave.measurements,
            eif=Path(record["eif"]) if record else None,
            simulated=False,
            network_isolated=True,
            memory_limit="huge pages of its own",
            started_at=datetime.fromisoformat(record["at"]) if record else None,
            ready_after_s=record.get("ready_after_s"),
        )

    def _await_ready(self, name: str, enclave: NitroEnclave) -> None:
        """Ask the payload itself; one that can't work is ended, for it would keep its memory.

        Not so in debug mode, where its console says why.
        """
        try:
            self._ask_until_ready(name, enclave)
        except BaseException:
            if not enclave.debug:
                with suppress(NecliError):
                    self._platform.nitro_cli.terminate_enclave(enclave.enclave_id)
                self._record(name).unlink(missing_ok=True)
            raise

    def _ask_until_ready(self, name: str, enclave: NitroEnclave) -> None:
        from necli.transport import enclave_client

        deadline = time.monotonic() + READY_TIMEOUT_S
        hint = "run it with --debug-mode and look with necli enclave console"
        with enclave_client(self._platform.address_of(enclave.cid), name=name) as client:
            while time.monotonic() < deadline:
                health: dict[str, Any] = {}
                with suppress(NotReady, ServiceFailed):
                    health = client.get("/health").json()
                if health.get("status") == "ready":
                    return
                if health.get("status") == "failed":
                    reason = health.get("reason")
                    raise ServiceFailed(f"the enclave {name} can't work: {reason}", hint=hint)
                if all(other.enclave_id != enclave.enclave_id for other in self._running()):
                    raise ServiceFailed(f"the enclave {name} ended before it was ready", hint=hint)
                time.sleep(0.5)
        raise ServiceFailed(
            f"the enclave {name} wasn't ready within {READY_TIMEOUT_S:g} s", hint=hint, code="timeout"
        )


def _console(argv: list[str], *, follow: bool) -> Iterator[str]:
    """Until the enclave ends; where nobody wants to wait, until it is quiet."""
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    except OSError as exc:
        raise HostError(f"{argv[0]} can't be run: {exc.strerror}", hint="run necli setup") from exc
    assert process.stdout is not None
    rest = b""
    try:
        while follow or select.select([process.stdout], [], [], _QUIET_S)[0]:
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
        if rest:
            yield rest.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def platform_of_this_machine() -> Platform:
    from necli.nitro.hugepages import HugePages, threads_per_core

    root = Path("/")
    return Platform(threads_per_core=threads_per_core(root), page_mib=HugePages.read(root).smallest_page_mib)
