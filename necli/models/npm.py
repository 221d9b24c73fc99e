"""Gets npm packages, with the npm client that the user has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from necli.errors import HostError, ServiceFailed
from necli.progress import Progress

_PATIENCE_S: Final = 900


def npm_pack(package: str, folder: Path, progress: Progress) -> Path:
    """Fetch the package's tarball into the empty folder `folder`; nothing in it is run.

    :raises HostError: npm isn't installed.
    :raises ServiceFailed: npm could not get it; the message is npm's own.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise HostError(
            "npm isn't installed, and the model comes in an npm package",
            hint=f"install Node.js, or fetch the package: necli model pull --from-file {_tarball(package)}",
        )
    argv = [npm, "pack", package, "--pack-destination", str(folder), "--ignore-scripts", "--no-progress"]
    with progress.step(f"Fetch {package}") as step:
        try:
            done = subprocess.run(
                argv,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
            )
        except subprocess.TimeoutExpired as exc:
            raise ServiceFailed(f"npm did not get {package} in {_PATIENCE_S} s", hint=_hint(package)) from exc
        tarballs = list(folder.glob("*.tgz"))
        if done.returncode != 0 or len(tarballs) != 1:
            raise ServiceFailed(f"npm could not get {package}: {_reason(done.stderr)}", hint=_hint(package))
        step.note(f"{tarballs[0].stat().st_size / 1e6:.1f} MB with npm pack")
    return tarballs[0]


def _tarball(package: str) -> str:
    """As `npm pack` names it: @vladmandic/human@3.3.6 is vladmandic-human-3.3.6.tgz."""
    name, _, version = package.rpartition("@")
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def _hint(package: str) -> str:
    return f"try npm pack {package} yourself, then necli model pull --from-file {_tarball(package)}"


def _reason(output: str) -> str:
    lines = [
        line.removeprefix("npm ").partition(" ")[2] for line in output.splitlines() if "npm e" in line.lower()
    ]
    told = [line for line in lines if line and not line.startswith("A complete log")]
    return "; ".join(told[:2]) or output.strip()[-200:] or "it said nothing"
