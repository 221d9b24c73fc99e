"""nitro-cli, the one tool that makes and runs enclaves: JSON on its stdout, chatter on its stderr."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from necli.errors import HostError, ServiceFailed
from necli.measurements import Measurements
from necli.nitro.faults import failure_of

_INSTALL_HINT = "run necli setup on the parent instance"
_BUILD_TIMEOUT_S = 3600.0
_RUN_TIMEOUT_S = 300.0
_ASK_TIMEOUT_S = 60.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Signing:
    """The key pair that an image is signed with; the certificate's digest becomes PCR8."""

    certificate: Path
    private_key: Path | str
    """A PEM file, or the ARN of a KMS key."""


@dataclass(frozen=True)
class NitroEnclave:
    """An enclave as run-enclave and describe-enclaves print it; the former says neither state nor flags."""

    name: str | None
    """None where it was made by a nitro-cli before 1.2, which knew no names."""
    enclave_id: str
    process_id: int
    cid: int
    cpu_ids: tuple[int, ...]
    memory_mib: int
    state: str = "RUNNING"
    debug: bool = False
    measurements: Measurements | None = None
    """What the image measures, even in debug mode, where the enclave attests zeros."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        measured = value.get("Measurements")
        return cls(
            name=value.get("EnclaveName"),
            enclave_id=str(value["EnclaveID"]),
            process_id=int(value["ProcessID"]),
            cid=int(value["EnclaveCID"]),
            cpu_ids=tuple(map(int, value["CPUIDs"])),
            memory_mib=int(value["MemoryMiB"]),
            state=str(value.get("State", "RUNNING")),
            debug="DEBUG_MODE" in str(value.get("Flags", "")),
            measurements=Measurements.from_json(measured) if measured else None,
        )


def _ignore(line: str) -> None:
    """Chatter that nobody wants."""


@dataclass(frozen=True)
class NitroCli:
    """Every call fails with the NecliError child that fits nitro-cli's root E-code, which is its `code`."""

    path: str = "nitro-cli"
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own: NITRO_CLI_BLOBS, DOCKER_HOST, TMPDIR."""

    def version(self) -> str:
        return self._run(["--version"], timeout=_ASK_TIMEOUT_S).strip().removeprefix("Nitro CLI ")

    def build_enclave(
        self,
        image: str,
        output: Path,
        *,
        name: str | None = None,
        version: str | None = None,
        metadata: Path | None = None,
        signing: Signing | None = None,
        on_line: Callable[[str], None] = _ignore,
    ) -> Measurements:
        """Make an enclave image of a local Docker image; `on_line` gets nitro-cli's chatter as it comes."""
        arguments = ["build-enclave", "--docker-uri", image, "--output-file", str(output)]
        arguments += ["--name", name] if name else []
        arguments += ["--version", version] if version else []
        arguments += ["--metadata", str(metadata)] if metadata else []
        if signing:
            arguments += ["--signing-certificate", str(signing.certificate)]
            arguments += ["--private-key", str(signing.private_key)]
        # Its names for ramdisks are fixed, so two builds that share a folder spoil each other.
        with tempfile.TemporaryDirectory(prefix="necli-eif-", dir=output.parent) as artifacts:
            value = self._ask(
                arguments, timeout=_BUILD_TIMEOUT_S, on_line=on_line, NITRO_CLI_ARTIFACTS=artifacts
            )
        return Measurements.from_json(value["Measurements"])

    def run_enclave(
        self,
        name: str,
        eif: Path,
        *,
        memory_mib: int,
        cpus: int,
        debug: bool = False,
        cid: int | None = None,
        on_line: Callable[[str], None] = _ignore,
    ) -> NitroEnclave:
        arguments = ["run-enclave", "--enclave-name", name, "--eif-path", str(eif)]
        arguments += ["--memory", str(memory_mib), "--cpu-count", str(cpus)]
        arguments += ["--enclave-cid", str(cid)] if cid is not None else []
        arguments += ["--debug-mode"] if debug else []
        value = self._ask(arguments, timeout=_RUN_TIMEOUT_S, on_line=on_line)
        return NitroEnclave.from_json({**value, "Flags": "DEBUG_MODE" if debug else "NONE"})

    def terminate_enclave(self, enclave_id: str) -> bool:
        """Whether it says that the enclave is gone."""
        value = self._ask(["terminate-enclave", "--enclave-id", enclave_id], timeout=_ASK_TIMEOUT_S)
        return bool(value["Terminated"])

    def describe_enclaves(self) -> list[NitroEnclave]:
        value = self._ask(["describe-enclaves"], timeout=_ASK_TIMEOUT_S)
        return [NitroEnclave.from_json(enclave) for enclave in value]

    def describe_eif(self, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = self._ask(["describe-eif", "--eif-path", str(path)], timeout=_RUN_TIMEOUT_S)
        return value

    def console_argv(self, enclave_id: str) -> list[str]:
        """The command that prints a debug-mode enclave's console until the enclave ends."""
        return [self.path, "console", "--enclave-id", enclave_id]

    def _ask(
        self,
        arguments: list[str],
        *,
        timeout: float,
        on_line: Callable[[str], None] = _ignore,
        **environment: str,
    ) -> Any:
        answer = self._run(arguments, timeout=timeout, on_line=on_line, **environment)
        try:
            return json.loads(answer)
        except ValueError as exc:
            raise ServiceFailed(
                f"nitro-cli {arguments[0]} answered with {answer[:200]!r}, which isn't JSON",
                hint="install the nitro-cli that necli setup installs",
            ) from exc

    def _run(
        self,
        arguments: list[str],
        *,
        timeout: float,
        on_line: Callable[[str], None] = _ignore,
        **environment: str,
    ) -> str:
        # The reason for a failed build stands only in the backtrace.
        full = {**os.environ, **self.environment, "BACKTRACE": "1", **environment}
        # Files, not pipes: what run-enclave leaves behind keeps them open, and nobody waits for their end.
        with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as chatter:
            process = self._start(arguments, full, answer, chatter)
            try:
                _follow(process, chatter, on_line, timeout)
            except subprocess.TimeoutExpired as exc:
                message = f"nitro-cli {arguments[0]} wasn't done after {timeout:g} s"
                raise ServiceFailed(message, hint="run necli doctor, then try again") from exc
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                raise failure_of(arguments[0], _content(chatter), process.returncode)
            return _content(answer)

    def _start(
        self, arguments: list[str], environment: Mapping[str, str], answer: IO[bytes], chatter: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [self.path, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=chatter,
            )
        except FileNotFoundError as exc:
            raise HostError(f"{self.path} isn't installed", hint=_INSTALL_HINT) from exc
        except OSError as exc:
            raise HostError(f"can't start {self.path}: {exc.strerror}", hint=_INSTALL_HINT) from exc


def _follow(
    process: subprocess.Popen[bytes], chatter: IO[bytes], on_line: Callable[[str], None], timeout: float
) -> None:
    """Wait for the end, and pass on each line of the chatter as it comes."""
    deadline, told = time.monotonic() + timeout, 0
    while process.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
        lines = _content(chatter).split("\n")[:-1]
        for line in lines[told:]:
            on_line(line)
        told = len(lines)
        if process.returncode is None and time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, timeout)


def _content(file: IO[bytes]) -> str:
    """From its start, without moving the position at which the process writes."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
