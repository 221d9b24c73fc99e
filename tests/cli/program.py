"""necli as a user runs it: the installed program, in processes of its own, with a state folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect

NECLI = Path(sys.executable).with_name("necli")
_OURS = ("NECLI_", "AWS_", "NO_COLOR", "FORCE_COLOR")


@dataclass(frozen=True)
class Necli:
    home: Path
    folder: Path
    """Where it is called."""
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return {**clean, "NECLI_HOME": str(self.home), "COLUMNS": "80", **self.env}

    def run(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [NECLI, *map(str, arguments)],
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
        )

    def ok(self, *arguments: str | Path) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def error(self, *arguments: str | Path) -> tuple[int, dict[str, str]]:
        """Exit code and error of a command that must fail, after a look at how it is told to people."""
        done = self.run(*arguments, "--json")
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        answer = json.loads(done.stdout)
        error = answer["error"] if "error" in answer else answer["results"][0]["error"]
        assert f"error: {error['message']}" in done.stderr or error["message"] in done.stderr
        return done.returncode, error

    def terminal(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> pexpect.spawn[str]:
        """The same on a real terminal of 80 columns."""
        return pexpect.spawn(
            str(NECLI),
            [str(argument) for argument in arguments],
            cwd=str(self.folder),
            env={**self.environment, "TERM": "xterm-256color", **(env or {})},  # type: ignore[arg-type]
            dimensions=(40, 80),
            encoding="utf-8",
            timeout=60,
        )
