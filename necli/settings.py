"""What a command is told besides its own options, and where each value comes from.

Precedence is flag, environment, file, default: Typer does the first two and the last, and takes the file's
values as its default map. The file is `necli.toml`:

    region = "eu-central-1"

    [detect]
    min_score = 0.5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from necli.errors import UsageError
from necli.home import Home, host_errors

CONFIG_FILE = "necli.toml"
DEFAULT_TARGET = "local"
DEFAULT_REGION = "eu-central-1"
TARGETS = ("local", "nitro")


@dataclass(frozen=True)
class Settings:
    """What every command knows."""

    home: Home
    target: str
    region: str
    json: bool
    """Results as JSON on stdout, everything else on stderr."""


def find_home(environ: Mapping[str, str], state: Path | None = None) -> Home:
    """The state folder (`state`, else XDG's) and XDG's cache folder, in absolute terms."""
    user = Path(environ.get("HOME") or Path.home())
    xdg_state = Path(environ.get("XDG_STATE_HOME") or user / ".local/state")
    xdg_cache = Path(environ.get("XDG_CACHE_HOME") or user / ".cache")
    return Home(state=(state or xdg_state / "necli").absolute(), cache=(xdg_cache / "necli").absolute())


def read_config(path: Path, *, required: bool = False) -> dict[str, Any]:
    """The options that a file sets, by command; an underscore or a hyphen in a name is the same.

    :raises UsageError: it isn't TOML, or isn't there and must be.
    """
    if not path.exists():
        if required:
            raise UsageError(f"there is no file {path}", hint="check --config")
        return {}
    import tomllib

    try:
        with host_errors(f"can't read {path}"):
            raw = path.read_bytes()
        return _underscored(tomllib.loads(raw.decode()))
    except ValueError as exc:
        raise UsageError(f"{path} isn't valid TOML: {exc}", hint="correct or remove the file") from exc


def _underscored(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.replace("-", "_"): _underscored(value) if isinstance(value, dict) else value
        for name, value in table.items()
    }
