"""The allocator's settings: two lines of a YAML file whose comments and other lines stay as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

import yaml

from necli.errors import InputError

PATH = "etc/nitro_enclaves/allocator.yaml"


@dataclass(frozen=True)
class AllocatorSettings:
    memory_mib: int
    cpu_count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises InputError: not one memory_mib and one cpu_count at the top level."""
        content = _parsed(text)
        if "cpu_pool" in content:
            raise InputError(
                f"/{PATH} names the enclaves' CPUs one by one (cpu_pool)",
                hint="remove its line cpu_pool: necli sets cpu_count, which can't stand beside it",
            )
        try:
            return cls(int(content["memory_mib"]), int(content["cpu_count"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(f"/{PATH} has no usable {exc}", hint=_HINT) from exc

    def written_into(self, text: str) -> str:
        """`text` with these values and nothing else changed.

        :raises InputError: it isn't a file in which that can be done.
        """
        AllocatorSettings.parse(text)
        before = _parsed(text)
        for name, value in (("memory_mib", self.memory_mib), ("cpu_count", self.cpu_count)):
            text, count = re.subn(rf"(?m)^({name}:[ \t]*)\d+(?=[ \t]*(?:#.*)?\r?$)", rf"\g<1>{value}", text)
            if count != 1:
                raise InputError(f"/{PATH} has {count} lines {name}: with a number", hint=_HINT)
        if _parsed(text) != {**before, "memory_mib": self.memory_mib, "cpu_count": self.cpu_count}:
            raise InputError(f"/{PATH} can't be edited line by line", hint=_HINT)
        return text


_HINT = f"restore it from its package: sudo rm /{PATH}, then dnf reinstall aws-nitro-enclaves-cli"


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise InputError(f"/{PATH} isn't valid YAML: {exc}", hint=_HINT) from exc
    if not isinstance(content, dict):
        raise InputError(f"/{PATH} isn't a list of settings", hint=_HINT)
    return content
