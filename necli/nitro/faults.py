"""What nitro-cli's output says of a failure, with its cause first and the fix that goes with it.

nitro-cli prints one E-code a layer: the process that failed prints the cause, then its parent prints that it
lost the connection. Codes as in aws-nitro-enclaves-cli 1.5.2; what users met with each, from its threads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from necli.errors import (
    Conflict,
    HostError,
    InputError,
    MeasurementMismatch,
    NecliError,
    NotReady,
    ServiceFailed,
    UsageError,
)

_CODE = re.compile(r"\[ (E\d\d) \] *(.*)")
_DETAIL = re.compile(r"^ {4}(Failed to|Could not) .*: (.*)$|^(File: .*)$", re.MULTILINE)
_FOLLOWS_FROM_ANOTHER = frozenset({"E08", "E09", "E11", "E37", "E38", "E39", "E40", "E41"})
_TAIL_LINES = 8


@dataclass(frozen=True)
class Fault:
    """A known failure: whose fault it is, in what words, and what mends it."""

    error: type[NecliError]
    cause: str
    fix: str


_SETUP = "run necli setup on the parent instance"
_DOCTOR = "run necli doctor"
_REBUILD = "run necli build"

FAULTS: Mapping[str, Fault] = {
    "E01": Fault(
        UsageError, "nitro-cli misses an argument", "install the nitro-cli that necli setup installs"
    ),
    "E02": Fault(
        UsageError, "two arguments contradict each other", "name CPUs by count or by id, not by both"
    ),
    "E03": Fault(UsageError, "an argument isn't a number", "give memory in MiB and CPUs as whole numbers"),
    "E05": Fault(
        HostError, "the enclave's process can't be started", "free memory and processes; necli doctor"
    ),
    "E07": Fault(HostError, "/run/nitro_enclaves can't be read", _SETUP),
    "E11": Fault(ServiceFailed, "the enclave's process doesn't answer", "see /var/log/nitro_enclaves"),
    "E18": Fault(HostError, "the log belongs to another user", "chown it to root:ne, as necli setup does"),
    "E19": Fault(
        HostError, "a file can't be opened", "check that you are in the group ne, then log in again"
    ),
    "E20": Fault(UsageError, "a CPU is named twice", "name each CPU once"),
    "E21": Fault(
        UsageError, "that CPU isn't in the pool", "choose by count, or run necli setup with more CPUs"
    ),
    "E22": Fault(
        HostError, "the CPU pool is too small", "stop another enclave, or necli setup with more CPUs"
    ),
    "E24": Fault(
        HostError, "the CPU pool's file can't be understood", "restart nitro-enclaves-allocator.service"
    ),
    "E26": Fault(
        UsageError, "an enclave needs four times its image's size", "raise --memory to what the message names"
    ),
    "E27": Fault(
        HostError, "too little memory is set aside", "stop another enclave, or necli setup with more memory"
    ),
    "E28": Fault(HostError, "the kernel can't make an enclave", _DOCTOR),
    "E29": Fault(HostError, "the Nitro Enclaves device refused", _DOCTOR),
    "E31": Fault(HostError, "the memory regions are refused", "set aside 1 GiB pages: necli setup"),
    "E32": Fault(
        HostError, "a CPU is refused", "give whole cores: an even count where there is hyper-threading"
    ),
    "E33": Fault(ServiceFailed, "the enclave can't be started", _DOCTOR),
    "E35": Fault(HostError, "the image doesn't fit into the huge pages, or is damaged", _DOCTOR),
    "E36": Fault(
        ServiceFailed,
        "the image booted and ended before it was ready",
        "run it with --debug-mode and look with necli enclave console",
    ),
    "E39": Fault(ServiceFailed, "the enclave's process ended", "see /var/log/nitro_enclaves"),
    "E40": Fault(NotReady, "there is no such enclave", "see necli enclave list"),
    "E42": Fault(HostError, "the enclave's memory can't be mapped", "see its huge pages with necli doctor"),
    "E44": Fault(NotReady, "there is no console", "run the enclave with --debug-mode"),
    "E48": Fault(ServiceFailed, "the image can't be built", _DOCTOR),
    "E49": Fault(ServiceFailed, "Docker can't build the image", _DOCTOR),
    "E50": Fault(ServiceFailed, "Docker doesn't have the image", _REBUILD),
    "E51": Fault(HostError, "nitro-cli has no folder for its artifacts", "set HOME or NITRO_CLI_ARTIFACTS"),
    "E52": Fault(
        HostError, "nitro-cli's blobs are missing", "install aws-nitro-enclaves-cli-devel: necli setup"
    ),
    "E58": Fault(NotReady, "there is no enclave of that name", "see necli enclave list"),
    "E59": Fault(InputError, "the signing certificate isn't valid", "give a certificate that is valid today"),
    "E60": Fault(
        InputError, "the signing key or certificate can't be used", "give a P-384 key and its certificate"
    ),
}

_NOT_AN_IMAGE = Fault(InputError, "the file isn't a valid image", "name an .eif file, or build it anew")
_BLOBS = Fault(
    HostError, "nitro-cli's blobs are missing", "install aws-nitro-enclaves-cli-devel: necli setup"
)
_PATTERNS: tuple[tuple[re.Pattern[str], Fault], ...] = tuple(
    (re.compile(pattern, re.DOTALL), fault)
    for pattern, fault in (
        (
            r"[Nn]o space left on device",
            Fault(HostError, "the disk is full", "free some with docker system prune, or move TMPDIR"),
        ),
        (
            r"permission denied.*docker\.sock|docker\.sock.*[Pp]ermission denied|PermissionDenied",
            Fault(HostError, "Docker's socket is closed to you", "join the group docker, then log in again"),
        ),
        (
            r"ConnectionError|Cannot connect to the Docker daemon|SocketNotFound|docker\.sock.*refused",
            Fault(HostError, "the Docker daemon isn't running", "sudo systemctl enable --now docker"),
        ),
        (
            r"ramfs: .*(killed|out of memory|cannot allocate)|Create outputs:\s*(\\n)?\"?\s*($|\n)",
            Fault(
                HostError,
                "linuxkit was cut off: too little memory, or /tmp is too small",
                "free memory (four times the image), or point TMPDIR to a disk with room",
            ),
        ),
        (
            r"FileNotFoundError|Connection aborted.*(No such file|ConnectionRefused)",
            Fault(HostError, "the Docker daemon isn't running", "sudo systemctl enable --now docker"),
        ),
        (
            r"python3\.11.*(not found|no such file)|No module named pip",
            Fault(
                InputError, "the base image has no Python 3.11 with pip", "name one that has: --base-image"
            ),
        ),
        (
            r"THESE PACKAGES DO NOT MATCH THE HASHES",
            Fault(MeasurementMismatch, "a wheel isn't the one that was locked", "remove it and build again"),
        ),
        (
            r"No matching distribution found|NewConnectionError|NameResolutionError|Temporary failure in",
            Fault(
                ServiceFailed, "the package index has no such wheel, or can't be reached", "check the network"
            ),
        ),
        (
            r"toomanyrequests|rate limit",
            Fault(ServiceFailed, "the registry limits how often it is asked", "log in with docker login"),
        ),
        (
            r"manifest unknown|pull access denied|repository does not exist",
            Fault(InputError, "the registry doesn't know that image", "check --base-image and its digest"),
        ),
        (
            r"UnsupportedEntryPoint",
            Fault(InputError, "the Docker image has neither CMD nor ENTRYPOINT", "give its Dockerfile a CMD"),
        ),
        (r"(InitPath|NsmPath|KernelPath|LinuxkitPath)Error|/(cmdline|bzImage|Image)'", _BLOBS),
        (
            r"ArtifactsPrefixError",
            Fault(HostError, "nitro-cli's folder for artifacts is gone", "run necli build again"),
        ),
        (
            r"SignArgsError|SignImageError",
            Fault(
                InputError, "the signing key or certificate can't be used", "give both, of the same key pair"
            ),
        ),
        (
            r"UnsupportedArchError",
            Fault(InputError, "the Docker image is of another architecture", "build it on this machine"),
        ),
        (
            r"[Rr]esource busy|already (exists|running)|EBUSY",
            Fault(Conflict, "an enclave of that name or CID runs already", "see necli enclave list"),
        ),
    )
)


def failure_of(command: str, output: str, status: int) -> NecliError:
    """The error that `output`, what nitro-cli wrote to stderr, stands for; its `code` is the root E-code."""
    found = _CODE.findall(output)
    code, sentence = next(
        ((code, text) for code, text in found if code not in _FOLLOWS_FROM_ANOTHER),
        found[0] if found else (None, ""),
    )
    fault = _NOT_AN_IMAGE if (command, code) == ("describe-eif", "E35") else _known(code, output)
    if fault is None:
        tail = "".join(f"\n  {line}" for line in output.strip().splitlines()[-_TAIL_LINES:])
        error = ServiceFailed if status > 0 else HostError
        return error(f"nitro-cli {command} ended with status {status}{tail}", hint=_DOCTOR, code=code)
    details = "; ".join(dict.fromkeys(_details(sentence, output)))
    label = f" ({code})" if code else ""
    message = f"nitro-cli {command}{label}: {fault.cause}" + (f": {details}" if details else "")
    return fault.error(message, hint=fault.fix, code=code)


def docker_failure(output: str, *, doing: str = "Docker") -> NecliError:
    """The error that Docker's, or pip's, output stands for."""
    tail = "".join(f"\n  {line}" for line in output.strip().splitlines()[-_TAIL_LINES:])
    fault = next((fault for pattern, fault in _PATTERNS if pattern.search(output)), None)
    if fault is None:
        return ServiceFailed(f"{doing} failed{tail}", hint=_DOCTOR)
    return fault.error(f"{doing}: {fault.cause}{tail}", hint=fault.fix)


def _known(code: str | None, output: str) -> Fault | None:
    """What the text says is nearer to the cause than a code for a whole layer."""
    said = next((fault for pattern, fault in _PATTERNS if pattern.search(output)), None)
    if code in (None, "E19", "E48", "E49", "E50") and said:
        return said
    return FAULTS.get(code) if code else None


def _details(sentence: str, output: str) -> list[str]:
    numbers = [sentence.strip()] if re.search(r"\d+ MB|`", sentence) else []
    return numbers + ["".join(groups[1:]).strip() for groups in _DETAIL.findall(output)][:2]
