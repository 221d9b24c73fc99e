"""The local enclave: what runs in it, what it can reach, and what becomes of it when something goes wrong.

The payload here evaluates what it is sent, so that a test can look around from inside.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from necli.backends import EnclaveInfo
from necli.backends.local import LocalBackend
from necli.eif import InvalidEif
from necli.errors import (
    Conflict,
    InputError,
    MeasurementMismatch,
    NotReady,
    ServiceFailed,
    UsageError,
)
from necli.home import Home
from necli.local import hypervisor
from necli.local.enclave import LocalEnclave
from necli.measurements import ZERO, Measurements
from necli.progress import Progress
from necli.sockets import UnixAddress
from tests.local.payloads import SERVER, build, make_spec
from tests.local.test_image import built_with


class Lab:
    """A backend in a folder of its own, with images of a few lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Home(folder / "state", folder / "cache")
        self.backend = LocalBackend(self.home, "eu-central-1")
        self.warnings: list[str] = []

    def image(self, code: str = SERVER, name: str = "image", **spec: Any) -> Path:
        return build(make_spec(self.folder / name, code, **spec), self.folder / f"{name}.eif").path

    def run(self, eif: Path | None = None, name: str = "demo", **options: Any) -> EnclaveInfo:
        progress = Progress()
        progress.warn = self.warnings.append  # type: ignore[method-assign]
        arguments = {"memory_mib": 256, "cpus": 1, "debug": False, "progress": progress, **options}
        return self.backend.run_enclave(name, eif or self.image(), **arguments)

    def ask(self, expression: str, name: str = "demo") -> Any:
        """Evaluate a Python expression inside the enclave."""
        with self.backend.connect(name) as client:
            return client.post("/", content=expression).json()

    def enclave(self, name: str = "demo") -> LocalEnclave:
        return LocalEnclave(self.home, name)

    def wait_for_the_end(self, name: str = "demo") -> EnclaveInfo:
        deadline = time.monotonic() + 10
        while (info := self.backend.enclave(name)).state != "TERMINATED" or self.enclave(name).hypervisor.pid:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return info

    def stop_all(self) -> None:
        for info in self.backend.enclaves():
            self.backend.stop_enclave(info.name)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.stop_all()


class TestInside:
    @pytest.fixture(scope="class")
    @classmethod
    def lab(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
        lab = Lab(tmp_path_factory.mktemp("lab"))
        os.environ["AWS_SECRET_ACCESS_KEY"] = "not for the enclave"
        try:
            lab.run(lab.image(needs=("cbor2",)))
        finally:
            del os.environ["AWS_SECRET_ACCESS_KEY"]
        yield lab
        lab.stop_all()

    def test_it_runs_in_what_was_unpacked_from_the_image(self, lab: Lab) -> None:
        root = lab.enclave().root
        assert lab.ask("__import__('os').getcwd()") == str(root)
        assert (
            lab.ask("__import__('enclave_payload').__file__") == f"{root}/payload/enclave_payload/__init__.py"
        )
        assert lab.ask("open('model/saved_model.pb').read(5)") == "graph"

    def test_it_imports_a_measured_distribution(self, lab: Lab) -> None:
        assert lab.ask("__import__('cbor2').__file__").startswith(f"{lab.enclave().root}/site/")

    @pytest.mark.parametrize("name", ["pytest", "necli", "typer", "tests"])
    def test_it_can_not_import_anything_that_is_not_measured(self, lab: Lab, name: str) -> None:
        assert lab.ask(f"__import__({name!r})")["raised"] == "ModuleNotFoundError"

    def test_it_has_no_network(self, lab: Lab) -> None:
        assert lab.backend.enclave("demo").network_isolated is True
        interfaces = lab.ask("[line.split(':')[0].strip() for line in open('/proc/net/dev')][2:]")
        assert interfaces == ["lo"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            answer = lab.ask(f"__import__('socket').create_connection({address!r})")
        assert "unreachable" in answer["text"]

    def test_it_has_no_way_back_to_the_hosts_network(self, lab: Lab) -> None:
        enter = "__import__('ctypes').CDLL(None).setns(__import__('os').open('/proc/{}/ns/net', 0), 0)"
        answer = lab.ask(enter.format(os.getpid()))
        assert answer == -1 or answer["raised"] == "PermissionError"

    def test_it_has_no_privileges_left(self, lab: Lab) -> None:
        lines = lab.ask("open('/proc/self/status').read()").splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"

    def test_its_environment_is_only_what_it_needs(self, lab: Lab) -> None:
        environment = lab.ask("dict(__import__('os').environ)")
        assert environment.keys() == {"PATH", "LANG", "HOME", "TMPDIR", "TF_CPP_MIN_LOG_LEVEL"}
        assert environment["HOME"].startswith(str(lab.enclave().root))

    def test_it_inherits_no_open_files(self, lab: Lab) -> None:
        kinds = lab.ask("[__import__('os').readlink(f'/proc/self/fd/{n}') for n in '0123']")
        assert kinds[:3] == ["/dev/null"] * 3
        assert kinds[3].startswith("socket:")  # its own listener

    def test_its_limits_are_set(self, lab: Lab) -> None:
        limit = "__import__('resource').getrlimit(__import__('resource').RLIMIT_{})"
        assert lab.ask(limit.format("DATA")) == [256 << 20] * 2
        assert lab.ask(limit.format("CORE")) == [0, 0]
        assert lab.ask("len(__import__('os').sched_getaffinity(0))") == 1

    def test_its_folder_is_private(self, lab: Lab) -> None:
        assert stat.S_IMODE(lab.enclave().root.stat().st_mode) == 0o700

    def test_its_files_are_its_users(self, lab: Lab) -> None:
        assert lab.ask("__import__('os').getuid()") == os.getuid()
        assert lab.ask("open('home/x', 'w').write('x')") == 1
        assert (lab.enclave().root / "home/x").stat().st_uid == os.getuid()

    def test_its_nsm_answers_real_requests(self, lab: Lab) -> None:
        description = nsm(lab, "DescribeNSM")["DescribeNSM"]
        assert description["module_id"] == lab.backend.enclave("demo").enclave_id
        assert nsm(lab, {"DescribePCR": {"index": 0}})["DescribePCR"]["lock"] is True

    def test_it_attests_what_the_image_measures(self, lab: Lab) -> None:
        assert attested(lab) == lab.backend.enclave("demo").measurements.pcrs()

    def test_a_second_client_of_the_nsm_does_not_wait_for_a_silent_one(self, lab: Lab) -> None:
        silent = "globals().__setitem__('s', __import__('socket').socket(1, 5)) or s.connect('nsm.sock')"
        lab.ask(silent)
        assert "GetRandom" in nsm(lab, "GetRandom")


def nsm(lab: Lab, request: Any) -> Any:
    """Send a request to the enclave's NSM from inside."""
    raw = cbor2.dumps(request)
    answer = lab.ask(
        "(lambda s: [s.connect('nsm.sock'), s.send(" + repr(raw) + "), "
        "__import__('base64').b64encode(s.recv(65536)).decode()][2])(__import__('socket').socket(1, 5))"
    )
    return cbor2.loads(base64.b64decode(answer))


def attested(lab: Lab) -> dict[int, bytes]:
    """PCRs 0 to 2 as the enclave attests them."""
    document = nsm(lab, {"Attestation": {"user_data": None, "nonce": None, "public_key": None}})
    payload = cbor2.loads(cbor2.loads(document["Attestation"]["document"])[2])
    return {index: payload["pcrs"][index] for index in (0, 1, 2)}


class TestBoot:
    def test_a_changed_byte_is_found_by_the_checksum(self, lab: Lab) -> None:
        eif = lab.image()
        data = bytearray(eif.read_bytes())
        data[len(data) // 2] ^= 1
        eif.write_bytes(data)
        with pytest.raises(InputError, match=r"image\.eif isn't a valid EIF: its checksum"):
            lab.run(eif)
        assert not lab.enclave().root.exists()

    def test_a_boot_that_fails_is_explained_by_the_hypervisors_own_log(self, lab: Lab) -> None:
        (lab.folder / "empty.eif").write_bytes(b"")
        with pytest.raises(InputError):
            lab.run(lab.folder / "empty.eif")
        assert "failed: " in "\n".join(lab.enclave().hypervisor.log_tail())

    def test_another_runtime_is_a_named_error(self, lab: Lab) -> None:
        eif = built_with(make_spec(lab.folder / "spec"), lab.folder, runtime={"version": "3.0.0"})
        with pytest.raises(MeasurementMismatch, match="another runtime") as caught:
            lab.run(eif)
        assert (caught.value.code, caught.value.exit_code) == ("runtime_drift", 6)

    def test_a_missing_image_is_named(self, lab: Lab) -> None:
        with pytest.raises(InputError, match=r"can't open .*nothing\.eif: No such file"):
            lab.run(lab.folder / "nothing.eif")

    def test_an_image_that_changes_while_it_boots_is_refused(self, tmp_path: Path) -> None:
        eif = build(make_spec(tmp_path / "spec"), tmp_path / "image.eif").path
        with pytest.raises(InvalidEif, match="changed while it booted"), hypervisor.opened_once(eif):  # noqa: PT012
            data = eif.read_bytes()
            times = eif.stat()
            with open(eif, "r+b") as file:
                file.write(data)
            os.utime(eif, ns=(times.st_atime_ns, times.st_mtime_ns))

    def test_four_times_the_images_size_is_the_least_memory(self, lab: Lab) -> None:
        spec = make_spec(lab.folder / "big")
        (spec.model / "weights").write_bytes(os.urandom(40 << 20))
        eif = build(spec, lab.folder / "big.eif").path
        with pytest.raises(UsageError, match="four times the image's size") as caught:
            lab.run(eif, memory_mib=128)
        assert caught.value.code == "E26"

    def test_more_cpus_than_there_are_is_refused(self, lab: Lab) -> None:
        with pytest.raises(UsageError, match="this machine has") as caught:
            lab.run(cpus=1000)
        assert caught.value.code == "E22"

    def test_a_payload_that_ends_at_once_is_reported_without_its_output(self, lab: Lab) -> None:
        with pytest.raises(ServiceFailed, match="the payload ended with status 3") as caught:
            lab.run(lab.image("print('a secret'); raise SystemExit(3)"))
        assert "--debug-mode" in str(caught.value.hint)
        assert "a secret" not in lab.enclave().hypervisor.log.read_text()
        assert lab.backend.enclave("demo").exit_reason == "the payload ended with status 3"

    def test_a_payload_that_says_it_failed_is_believed(self, lab: Lab) -> None:
        failed = '{"status": "failed", "reason": "the model is damaged"}'
        with pytest.raises(ServiceFailed, match="could not start: the model is damaged"):
            lab.run(lab.image(health=failed))

    def test_one_that_is_never_ready_is_stopped_in_the_end(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("necli.backends.local.READY_TIMEOUT_S", 1.5)
        with pytest.raises(ServiceFailed, match=r"wasn't ready within 1\.5 s"):
            lab.run(lab.image(health='{"status": "starting"}'))
        assert lab.enclave().hypervisor.pid is None

    @pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x" * 64, "x/y"])
    def test_a_name_that_could_leave_the_folder_is_refused(self, lab: Lab, name: str) -> None:
        with pytest.raises(UsageError, match="can't be an enclave's name"):
            lab.run(name=name)


class TestLife:
    def test_it_runs_until_it_is_stopped_and_leaves_only_logs(self, lab: Lab) -> None:
        info = lab.run()
        assert (info.state, info.cid, info.debug) == ("RUNNING", 16, False)
        assert lab.backend.enclaves() == [info]
        lab.backend.stop_enclave("demo")
        assert lab.backend.enclaves() == []
        assert not lab.enclave().root.exists()
        assert not Path(f"/proc/{info.process_id}").exists()

    def test_it_is_described_in_nitro_clis_words(self, lab: Lab) -> None:
        value = lab.run().to_json()
        assert value["EnclaveID"].startswith("i-")
        assert {**value, "Measurements": None, "EnclaveID": None}.items() >= {
            "EnclaveName": "demo",
            "EnclaveCID": 16,
            "NumberOfCPUs": 1,
            "MemoryMiB": 256,
            "State": "RUNNING",
            "Flags": "NONE",
            "Simulated": True,
            "NetworkIsolated": True,
        }.items()
        assert EnclaveInfo.from_json(value).to_json() == value

    def test_two_enclaves_have_two_cids(self, lab: Lab) -> None:
        eif = lab.image()
        assert {lab.run(eif, name=name).cid for name in ("one", "two")} == {16, 17}

    def test_a_second_of_the_same_name_is_a_conflict(self, lab: Lab) -> None:
        eif = lab.image()
        lab.run(eif)
        with pytest.raises(Conflict, match="an enclave demo is running") as caught:
            lab.run(eif)
        assert caught.value.hint == "stop it first: necli enclave stop demo"

    def test_two_commands_at_once_are_a_conflict(self, lab: Lab) -> None:
        eif = lab.image()
        with lab.enclave().lock(), pytest.raises(Conflict, match="another command is at work on the enclave"):
            lab.run(eif)
        lab.run(eif)
        with lab.enclave().lock(), pytest.raises(Conflict, match="another command is at work"):
            lab.backend.stop_enclave("demo")

    def test_what_is_not_there_can_not_be_stopped_or_described(self, lab: Lab) -> None:
        for action in (lab.backend.stop_enclave, lab.backend.enclave, lab.backend.connect):
            with pytest.raises(NotReady, match="there is no enclave demo"):
                action("demo")

    def test_a_killed_payload_ends_the_enclave_with_a_reason(self, lab: Lab) -> None:
        info = lab.run()
        assert info.process_id
        os.kill(info.process_id, signal.SIGKILL)
        ended = lab.wait_for_the_end()
        assert ended.exit_reason == "the payload ended by SIGKILL"
        assert not lab.enclave().root.exists()
        with pytest.raises(NotReady, match="isn't running: the payload ended by SIGKILL"):
            lab.backend.connect("demo")
        assert lab.run(lab.image(name="again")).state == "RUNNING"

    def test_a_killed_hypervisor_takes_the_enclave_along(self, lab: Lab) -> None:
        eif = lab.image()
        info = lab.run(eif)
        pid = lab.enclave().hypervisor.pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        ended = lab.wait_for_the_end()
        assert (ended.exit_reason, ended.process_id) == ("its hypervisor was killed", None)
        deadline = time.monotonic() + 5
        while Path(f"/proc/{info.process_id}").exists():
            assert time.monotonic() < deadline, "the payload outlived its hypervisor"
            time.sleep(0.01)
        assert lab.enclave().root.exists()  # nobody was left to remove it
        assert lab.run(eif).state == "RUNNING"
        lab.backend.stop_enclave("demo")
        assert not lab.enclave().root.exists()

    def test_one_that_lost_its_command_while_starting_is_begun_anew(self, lab: Lab) -> None:
        slow = lab.image(health='{"status": "starting"}')
        command = subprocess.Popen([sys.executable, "-c", RUN, str(lab.home.state), str(slow)])
        while not (lab.enclave().info() and lab.enclave().hypervisor.pid):
            assert command.poll() is None
            time.sleep(0.02)
        command.kill()
        command.wait()
        assert lab.run(lab.image(name="quick")).state == "RUNNING"

    def test_memory_that_grows_slowly_ends_it_with_numbers(self, lab: Lab) -> None:
        lab.run(memory_mib=64)
        # Shared memory, which RLIMIT_DATA doesn't count.
        grow = "(m.write(b'x' * (1 << 20)) and __import__('time').sleep(.01) for _ in range(99))"
        grow = f"(lambda m: [*{grow}])(__import__('mmap').mmap(-1, 99 << 20))"
        with pytest.raises(ServiceFailed, match="connection to the enclave demo broke"):
            lab.ask(grow)
        assert re.fullmatch(r"out of memory: \d+ MiB used of 64", str(lab.wait_for_the_end().exit_reason))

    def test_memory_at_once_is_refused_by_the_kernel(self, lab: Lab) -> None:
        lab.run(memory_mib=64)
        assert lab.ask("len(b'x' * (100 << 20))")["raised"] == "MemoryError"
        assert lab.ask("1 + 1") == 2

    def test_an_end_near_the_limit_is_called_out_of_memory(self, lab: Lab) -> None:
        code = "import time; x = b'x' * (54 << 20); time.sleep(.4); raise MemoryError"
        with pytest.raises(ServiceFailed, match=r"out of memory: \d+ MiB used of 64") as caught:
            lab.run(lab.image(code), memory_mib=64)
        assert caught.value.code == "out_of_memory"


RUN = """
import sys
from pathlib import Path
from necli.backends.local import LocalBackend
from necli.home import Home
from necli.progress import Progress
state = Path(sys.argv[1])
Progress.warn = lambda self, text: print(text)
backend = LocalBackend(Home(state, state), "eu-central-1")
backend.run_enclave("demo", Path(sys.argv[2]), memory_mib=256, cpus=1, debug=False, progress=Progress())
"""


class TestDebugMode:
    def test_it_attests_zeros_and_describes_the_image(self, lab: Lab) -> None:
        info = lab.run(debug=True)
        assert attested(lab) == {0: ZERO, 1: ZERO, 2: ZERO}
        assert not info.measurements.is_zero
        assert info.to_json()["Flags"] == "DEBUG_MODE"

    def test_its_console_is_read(self, lab: Lab) -> None:
        lab.run(debug=True)
        assert next(lab.backend.console("demo")) == "hello from the payload"

    def test_its_console_is_followed_to_its_end(self, lab: Lab) -> None:
        lab.run(debug=True)
        lines = lab.backend.console("demo", follow=True)
        next(lines)
        lab.ask("[print('one more', flush=True), 1][1]")
        pid = lab.backend.enclave("demo").process_id
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert "one more" in list(lines)

    def test_a_production_enclave_has_no_console(self, lab: Lab) -> None:
        lab.run()
        with pytest.raises(NotReady, match="not started with the debug flag set") as caught:
            lab.backend.console("demo")
        assert caught.value.code == "E44"
        assert not lab.enclave().console.exists()

    def test_a_failed_boot_leaves_its_console(self, lab: Lab) -> None:
        with pytest.raises(ServiceFailed, match="ended with status 1") as caught:
            lab.run(lab.image("import no_such_module"), debug=True)
        assert caught.value.hint == "see necli enclave console demo"
        assert "No module named 'no_such_module'" in list(lab.backend.console("demo"))[-1]


# What Docker's seccomp profile does to unshare, for this process and whatever it starts.
REFUSE_UNSHARE = """
import ctypes, platform, struct
number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
program = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program), ctypes.addressof(code)))) == 0
"""


def test_a_kernel_that_refuses_namespaces_is_admitted_everywhere(lab: Lab) -> None:
    arguments = [str(lab.home.state), str(lab.image())]
    command = [sys.executable, "-c", REFUSE_UNSHARE + RUN, *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout == "demo is NOT isolated from the network: this kernel refuses it a namespace\n"
    assert lab.backend.enclave("demo").network_isolated is False
    assert lab.backend.enclave("demo").to_json()["NetworkIsolated"] is False
    assert "NOT ISOLATED from the network" in lab.enclave().hypervisor.log.read_text()
    assert lab.ask("1 + 1") == 2


def test_a_home_deeper_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    lab = Lab(folder)
    try:
        lab.run()
        assert lab.ask("1 + 1") == 2
        assert attested(lab) == lab.backend.enclave("demo").measurements.pcrs()
    finally:
        lab.stop_all()


def test_the_parent_is_reached_on_its_port(lab: Lab) -> None:
    """CID 3, port 8000, is wherever the proxy listens, also when that starts later."""
    lab.run()
    proxy = UnixAddress(lab.home.proxy / "3-8000.sock")
    ask = "(lambda s: [s.connect('vsock/3-8000.sock'), s.recv(5).decode()][1])"
    ask += "(__import__('socket').socket(1, 1))"
    assert lab.ask(ask)["raised"] == "FileNotFoundError"
    lab.home.proxy.mkdir()
    with proxy.listen() as listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"proxy"), daemon=True).start()
        assert lab.ask(ask) == "proxy"


def test_one_byte_more_in_payload_or_model_gives_another_enclave(lab: Lab) -> None:
    def pcr0(name: str, code: str) -> bytes:
        info = lab.run(lab.image(code, name=name), name=name)
        measurements: Measurements = info.measurements
        return measurements.pcr0

    assert pcr0("one", SERVER) != pcr0("two", SERVER + "#")
