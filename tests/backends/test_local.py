"""The contract of a target, on the local one: services, KMS as each identity, enclaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from necli.allow_list import Endpoint, read_allow_list
from necli.backends import Credentials, open_backend
from necli.backends.local import KmsEndpoint, LocalBackend
from necli.errors import NotReady, ServiceFailed, UsageError
from necli.home import Home
from necli.progress import Progress
from necli.sockets import UnixAddress
from tests.local.payloads import make_spec

REGION = "eu-central-1"


def open_local(folder: Path, region: str = REGION) -> LocalBackend:
    backend = open_backend("local", Home(folder / "state", folder / "cache"), region)
    assert isinstance(backend, LocalBackend)
    return backend


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalBackend]:
    backend = open_local(tmp_path)
    yield backend
    backend.stop_services()


@pytest.fixture
def running(backend: LocalBackend) -> LocalBackend:
    backend.ensure_services(Progress())
    return backend


def pids(backend: LocalBackend) -> dict[str, int | None]:
    return {service.name: service.pid for service in backend.services()}


def alias_count(backend: LocalBackend) -> int:
    return len(backend.kms("administrator").list_aliases()["Aliases"])


def test_the_local_target_says_that_it_is_simulated(backend: LocalBackend) -> None:
    assert backend.simulated is True


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no target 'mars'"):
        open_backend("mars", Home(tmp_path, tmp_path), REGION)


def test_secrets_do_not_show_in_repr() -> None:
    text = repr(Credentials("ASIAEXAMPLE", "very-secret", "also-secret"))
    assert "ASIAEXAMPLE" in text
    assert "secret" not in text.replace("secret_access_key", "")


class TestServices:
    def test_before_they_start_nothing_runs(self, backend: LocalBackend) -> None:
        assert [(service.name, service.running) for service in backend.services()] == [
            ("kms", False),
            ("proxy", False),
        ]

    def test_they_start_once(self, running: LocalBackend) -> None:
        before = pids(running)
        assert None not in before.values()
        running.ensure_services(Progress())
        assert pids(running) == before

    def test_stopped_ones_are_gone(self, running: LocalBackend) -> None:
        running.stop_services()
        assert set(pids(running).values()) == {None}
        running.stop_services()

    @pytest.mark.parametrize("name", ["kms", "proxy"])
    def test_after_a_kill_9_the_next_command_brings_it_back(self, running: LocalBackend, name: str) -> None:
        running.kms("administrator").create_key()
        before = pids(running)
        victim = before[name]
        assert victim
        os.kill(victim, signal.SIGKILL)
        while running.service(name).running:
            time.sleep(0.01)
        running.ensure_services(Progress())
        after = pids(running)
        assert after[name] not in (None, victim)
        assert {key: pid for key, pid in after.items() if key != name} == {
            key: pid for key, pid in before.items() if key != name
        }
        assert len(running.kms("administrator").list_keys()["Keys"]) == 1

    def test_a_port_that_somebody_took_is_left_to_him(self, running: LocalBackend) -> None:
        before = KmsEndpoint.load(running.home)
        assert before
        running.kms("administrator").create_key()
        running.stop_services()
        with socket.create_server(("127.0.0.1", before.port)):
            running.ensure_services(Progress())
            assert KmsEndpoint.load(running.home) != before
            assert len(running.kms("administrator").list_keys()["Keys"]) == 1
            status = through_the_proxy(running)
        assert status.startswith("HTTP/1.1")

    def test_the_port_stays_the_same_otherwise(self, running: LocalBackend) -> None:
        before = running.service("kms").address
        running.stop_services()
        running.ensure_services(Progress())
        assert running.service("kms").address == before

    def test_another_region_changes_what_the_proxy_allows(
        self, running: LocalBackend, tmp_path: Path
    ) -> None:
        other = open_local(tmp_path, "us-east-1")
        other.ensure_services(Progress())
        assert other.service("proxy").address == "kms.us-east-1.amazonaws.com:443"
        assert read_allow_list(other.home.proxy / "vsock-proxy.yaml") == {
            Endpoint("kms.us-east-1.amazonaws.com", 443)
        }

    def test_commands_at_once_start_them_once(self, backend: LocalBackend, tmp_path: Path) -> None:
        code = f"""
from pathlib import Path
from necli.backends.local import LocalBackend
from necli.home import Home
from necli.progress import Progress
LocalBackend(Home(Path({str(tmp_path / "state")!r}), Path("x")), {REGION!r}).ensure_services(Progress())
"""
        commands = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
        assert [command.wait() for command in commands] == [0, 0, 0]
        assert alias_count(backend) == 0

    def test_the_proxys_last_error_is_shown(self, running: LocalBackend) -> None:
        running._kms.stop()
        assert through_the_proxy(running) == ""
        assert str(running.service("proxy").last_error).endswith(
            "kms.eu-central-1.amazonaws.com:443: Connection refused"
        )

    def test_the_proxy_alone_can_be_stopped(self, running: LocalBackend) -> None:
        running.stop_proxy()
        assert [service.running for service in running.services()] == [True, False]


def through_the_proxy(backend: LocalBackend) -> str:
    """The status line of KMS's health, as an enclave reaches it: TLS to the true name, over the socket."""
    import ssl

    context = ssl.create_default_context(cafile=backend._pki.tls_ca_pem)
    raw = UnixAddress(backend.home.proxy / "3-8000.sock").connect(5)
    try:
        with context.wrap_socket(raw, server_hostname="kms.eu-central-1.amazonaws.com") as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: kms\r\nconnection: close\r\n\r\n")
            return connection.recv(100).decode().splitlines()[0]
    except (OSError, IndexError):
        return ""


class TestKms:
    def test_each_identity_is_who_it_says(self, running: LocalBackend) -> None:
        assert running.parent_arn.endswith(":role/necli-parent-instance")
        assert running.owner_arn != running.administrator_arn
        assert running.credentials_for_enclave().access_key_id.startswith("ASIA")

    def test_the_callers_aws_settings_do_not_matter(
        self, running: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "config").write_text(
            "[profile other]\nregion = mars\nendpoint_url = http://localhost:1\n"
        )
        for name, value in {
            "AWS_PROFILE": "no-such-profile",
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_ENDPOINT_URL": "http://localhost:1",
            "AWS_CA_BUNDLE": "/dev/null",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
            "HTTPS_PROXY": "http://localhost:1",
        }.items():
            monkeypatch.setenv(name, value)
        assert alias_count(running) == 0

    def test_a_dead_kms_is_named_with_what_helps(self, backend: LocalBackend) -> None:
        with pytest.raises(ServiceFailed, match="the local KMS isn't running") as caught:
            backend.kms("owner")
        assert "necli" in str(caught.value.hint)


class TestEnclave:
    @pytest.fixture
    def backend(self, backend: LocalBackend) -> Iterator[LocalBackend]:
        yield backend
        for info in backend.enclaves():
            backend.stop_enclave(info.name)

    def test_from_image_to_answer(self, backend: LocalBackend, tmp_path: Path) -> None:
        built = backend.build_eif(make_spec(tmp_path / "spec"), Progress())
        info = backend.run_enclave(
            "demo", built.path, memory_mib=256, cpus=1, debug=False, progress=Progress()
        )
        assert (info.measurements, info.simulated) == (built.measurements, True)
        with backend.connect("demo") as client:
            assert client.get("/health").json() == {"status": "ready"}

    def test_the_image_trusts_this_targets_kms(self, backend: LocalBackend, tmp_path: Path) -> None:
        spec = make_spec(tmp_path / "spec")
        ours = backend.build_eif(spec, Progress()).measurements
        roots = backend._pki.tls_ca_pem.read_bytes()
        assert backend.build_eif(replace(spec, trust_roots_pem=roots), Progress()).measurements == ours
        assert backend.build_eif(replace(spec, trust_roots_pem=b"x"), Progress()).measurements != ours

    def test_a_built_image_can_be_replaced_while_its_enclave_runs(
        self, backend: LocalBackend, tmp_path: Path
    ) -> None:
        built = backend.build_eif(make_spec(tmp_path / "spec"), Progress())
        backend.run_enclave("demo", built.path, memory_mib=256, cpus=1, debug=False, progress=Progress())
        again = backend.build_eif(make_spec(tmp_path / "other", needs=("cbor2",)), Progress())
        assert again.path == built.path
        assert backend.enclave("demo").measurements == built.measurements

    def test_the_roots_are_the_simulated_one(self, backend: LocalBackend) -> None:
        (root,) = backend.attestation_roots()
        assert type(root).__name__ == "SimulatedRoot"


def test_what_the_payload_gets_from_kms_passes_the_proxy_whole(running: LocalBackend) -> None:
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(through_the_proxy(running))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["HTTP/1.1 200 OK"] * 10


def test_an_enclave_that_never_was_has_no_console(backend: LocalBackend) -> None:
    with pytest.raises(NotReady, match="there is no enclave demo"):
        backend.console("demo")
