"""A short run of each fuzz target; `make fuzz` does the long one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_bytes_meet_a_declared_error_soon_and_leave_nothing_in_memory(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--count", "2000", name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
