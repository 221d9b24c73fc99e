"""An Amazon Linux parent instance for tests: a root tree, and the programs that change it.

`make_instance` makes it. Each program then is this file, run with the root tree's path and its own name. It
notes its call in `calls`, fails with the message in `fail/<name>` where there is one, else does to the tree
what the real one does to the machine. The allocator reports success even where the kernel gave less, as its
issue tracker says.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import sys
from pathlib import Path

PROGRAMS = (
    "rpm",
    "dnf",
    "yum",
    "amazon-linux-extras",
    "systemctl",
    "usermod",
    "install",
    "nitro-cli",
    "sudo",
)
ALLOCATOR_YAML = """\
---
# Enclave configuration file.
#
# How much memory to allocate for enclaves (in MiB).
memory_mib: 512
#
# How many CPUs to reserve for enclaves.
cpu_count: 2  # whole cores
#
# Alternatively, the exact CPUs to be reserved for the enclave can be explicitly
# configured by using `cpu_pool` (like below), instead of `cpu_count`.
# cpu_pool: 2,3,6-9
"""
_PAGES = "sys/devices/system/node/node0/hugepages/hugepages-2048kB"


def make_instance(folder: Path, *, version: str = "2023") -> tuple[Path, Path]:
    """Its root tree and the folder of its programs."""
    root, programs = folder / "root", folder / "bin"
    for path, text in {
        "etc/os-release": f'ID="amzn"\nVERSION_ID="{version}"\nPRETTY_NAME="Amazon Linux {version}"\n',
        "etc/group": "root:x:0:\nec2-user:x:1000:\n",
        f"{_PAGES}/nr_hugepages": "0\n",
        f"{_PAGES}/free_hugepages": "0\n",
        "sys/module/nitro_enclaves/parameters/ne_cpus": "\n",
        "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,4\n",
        "sys/devices/virtual/dmi/id/board_asset_tag": "i-0123456789abcdef0\n",
        "dev/nitro_enclaves": "",
        "enclaves": "[]",
    }.items():  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    programs.mkdir()
    for name in PROGRAMS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {__file__} {root} {name} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return root, programs


def run(root: Path, name: str, arguments: list[str]) -> int:
    with (root / "calls").open("a") as calls:
        calls.write(" ".join([name, *arguments]) + "\n")
    failure = root / "fail" / name
    if failure.exists():
        sys.stderr.write(failure.read_text())
        return 1
    return _BEHAVIOUR[name](root, arguments)


def _rpm(root: Path, arguments: list[str]) -> int:
    return 0 if arguments[-1] in _lines(root / "packages") else 1


def _package_manager(root: Path, arguments: list[str]) -> int:
    for package in (argument for argument in arguments if argument not in ("install", "-y")):
        _append(root / "packages", package)
        if package == "aws-nitro-enclaves-cli":
            (root / "etc/nitro_enclaves").mkdir(parents=True, exist_ok=True)
            (root / "etc/nitro_enclaves/allocator.yaml").write_text(ALLOCATOR_YAML)
            _append(root / "etc/group", "ne:x:990:")
        if package == "docker":
            _append(root / "etc/group", "docker:x:991:")
    return 0


def _usermod(root: Path, arguments: list[str]) -> int:
    _, groups, user = arguments
    known = {line.partition(":")[0] for line in _lines(root / "etc/group")}
    for group in groups.split(","):
        if group not in known:
            sys.stderr.write(f"usermod: group '{group}' does not exist\n")
            return 6
    text = (root / "etc/group").read_text()
    for group in groups.split(","):
        text = re.sub(
            rf"(?m)^({group}:x:\d+:)(.*)$",
            lambda found: found[1] + ",".join(filter(None, [found[2], user])),
            text,
        )
    (root / "etc/group").write_text(text)
    return 0


def _systemctl(root: Path, arguments: list[str]) -> int:
    command, service = arguments[0], arguments[-1]
    if command in ("is-active", "is-enabled"):
        return 0 if f"{command} {service}" in _lines(root / "services") else 3
    _append(root / "services", f"is-active {service}")
    if command == "enable":
        _append(root / "services", f"is-enabled {service}")
    if service.startswith("nitro-enclaves-allocator"):
        _allocate(root)
    return 0


def _allocate(root: Path) -> None:
    text = (root / "etc/nitro_enclaves/allocator.yaml").read_text()
    wanted = {name: int(value) for name, value in re.findall(r"(?m)^(memory_mib|cpu_count): *(\d+)", text)}
    most = root / "most_mib"
    memory = min(wanted["memory_mib"], int(most.read_text()) if most.exists() else 1 << 20)
    for file in ("nr_hugepages", "free_hugepages"):
        (root / _PAGES / file).write_text(f"{memory // 2}\n")
    pool = ",".join(str(cpu) for cpu in (1, 5, 2, 6)[: wanted["cpu_count"]])
    (root / "sys/module/nitro_enclaves/parameters/ne_cpus").write_text(pool + "\n")


def _install(root: Path, arguments: list[str]) -> int:
    shutil.copyfile(arguments[-2], arguments[-1])
    return 0


def _nitro_cli(root: Path, arguments: list[str]) -> int:
    enclaves = json.loads((root / "enclaves").read_text())
    match arguments[0]:
        case "describe-enclaves":
            print(json.dumps(enclaves))
        case "run-enclave":
            given = dict(zip(arguments[1::2], arguments[2::2], strict=False))
            made = {
                "EnclaveName": given["--enclave-name"],
                "EnclaveID": f"i-0123456789abcdef0-enc{len(enclaves):016x}",
                "ProcessID": 7077,
                "EnclaveCID": 16 + len(enclaves),
                "NumberOfCPUs": int(given["--cpu-count"]),
                "CPUIDs": [1, 5],
                "MemoryMiB": int(given["--memory"]),
            }
            measured = {
                "HashAlgorithm": "Sha384 { ... }",
                "PCR0": "0a" * 48,
                "PCR1": "1b" * 48,
                "PCR2": "2c" * 48,
            }
            flags = "DEBUG_MODE" if "--debug-mode" in arguments else "NONE"
            more = {"State": "RUNNING", "Flags": flags, "Measurements": measured}
            if not (root / "dies").exists():
                (root / "enclaves").write_text(json.dumps([*enclaves, {**made, **more}]))
            print("Started enclave with enclave-cid: 16", file=sys.stderr)
            print(json.dumps(made))
        case "terminate-enclave":
            left = [enclave for enclave in enclaves if enclave["EnclaveID"] != arguments[-1]]
            (root / "enclaves").write_text(json.dumps(left))
            print(json.dumps({"EnclaveID": arguments[-1], "Terminated": True}))
        case "console":
            print("[    0.000000] Linux version 4.14.256\nnecli: ready")
    return 0


def _sudo(root: Path, arguments: list[str]) -> int:
    return run(root, arguments[1], arguments[2:])


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


_BEHAVIOUR = {
    "rpm": _rpm,
    "dnf": _package_manager,
    "yum": _package_manager,
    "amazon-linux-extras": _package_manager,
    "systemctl": _systemctl,
    "usermod": _usermod,
    "install": _install,
    "nitro-cli": _nitro_cli,
    "sudo": _sudo,
}

if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
