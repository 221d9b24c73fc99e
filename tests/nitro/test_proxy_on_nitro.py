"""The proxy on Nitro: what vsock-proxy is told, how it is kept running, and what is said when it isn't."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from necli.allow_list import Endpoint, read_allow_list
from necli.errors import Conflict, HostError, InputError, NecliError, ServiceFailed
from necli.local.pki import LocalPki
from necli.nitro.proxy import NitroProxy, Supervisor, check_endpoint
from necli.process import ProcessId
from necli.progress import Progress

FAKE = Path(__file__).parent / "fakes" / "vsock-proxy"
KMS = Endpoint("kms.eu-central-1.amazonaws.com", 443)


def reachable(endpoint: Endpoint) -> None:
    """KMS as it is from an instance whose network is right."""


class Installed:
    """The fake vsock-proxy in a folder of its own, and necli's proxy over it."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "bin" / "vsock-proxy"
        self.program.parent.mkdir()
        shutil.copy(FAKE, self.program)
        self.proxy = NitroProxy(folder / "proxy", "eu-central-1", str(self.program), check=reachable)
        self.behave("listens")

    def behave(self, *behaviours: str) -> None:
        (self.program.parent / "behaviour").write_text("\n".join(behaviours))

    @property
    def argv(self) -> list[str]:
        return (self.program.parent / "argv").read_text().splitlines()


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    installed = Installed(tmp_path)
    yield installed
    installed.proxy.stop()


def eventually(condition: Callable[[], object], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_vsock_proxy_is_given_kms_alone_and_a_list_with_kms_alone(installed: Installed) -> None:
    installed.proxy.start(Progress())
    port, host, remote_port, _, allow_list, _, workers = installed.argv
    assert (port, host, remote_port) == ("8000", "kms.eu-central-1.amazonaws.com", "443")
    assert read_allow_list(Path(allow_list)) == {KMS}
    assert int(workers) >= 4
    status = installed.proxy.status()
    assert status.running
    assert status.address == str(KMS)
    assert status.last_error is None


def test_a_second_start_changes_nothing_and_stop_leaves_nothing(installed: Installed) -> None:
    installed.proxy.start(Progress())
    pid = installed.proxy.status().pid
    installed.proxy.start(Progress())
    assert installed.proxy.status().pid == pid
    installed.proxy.stop()
    assert not installed.proxy.status().running
    assert children_of_the_fake(installed) == []


def test_another_region_gets_another_proxy(installed: Installed, tmp_path: Path) -> None:
    installed.proxy.start(Progress())
    other = NitroProxy(tmp_path / "proxy", "us-east-1", str(installed.program), check=reachable)
    other.start(Progress())
    assert installed.argv[1] == "kms.us-east-1.amazonaws.com"
    assert other.status().running


@pytest.mark.parametrize(
    ("behaviour", "error", "says", "hint"),
    [
        ("not-allowed", InputError, "given address and port are not allowed", "proxy start"),
        ("bad-list", InputError, "Bad yaml format", "proxy start"),
        ("taken", Conflict, "vsock port 8000", "disable --now nitro-enclaves-vsock-proxy"),
        ("no-dns", ServiceFailed, "can't resolve its endpoint", "DNS"),
        ("unheard-of", ServiceFailed, "The moon is in the seventh house", "necli doctor"),
        ("silent", ServiceFailed, "ended with status 7", "necli doctor"),
    ],
)
def test_a_proxy_that_does_not_listen_says_why_with_a_fix_and_the_next_start_works(
    installed: Installed, behaviour: str, error: type[NecliError], says: str, hint: str
) -> None:
    installed.behave(behaviour)
    with pytest.raises(error, match=says) as caught:
        installed.proxy.start(Progress())
    assert hint in (caught.value.hint or "")
    assert str(KMS) in (installed.proxy.status().last_error or "")
    installed.behave("listens")
    installed.proxy.start(Progress())
    assert installed.proxy.status().running


def test_a_proxy_that_ends_is_started_again_and_its_last_words_are_kept(installed: Installed) -> None:
    installed.behave("dns-lost", "listens")
    with suppress(ServiceFailed):  # it may have ended before it was seen to listen
        installed.proxy.start(Progress())
    installed.proxy.start(Progress())
    eventually(lambda: installed.proxy.status().running)


def test_a_killed_vsock_proxy_comes_back(installed: Installed) -> None:
    installed.proxy.start(Progress())
    (child,) = children_of_the_fake(installed)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: installed.proxy.status().last_error)
    assert "ended with status -9" in (installed.proxy.status().last_error or "")
    eventually(lambda: installed.proxy.status().running)
    assert children_of_the_fake(installed) != [child]


def test_a_refused_connection_is_in_the_status_of_a_proxy_that_goes_on(installed: Installed) -> None:
    installed.behave("refused")
    installed.proxy.start(Progress())
    eventually(lambda: "10.0.1.9:443" in (installed.proxy.status().last_error or ""))
    assert installed.proxy.status().running


def test_a_killed_supervisor_takes_vsock_proxy_with_it(installed: Installed) -> None:
    installed.proxy.start(Progress())
    pid = installed.proxy.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: children_of_the_fake(installed) == [])
    assert not installed.proxy.status().running
    installed.proxy.start(Progress())
    assert installed.proxy.status().running


def test_pauses_between_starts_grow(tmp_path: Path) -> None:
    supervisor = Supervisor(["/bin/false"], KMS, tmp_path, first_delay_s=0.05)
    runner = threading.Thread(target=supervisor.run)
    runner.start()
    eventually(lambda: supervisor.starts == 5)
    begun = time.monotonic()
    eventually(lambda: supervisor.starts == 6)
    assert time.monotonic() - begun > 0.4
    supervisor.stop()
    runner.join()
    assert "ended with status 1" in (supervisor.last_error or "")


def test_one_supervisor_at_a_time_and_systemds_own_is_left_alone(installed: Installed) -> None:
    foreground = subprocess.Popen(
        [sys.executable, "-m", "necli.nitro.proxy", installed.proxy.folder, "eu-central-1", installed.program]
    )
    try:
        eventually(lambda: installed.proxy.status().running)
        installed.proxy.start(Progress())
        assert installed.proxy.status().pid == foreground.pid
        with pytest.raises(Conflict, match="systemd runs the proxy"):
            installed.proxy.stop()
        with pytest.raises(Conflict, match="runs already"):
            installed.proxy.run()
    finally:
        foreground.terminate()
    assert foreground.wait() == 0
    assert not installed.proxy.status().running
    assert children_of_the_fake(installed) == []


def test_without_vsock_proxy_setup_is_what_helps(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="isn't installed") as caught:
        NitroProxy(tmp_path, "eu-central-1", "no-such-vsock-proxy", check=reachable).start(Progress())
    assert "necli setup" in (caught.value.hint or "")


def test_nothing_is_started_when_kms_cannot_be_reached(installed: Installed) -> None:
    def unreachable(endpoint: Endpoint) -> None:
        raise ServiceFailed("no way to KMS", code="kms_unreachable")

    proxy = NitroProxy(installed.proxy.folder, "eu-central-1", str(installed.program), check=unreachable)
    with pytest.raises(ServiceFailed, match="no way to KMS"):
        proxy.start(Progress())
    assert not proxy.status().running
    assert not (installed.program.parent / "argv").exists()


class TestCheckOfTheEndpoint:
    @pytest.fixture
    def pki(self, tmp_path: Path) -> LocalPki:
        return LocalPki.ensure(tmp_path / "pki")

    @pytest.fixture
    def port(self, pki: LocalPki) -> Iterator[int]:
        context = pki.server_context(["localhost"])
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=serve_tls, args=(listener, context), daemon=True).start()
            yield listener.getsockname()[1]
            listener.shutdown(socket.SHUT_RDWR)

    def test_the_right_name_with_a_trusted_certificate_passes(self, pki: LocalPki, port: int) -> None:
        trust = ssl.create_default_context(cafile=str(pki.tls_ca_pem))
        check_endpoint(Endpoint("localhost", port), trust=trust)

    def test_an_unknown_certificate_is_an_interception(self, port: int) -> None:
        with pytest.raises(ServiceFailed, match="isn't AWS") as caught:
            check_endpoint(Endpoint("localhost", port))
        assert caught.value.code == "tls_untrusted"

    def test_a_name_without_an_address_is_told_from_a_closed_port(self) -> None:
        with pytest.raises(ServiceFailed, match=r"nowhere\.invalid can't be resolved") as caught:
            check_endpoint(Endpoint("nowhere.invalid", 443))
        assert caught.value.code == "dns_failed"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with pytest.raises(ServiceFailed, match="Connection refused") as caught:
            check_endpoint(Endpoint("localhost", port))
        assert caught.value.code == "kms_unreachable"


def serve_tls(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)


def test_the_systemd_unit_runs_the_supervisor_and_systemd_accepts_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    unit = NitroProxy(tmp_path, "eu-central-1").unit(necli=Path(sys.executable), user="root", state=state)
    assert f'ExecStart="{sys.executable}" --target nitro --region eu-central-1' in unit
    assert "$" not in unit
    (tmp_path / "necli-proxy.service").write_text(unit)
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze isn't installed")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "necli-proxy.service"],
        capture_output=True,
        text=True,
    )
    complaints = [line for line in verified.stderr.splitlines() if "necli-proxy.service" in line]
    assert complaints == []


def children_of_the_fake(installed: Installed) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if str(installed.program).encode() in words[:2] and ProcessId.now(int(process.name)):
                    found.append(int(process.name))
    return found


def test_the_commands_for_systemd_are_for_nitro_alone(tmp_path: Path) -> None:
    necli = [sys.executable, "-m", "necli", "--home", tmp_path / "state"]
    printed = subprocess.run([*necli, "--target", "nitro", "proxy", "unit"], capture_output=True, text=True)
    assert printed.returncode == 0
    assert f'--home "{tmp_path / "state"}" proxy run' in printed.stdout
    refused = subprocess.run([*necli, "proxy", "run"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "hint: use --target nitro" in refused.stderr
