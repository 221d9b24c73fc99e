"""The adapter for nitro-cli, on an executable that replays what nitro-cli 1.5.2 prints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from necli.errors import (
    Conflict,
    HostError,
    InputError,
    NecliError,
    NotReady,
    ServiceFailed,
    UsageError,
)
from necli.measurements import Measurements
from necli.nitro.faults import FAULTS, docker_failure, failure_of
from necli.nitro.nitro_cli import NitroCli, NitroEnclave, Signing

PCRS = {"HashAlgorithm": "Sha384 { ... }", "PCR0": "0a" * 48, "PCR1": "1b" * 48, "PCR2": "2c" * 48}
RUNNING = {
    "EnclaveName": "necli",
    "EnclaveID": "i-05f6ed443aEXAMPLE-enc173dfe3eEXAMPLE",
    "ProcessID": 7077,
    "EnclaveCID": 16,
    "NumberOfCPUs": 2,
    "CPUIDs": [1, 5],
    "MemoryMiB": 4096,
}
Replay = Callable[..., NitroCli]


def said(code: str, text: str, *backtrace: str) -> str:
    """An error as nitro-cli prints it, with BACKTRACE=1."""
    subactions = "".join(f"\n    {line}" for line in backtrace)
    return (
        f"[ {code} ] {text}\n\nFor more details, please visit https://docs.aws.amazon.com/#{code}\n\n"
        f"Backtrace:\n  Action: Build Enclave\n  Subactions:{subactions}\n  Root error file: src/lib.rs\n"
        "  Root error line: 130\n  Version: 1.5.2\n\nIf you open a support ticket, please provide the error"
        ' log found at "/var/log/nitro_enclaves/err2026-11-24T10:00:00.000000000+00:00.log"\n'
    )


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    """A nitro-cli that prints what it is told to, and notes how it was called."""

    def make(stdout: object = "", stderr: str = "", status: int = 0, script: str = "") -> NitroCli:
        (tmp_path / "out").write_text(stdout if isinstance(stdout, str) else json.dumps(stdout))
        (tmp_path / "err").write_text(stderr)
        program = tmp_path / "nitro-cli"
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/argv\nenv > {tmp_path}/env\n{script}\n'
            f"cat {tmp_path}/err >&2\ncat {tmp_path}/out\nexit {status}\n"
        )
        program.chmod(0o755)
        return NitroCli(str(program))

    return make


def called(folder: Path) -> list[str]:
    return (folder / "argv").read_text().splitlines()


def test_a_build_gives_the_measurements_and_passes_on_the_chatter(replay: Replay, tmp_path: Path) -> None:
    cli = replay({"Measurements": PCRS}, "Start building the Enclave Image...\nsuccessfully created.\n")
    lines: list[str] = []
    measured = cli.build_enclave(
        "necli/x:latest",
        tmp_path / "x.eif",
        name="x",
        signing=Signing(tmp_path / "c.pem", tmp_path / "k.pem"),
        on_line=lines.append,
    )
    assert measured == Measurements.from_json(PCRS)
    assert lines == ["Start building the Enclave Image...", "successfully created."]
    assert called(tmp_path) == [
        "build-enclave",
        *("--docker-uri", "necli/x:latest", "--output-file", f"{tmp_path}/x.eif", "--name", "x"),
        *("--signing-certificate", f"{tmp_path}/c.pem", "--private-key", f"{tmp_path}/k.pem"),
    ]


def test_builds_side_by_side_share_no_folder(replay: Replay, tmp_path: Path) -> None:
    folders = set()
    for _ in range(2):
        replay({"Measurements": PCRS}).build_enclave("a:b", tmp_path / "x.eif")
        environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
        folders.add(environment["NITRO_CLI_ARTIFACTS"])
    assert len(folders) == 2
    assert not any(Path(folder).exists() for folder in folders)


def test_run_and_describe_give_the_same_enclave(replay: Replay, tmp_path: Path) -> None:
    started = replay(RUNNING).run_enclave("necli", tmp_path / "x.eif", memory_mib=4096, cpus=2, debug=True)
    assert called(tmp_path)[-1] == "--debug-mode"
    described = {**RUNNING, "State": "RUNNING", "Flags": "DEBUG_MODE", "Measurements": PCRS}
    (found,) = replay([described]).describe_enclaves()
    assert (started.enclave_id, started.cid, started.cpu_ids) == (found.enclave_id, 16, (1, 5))
    assert started.debug
    assert found.debug
    assert found.measurements == Measurements.from_json(PCRS)


def test_an_enclave_of_an_old_nitro_cli_has_no_name() -> None:
    assert NitroEnclave.from_json({k: v for k, v in RUNNING.items() if k != "EnclaveName"}).name is None


def test_terminate_says_whether_it_is_gone(replay: Replay, tmp_path: Path) -> None:
    assert replay({"EnclaveID": "i-1", "Terminated": True}).terminate_enclave("i-1")
    assert called(tmp_path) == ["terminate-enclave", "--enclave-id", "i-1"]


LOST = said("E39", "Enclave process connection failure.") + said("E11", "Socket error.")
FAILURES = [
    (
        said("E26", "Insufficient memory requested. User provided `memory` is 64 MB, but based on the EIF"
             " file size, the minimum memory should be 512 MB"),
        UsageError, "E26", "minimum memory should be 512 MB", "--memory",
    ),
    (said("E27", "Insufficient memory available. User provided `memory` is 9000 MB"), HostError, "E27",
     "9000 MB", "necli setup"),
    (said("E35", "EIF file parsing error.") + LOST, HostError, "E35", "huge pages", "doctor"),
    (LOST + said("E19", "File operation failure.\nFile: '/dev/nitro_enclaves', failing operation: 'Open'."),
     HostError, "E19", "/dev/nitro_enclaves", "group ne"),
    (LOST, ServiceFailed, "E39", "process ended", "/var/log/nitro_enclaves"),
    (said("E36", "Enclave boot failure."), ServiceFailed, "E36", "ended before it was ready", "--debug-mode"),
    (said("E22", "Insufficient CPUs available in the pool. User provided `cpu-count` is 8"), HostError, "E22",
     "`cpu-count` is 8", "necli setup"),
    (said("E44", "Enclave console connection failure."), NotReady, "E44", "no console", "--debug-mode"),
    (said("E48", "EIF building error.", "Failed to create EIF image: InitPathError"), HostError, "E48",
     "blobs are missing", "aws-nitro-enclaves-cli-devel"),
    ("Docker error: ConnectionError\n" + said("E50", "Docker image pull error."), HostError, "E50",
     "daemon isn't running", "systemctl"),
    ('Linuxkit reported an error while creating the customer ramfs: "Create outputs:\\n"\n'
     + said("E48", "EIF building error.", "Failed to create EIF image: LinuxkitExecError"), HostError, "E48",
     "linuxkit was cut off", "TMPDIR"),
    ('Linuxkit reported an error while creating the customer ramfs: "write: no space left on device"\n'
     + said("E48", "EIF building error."), HostError, "E48", "disk is full", "prune"),
    ("Docker error: UnsupportedEntryPoint\n" + said("E48", "EIF building error."), InputError, "E48",
     "neither CMD nor ENTRYPOINT", "CMD"),
    (said("E48", "EIF building error.", "Failed to create EIF image: SignArgsError"), InputError, "E48",
     "signing key", "both"),
    (said("E29", "Ioctl failure.", "Resource busy"), HostError, "E29", "device refused", "doctor"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stderr", "kind", "code", "cause", "fix"), FAILURES, ids=lambda value: value if value in FAULTS else ""
)
def test_the_root_code_comes_first_with_its_fix(
    replay: Replay, tmp_path: Path, stderr: str, kind: type[NecliError], code: str, cause: str, fix: str
) -> None:
    with pytest.raises(kind) as error:
        replay(stderr=stderr, status=39).build_enclave("a:b", tmp_path / "x.eif")
    assert error.value.code == code
    assert f"({code})" in error.value.message
    assert cause in error.value.message
    assert fix in str(error.value.hint)


def test_an_unknown_failure_keeps_the_end_of_what_was_said() -> None:
    error = failure_of("run-enclave", "one\ntwo\nthread 'main' panicked", 101)
    assert (error.code, "panicked" in error.message) == (None, True)


def test_a_code_that_is_new_is_kept(tmp_path: Path) -> None:
    assert failure_of("run-enclave", said("E99", "Something new."), 99).code == "E99"


@pytest.mark.parametrize(
    ("output", "kind", "cause"),
    [
        ("dial unix /var/run/docker.sock: connect: permission denied", HostError, "closed to you"),
        (
            "('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))",
            HostError,
            "isn't running",
        ),
        ("write /var/lib/docker/tmp/x: no space left on device", HostError, "disk is full"),
        ("toomanyrequests: You have reached your pull rate limit", ServiceFailed, "limits"),
        ("manifest unknown: manifest unknown", InputError, "doesn't know that image"),
        ("something else\nentirely", ServiceFailed, "entirely"),
    ],
)
def test_what_docker_says_is_understood(output: str, kind: type[NecliError], cause: str) -> None:
    error = docker_failure(output, doing="docker build")
    assert type(error) is kind
    assert cause in error.message


def test_a_nitro_cli_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="isn't installed"):
        NitroCli(str(tmp_path / "nitro-cli")).describe_enclaves()


def test_an_answer_that_is_not_json_is_shown(replay: Replay) -> None:
    with pytest.raises(ServiceFailed, match="oops"):
        replay("oops").describe_enclaves()


def test_a_process_left_behind_is_not_waited_for(replay: Replay) -> None:
    """run-enclave leaves the enclave's process, which may keep stderr open for days."""
    started = time.monotonic()
    assert replay([], script="sleep 100 &").describe_enclaves() == []
    assert time.monotonic() - started < 90


def test_the_environment_is_only_added_to(replay: Replay, tmp_path: Path) -> None:
    cli = replay([])
    NitroCli(cli.path, {"NITRO_CLI_BLOBS": "/blobs"}).describe_enclaves()
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert environment["NITRO_CLI_BLOBS"] == "/blobs"
    assert environment["PATH"] == os.environ["PATH"]


def test_another_enclave_of_that_name_is_a_conflict() -> None:
    assert isinstance(failure_of("run-enclave", "the enclave already exists", 1), Conflict)
