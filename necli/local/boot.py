"""What boots a local enclave: locks this process in, then runs the image's module in it.

Run by the hypervisor as `python -I -S -B -u boot.py JSON`, in the unpacked image's folder. It has the
standard library only; from here on, modules come from the image and from the measured distributions.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_MAX_OPEN_FILES = 4096
_MAX_FILE_BYTES = 64 << 20
"""Of what the enclave may write: its console, in debug mode."""

_libc = ctypes.CDLL(None, use_errno=True)
_NOTHING = (ctypes.c_ulong(0),) * 3


def leave_the_network() -> str | None:
    """Move to a network namespace without any interface; None, or why this kernel refuses."""
    user, group = os.getuid(), os.getgid()
    if _unshare(_CLONE_NEWUSER | _CLONE_NEWNET) is None:
        # The same ids as outside, so that files keep their owner's name.
        for name, value in (
            ("setgroups", "deny"),
            ("gid_map", f"{group} {group} 1"),
            ("uid_map", f"{user} {user} 1"),
        ):
            Path("/proc/self", name).write_text(value, encoding="ascii")
        return None
    return _unshare(_CLONE_NEWNET)


def die_with(parent: int) -> None:
    """End when the hypervisor ends, however that happens."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the hypervisor is gone")


def drop_privileges() -> None:
    """No capability is left, not even one that root could use to go back to the host's network."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), *_NOTHING) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def limit_resources(data_bytes: int, cpus: list[int]) -> None:
    for kind, limit in (
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, min(_MAX_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
    ):
        resource.setrlimit(kind, (limit, limit))
    os.sched_setaffinity(0, cpus)


def main(settings: dict[str, Any]) -> None:
    # Namespaces first: a change of credentials would undo the death signal.
    refusal = leave_the_network()
    die_with(settings["parent"])
    drop_privileges()
    limit_resources(settings["memory_bytes"], settings["cpus"])
    os.umask(0o077)
    with os.fdopen(settings["report_fd"], "w") as report:
        json.dump({"network_refusal": refusal}, report)
    root = Path.cwd()
    sys.path[:] = [*sys.path, str(root / "payload"), str(root / "site")]
    sys.argv = [settings["module"]]
    runpy.run_module(settings["module"], run_name="__main__", alter_sys=True)


def _unshare(flags: int) -> str | None:
    return None if _libc.unshare(flags) == 0 else os.strerror(ctypes.get_errno())


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), *_NOTHING) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
