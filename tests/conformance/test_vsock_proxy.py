"""AWS's own vsock-proxy with our allow-list. It is in no package index, so it must be on PATH beforehand.

On a parent instance the package aws-nitro-enclaves-cli brings it.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from necli.nitro.proxy import NitroProxy

pytestmark = pytest.mark.conformance


@pytest.fixture
def proxy(tmp_path: Path) -> NitroProxy:
    program = shutil.which("vsock-proxy")
    if program is None:
        pytest.skip("AWS's vsock-proxy isn't on PATH")
    about = subprocess.run([program, "--help"], capture_output=True, text=True)
    if "num_workers" not in about.stdout:
        pytest.skip(f"{program} is another program of that name")
    return NitroProxy(tmp_path / "proxy", "eu-central-1")


def test_it_refuses_a_host_that_is_not_on_our_list(proxy: NitroProxy) -> None:
    program, *arguments = proxy._command()
    arguments[1] = "localhost"
    refused = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "Error at checking the allowlist" in refused.stderr
