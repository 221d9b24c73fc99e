"""The nitro backend's enclaves: a nitro-cli that keeps its own list, a payload behind a Unix socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from necli.attestation import NITRO_ROOT
from necli.backends import nitro
from necli.backends.nitro import NitroBackend, Platform
from necli.errors import Conflict, InputError, NecliError, NotReady, ServiceFailed, UsageError
from necli.home import Home
from necli.nitro.nitro_cli import NitroCli
from necli.progress import Progress
from necli.sockets import UnixAddress
from necli.stacks import StackOutputs, StackRecord
from necli.state import Key, State
from necli.workflows.stack import remember_outputs
from tests.nitro.fakes.amazon_linux import make_instance


@contextmanager
def payload(address: UnixAddress, health: dict[str, str]) -> Iterator[None]:
    """What answers in the enclave: one health answer a connection."""
    body = json.dumps(health).encode()
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with address.listen() as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield
        listener.shutdown(2)


class Nitro:
    def __init__(self, folder: Path) -> None:
        self.root, programs = make_instance(folder)
        self.address = UnixAddress(folder / "payload.sock")
        platform = Platform(
            NitroCli(str(programs / "nitro-cli")), lambda cid: self.address, threads_per_core=2, page_mib=2
        )
        self.home = Home(folder / "state", folder / "cache")
        self.backend = NitroBackend(self.home, "eu-central-1", platform)
        self.eif = folder / "image.eif"
        with self.eif.open("wb") as file:
            file.truncate(100 << 20)

    def run(self, name: str = "necli", *, memory: int = 2048, cpus: int = 2, debug: bool = False) -> None:
        self.backend.run_enclave(
            name, self.eif, memory_mib=memory, cpus=cpus, debug=debug, progress=Progress()
        )


@pytest.fixture
def machine(tmp_path: Path) -> Nitro:
    return Nitro(tmp_path)


def test_an_enclave_runs_once_its_payload_says_ready_and_stops(machine: Nitro) -> None:
    with payload(machine.address, {"status": "ready"}):
        machine.run()
        with machine.backend.connect("necli") as client:
            assert client.get("/health").json() == {"status": "ready"}
    info = machine.backend.enclave("necli")
    assert (info.state, info.cid, info.simulated, info.eif) == ("RUNNING", 16, False, machine.eif)
    assert info.measurements.pcr0.hex() == "0a" * 48
    assert info.ready_after_s is not None
    machine.backend.stop_enclave("necli")
    assert machine.backend.enclaves() == []
    with pytest.raises(NotReady, match="there is no enclave necli"):
        machine.backend.enclave("necli")


def test_several_enclaves_have_their_own_names(machine: Nitro) -> None:
    with payload(machine.address, {"status": "ready"}):
        machine.run("first")
        machine.run("second")
        with pytest.raises(Conflict, match="first is running"):
            machine.run("first")
    assert [enclave.name for enclave in machine.backend.enclaves()] == ["first", "second"]


def test_a_payload_that_cannot_work_says_why_and_its_memory_is_freed(machine: Nitro) -> None:
    with (
        payload(machine.address, {"status": "failed", "reason": "the model is damaged"}),
        pytest.raises(ServiceFailed, match="the model is damaged"),
    ):
        machine.run()
    assert machine.backend.enclaves() == []


def test_in_debug_mode_it_stays_with_its_console(machine: Nitro) -> None:
    with (
        payload(machine.address, {"status": "failed", "reason": "no model"}),
        pytest.raises(ServiceFailed, match="no model"),
    ):
        machine.run(debug=True)
    assert machine.backend.enclave("necli").debug
    assert list(machine.backend.console("necli"))[-1] == "necli: ready"


def test_an_enclave_that_ends_while_it_boots_is_noticed(machine: Nitro) -> None:
    (machine.root / "dies").touch()
    with pytest.raises(ServiceFailed, match="ended before it was ready"):
        machine.run()


def test_one_that_never_answers_is_given_up(machine: Nitro, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nitro, "READY_TIMEOUT_S", 0.2)
    with pytest.raises(ServiceFailed, match="wasn't ready within"):
        machine.run()
    assert machine.backend.enclaves() == []


def test_a_production_enclave_has_no_console(machine: Nitro) -> None:
    with payload(machine.address, {"status": "ready"}):
        machine.run()
    with pytest.raises(NotReady, match="debug flag") as refused:
        machine.backend.console("necli")
    assert refused.value.code == "E44"


@pytest.mark.parametrize(("memory", "cpus", "code"), [(256, 2, "E26"), (2048, 3, "E32")])
def test_what_nitro_cli_would_refuse_is_refused_before(
    machine: Nitro, memory: int, cpus: int, code: str
) -> None:
    with pytest.raises(UsageError) as refused:
        machine.run(memory=memory, cpus=cpus)
    assert refused.value.code == code
    assert not (machine.root / "calls").exists()


def test_a_refusal_of_nitro_clis_keeps_its_code(machine: Nitro) -> None:
    (machine.root / "fail").mkdir()
    (machine.root / "fail/nitro-cli").write_text("[ E27 ] Insufficient memory available.\n")
    with pytest.raises(NecliError) as refused:
        machine.backend.enclaves()
    assert refused.value.code == "E27"


def test_roles_come_from_the_stack_and_nothing_but_aws_is_trusted(machine: Nitro) -> None:
    with pytest.raises(NotReady, match="which stack") as refused:
        _ = machine.backend.parent_arn
    assert refused.value.code == "stack_unknown"
    outputs = StackOutputs("i-0", "key", "alias", "instance", "enclave", "admin", "owner", "logs")
    StackRecord("necli", "eu-central-1", outputs).save(machine.home)
    backend = machine.backend
    assert (backend.parent_arn, backend.administrator_arn, backend.owner_arn) == ("enclave", "admin", "owner")
    assert backend.attestation_roots() == [NITRO_ROOT]


OUTPUTS = {
    "InstanceId": "i-0",
    "KeyArn": "arn:aws:kms:eu-central-1:111122223333:key/1",
    "KeyAlias": "alias/necli-stack",
    "InstanceRoleArn": "instance",
    "EnclaveRoleArn": "enclave",
    "AdministratorArn": "admin",
    "DataOwnerArn": "owner",
    "FlowLogGroup": "logs",
}


def test_an_instance_is_told_which_stack_it_is_of(machine: Nitro, tmp_path: Path) -> None:
    file = tmp_path / "stack.json"
    file.write_text(json.dumps(OUTPUTS))
    remember_outputs(machine.home, "necli", "eu-central-1", file)
    assert machine.backend.parent_arn == "enclave"
    assert State.load(machine.home, "nitro").key == Key(OUTPUTS["KeyArn"], OUTPUTS["KeyAlias"])


@pytest.mark.parametrize("content", ["{}", "[]", '{"error": {}}', "not JSON", "null"])
def test_what_is_no_stacks_output_is_refused(machine: Nitro, tmp_path: Path, content: str) -> None:
    file = tmp_path / "stack.json"
    file.write_text(content)
    with pytest.raises(InputError):
        remember_outputs(machine.home, "necli", "eu-central-1", file)
    assert StackRecord.load(machine.home) is None
