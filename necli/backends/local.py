"""The local target: everything that Nitro and AWS do, played by processes of this user on this machine."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from necli.errors import Conflict, NotReady, ServiceFailed, UsageError
from necli.home import Home, host_errors, make_private_folder, read_json, write_json_atomically
from necli.process import Daemon, open_lock
from necli.progress import Progress

if TYPE_CHECKING:
    from datetime import datetime

    import httpx

    from necli.attestation import TrustedRoot
    from necli.local.enclave import LocalEnclave
    from necli.local.identities import Identities
    from necli.local.identities import Identity as LocalIdentity
    from necli.local.pki import LocalPki

READY_TIMEOUT_S = 180.0
MEMORY_MIB = 3072
"""TensorFlow with the embedded model peaks at 1.3 GiB on a large photo."""
_ENDPOINT_PORT = 443
_START_HINT = "start it with necli enclave run, or necli up for everything"
# botocore's session variables: name in the file, name in the environment, default, conversion.
_UNSET = (None, None, None, None)
_NO_FILE = (None, None, os.devnull, None)


@dataclass(frozen=True)
class KmsEndpoint:
    """Where the local KMS listens; the port stays the same as long as nobody else takes it."""

    port: int

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @classmethod
    def load(cls, home: Home) -> KmsEndpoint | None:
        value = read_json(home.kms / "endpoint.json")
        return cls(int(value["port"])) if isinstance(value, dict) else None

    @classmethod
    def choose(cls, home: Home) -> KmsEndpoint:
        """A free port, remembered."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            endpoint = cls(probe.getsockname()[1])
        write_json_atomically(home.kms / "endpoint.json", {"port": endpoint.port})
        return endpoint

    @property
    def is_free(self) -> bool:
        with suppress(OSError), socket.create_server(("127.0.0.1", self.port)):
            return True
        return False


class LocalBackend(Backend):
    simulated = True

    def __init__(self, home: Home, region: str) -> None:
        self.home = home
        self.region = region

    def ensure_services(self, progress: Progress) -> None:
        with self._services_lock():
            with progress.step("Local KMS") as step:
                endpoint = self._ensure_kms()
                step.note(endpoint.url)
            with progress.step("Proxy") as step:
                self._ensure_proxy(endpoint)
                step.note(f"allows {self._kms_host}:{_ENDPOINT_PORT} only")

    def stop_services(self) -> None:
        with self._services_lock():
            self._proxy.stop()
            self._kms.stop()

    def stop_proxy(self) -> None:
        self._proxy.stop()

    def services(self) -> list[ServiceStatus]:
        endpoint = KmsEndpoint.load(self.home)
        status = self._proxy_status()
        return [
            ServiceStatus(
                "kms",
                running=self._kms.pid is not None,
                pid=self._kms.pid,
                address=endpoint.url if endpoint else None,
                log=self._kms.log,
            ),
            ServiceStatus(
                "proxy",
                running=self._proxy.pid is not None,
                pid=self._proxy.pid,
                address=status.get("remote"),
                log=self._proxy.log,
                last_error=status.get("last_error"),
            ),
        ]

    def kms(self, identity: Identity) -> Any:
        import botocore.config
        import botocore.session

        endpoint = KmsEndpoint.load(self.home)
        if endpoint is None or self._kms.pid is None:
            raise ServiceFailed("the local KMS isn't running", hint="run necli setup", code="kms_unreachable")
        # What the user's own AWS settings say must not matter here.
        session = botocore.session.Session(
            {"profile": _UNSET, "config_file": _NO_FILE, "credentials_file": _NO_FILE}
        )
        credentials = getattr(self._identities, identity).credentials
        return session.create_client(
            "kms",
            region_name=self.region,
            endpoint_url=endpoint.url,
            verify=str(self._pki.tls_ca_pem),
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            aws_session_token=credentials.session_token,
            config=botocore.config.Config(
                connect_timeout=5,
                read_timeout=20,
                retries={"total_max_attempts": 2, "mode": "standard"},
                proxies={},
            ),
        )

    def arn(self, identity: Identity) -> str:
        return str(getattr(self._identities, identity).role_arn)

    def credentials_for_enclave(self) -> Credentials:
        return _session_of(self._identities.parent)

    def expired_credentials(self) -> Credentials:
        return _session_of(self._identities.parent_before)

    def document_of_another_enclave(
        self, pcrs: Mapping[int, bytes], *, public_key: bytes, made_at: datetime
    ) -> bytes:
        from necli.local.nsm import SimulatedNsm

        nsm = SimulatedNsm(self._pki, "i-0-another", pcrs, clock=lambda: made_at)
        return nsm.attest(public_key=public_key)

    def build_eif(self, spec: BuildSpec, progress: Progress) -> BuiltEif:
        from necli.local.image import build_local_eif

        roots = spec.trust_roots_pem or self._pki.tls_ca_pem.read_bytes()
        with progress.step("Image") as step:
            built = build_local_eif(spec, self.home.builds / f"{spec.name}.eif", trust_roots_pem=roots)
            step.note(f"{built.path.name}, {built.size / 1e6:.1f} MB, {built.distributions} distributions")
        return built

    def memory_for(self, eif: Path) -> int:
        return MEMORY_MIB

    def run_enclave(
        self, name: str, eif: Path, *, memory_mib: int, cpus: int, debug: bool, progress: Progress
    ) -> EnclaveInfo:
        enclave = self._enclave(name)
        daemon = self._hypervisor(enclave, eif, memory_mib, choose_cpus(cpus), debug=debug)
        with enclave.lock(), progress.step("Enclave") as step:
            self._make_room(enclave)
            self._boot(enclave, daemon)
            info = self.enclave(name)
            step.note(f"{name} ready, CID {info.cid}, {memory_mib} MiB, {len(info.cpu_ids)} CPUs")
        if not info.network_isolated:
            progress.warn(f"{name} is NOT isolated from the network: this kernel refuses it a namespace")
        return info

    def stop_enclave(self, name: str) -> None:
        enclave = self._enclave(name)
        if not enclave.exists:
            raise NotReady(f"there is no enclave {name}", hint="see necli enclave list")
        with enclave.lock():
            enclave.hypervisor.stop()
            enclave.sweep()

    def enclave(self, name: str) -> EnclaveInfo:
        return self._known(self._enclave(name))

    def enclaves(self) -> list[EnclaveInfo]:
        from necli.local.enclave import all_enclaves

        infos = [enclave.info() for enclave in all_enclaves(self.home)]
        return [info for info in infos if info]

    def console(self, name: str, *, follow: bool = False) -> Iterator[str]:
        enclave = self._enclave(name)
        if not self._known(enclave).debug:
            raise NotReady(
                f"the enclave {name} was not started with the debug flag set",
                hint="include --debug-mode in necli enclave run: it attests zeros then, and KMS refuses it",
                code="E44",
            )
        return _lines(enclave, follow=follow)

    def connect(self, name: str) -> httpx.Client:
        from necli.transport import enclave_client

        enclave = self._enclave(name)
        info = self._known(enclave)
        if info.state != "RUNNING":
            raise NotReady(
                f"the enclave {name} isn't running: {info.exit_reason or info.state.lower()}",
                hint=_START_HINT,
            )
        return enclave_client(enclave.address, name=name)

    def attestation_roots(self) -> list[TrustedRoot]:
        return [self._pki.simulated_root]

    @property
    def _kms_host(self) -> str:
        return f"kms.{self.region}.amazonaws.com"

    @property
    def _kms(self) -> Daemon:
        return Daemon("kms", self.home.kms)

    @property
    def _proxy(self) -> Daemon:
        return Daemon("proxy", self.home.proxy)

    @cached_property
    def _pki(self) -> LocalPki:
        from necli.local.pki import LocalPki

        return LocalPki.ensure(self.home.pki)

    @cached_property
    def _identities(self) -> Identities:
        from necli.local.identities import ensure_identities

        return ensure_identities(self.home)

    @contextmanager
    def _services_lock(self) -> Iterator[None]:
        """One command at a time starts or stops services; another waits for it and finds its work done."""
        with open_lock(self.home.state / "services.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _ensure_kms(self) -> KmsEndpoint:
        from necli.local.identities import write_aws_files

        endpoint = KmsEndpoint.load(self.home)
        if endpoint is None or (self._kms.pid is None and not endpoint.is_free):
            endpoint = KmsEndpoint.choose(self.home)
        daemon = Daemon.module(
            "kms",
            self.home.kms,
            "necli.local.kms",
            *("--home", self.home.state.absolute()),
            *("--port", endpoint.port),
            *("--region", self.region),
        )
        self._restart_if_changed(daemon)
        write_aws_files(self.home, self._identities, self.region, endpoint.url, self._pki.tls_ca_pem)
        daemon.start(lambda: self._kms_answers(endpoint))
        return endpoint

    def _kms_answers(self, endpoint: KmsEndpoint) -> bool:
        import ssl

        import httpx

        context = ssl.create_default_context(cafile=self._pki.tls_ca_pem)
        try:
            return httpx.get(f"{endpoint.url}/health", verify=context, timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _ensure_proxy(self, endpoint: KmsEndpoint) -> None:
        from necli.allow_list import write_allow_list
        from necli.local.enclave import PROXY
        from necli.sockets import UnixAddress

        folder = make_private_folder(self.home.proxy.absolute())
        allow_list = folder / "vsock-proxy.yaml"
        listen = folder / Path(PROXY).name
        write_allow_list(allow_list, self.region)
        daemon = Daemon.module(
            "proxy",
            folder,
            "necli.local.proxy",
            *("--listen", listen),
            *("--allow-list", allow_list),
            *("--remote", f"{self._kms_host}:{_ENDPOINT_PORT}"),
            *("--resolve", f"127.0.0.1:{endpoint.port}"),
            *("--status", folder / "status.json"),
        )
        self._restart_if_changed(daemon)

        def listening() -> bool:
            try:
                UnixAddress(listen).connect(1).close()
            except OSError:
                return False
            return True

        daemon.start(listening)

    @staticmethod
    def _restart_if_changed(daemon: Daemon) -> None:
        """Another region or port needs another process."""
        running = daemon.running_argv
        if running and running[1:] != list(daemon.argv[1:]):
            daemon.stop()

    def _proxy_status(self) -> dict[str, Any]:
        value = read_json(self.home.proxy / "status.json")
        return value if isinstance(value, dict) else {}

    def _enclave(self, name: str) -> LocalEnclave:
        from necli.local.enclave import LocalEnclave

        return LocalEnclave(self.home, name)

    @staticmethod
    def _known(enclave: LocalEnclave) -> EnclaveInfo:
        info = enclave.info()
        if info is None:
            raise NotReady(
                f"there is no enclave {enclave.name}",
                hint=_START_HINT,
            )
        return info

    def _hypervisor(
        self, enclave: LocalEnclave, eif: Path, memory_mib: int, cpu_ids: list[int], *, debug: bool
    ) -> Daemon:
        return Daemon.module(
            "hypervisor",
            enclave.folder,
            "necli.local.hypervisor",
            *("--home", self.home.state.absolute()),
            *("--name", enclave.name),
            *("--eif", eif.absolute()),
            *("--memory", memory_mib),
            *("--cpu-ids", ",".join(map(str, cpu_ids))),
            *(["--debug-mode"] if debug else []),
        )

    @staticmethod
    def _make_room(enclave: LocalEnclave) -> None:
        info = enclave.info()
        if info and info.state == "RUNNING":
            raise Conflict(
                f"an enclave {enclave.name} is running",
                hint=f"stop it first: necli enclave stop {enclave.name}",
            )
        # One that is still starting has lost the command that waited for it.
        enclave.hypervisor.stop()
        enclave.sweep()

    @staticmethod
    def _boot(enclave: LocalEnclave, daemon: Daemon) -> None:
        def ready() -> bool:
            info = enclave.info()
            return info is not None and info.state == "RUNNING"

        try:
            daemon.start(ready, timeout=READY_TIMEOUT_S)
        except ServiceFailed as exc:
            raise enclave.failure() or exc from exc


def _session_of(identity: LocalIdentity) -> Credentials:
    given = identity.credentials
    return Credentials(given.access_key_id, given.secret_access_key, given.session_token)


def choose_cpus(count: int) -> list[int]:
    """The CPUs that an enclave may use.

    :raises UsageError: there are fewer.
    """
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(available):
        raise UsageError(
            f"{count} CPUs can't be given to an enclave: this machine has {len(available)}",
            hint="choose another number with --cpus",
            code="E22",
        )
    return available[-count:]


def _lines(enclave: LocalEnclave, *, follow: bool) -> Iterator[str]:
    with (
        host_errors(f"can't read {enclave.console}"),
        enclave.console.open(encoding="utf-8", errors="replace") as file,
    ):
        while True:
            ended = enclave.hypervisor.pid is None
            yield from (line.rstrip("\n") for line in file)
            if ended or not follow:
                return
            time.sleep(0.1)
