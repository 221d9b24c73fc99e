"""The commands that there are, and where each is written; none is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.main import get_group


@dataclass(frozen=True)
class Part:
    """Where a command, or the group of commands of a noun, is written."""

    module: str
    summary: str
    """Its line in `necli --help`, which imports none of the modules; a test holds both together."""
    is_noun: bool = False


SECTIONS = {
    "Everything at once": {
        "demo": Part("demo", "The whole life of an encrypted photo, from setup to proof."),
        "up": Part("lifecycle", "Setup, build, run and policy update, as far as needed."),
        "down": Part("lifecycle", "Stop the enclaves and the services; nothing is removed."),
        "status": Part("lifecycle", "What there is, and what to do next."),
        "doctor": Part("lifecycle", "Look for what stands in the way, and say what helps."),
        "cleanup": Part("lifecycle", "Remove everything; asks before it destroys a key."),
    },
    "Step by step": {
        "setup": Part("lifecycle", "Start the services and make the key."),
        "build": Part("lifecycle", "Build the enclave image, and measure it."),
        "policy": Part("policy", "The key policy, and binding it to the built image.", is_noun=True),
        "encrypt": Part("data", "Encrypt an image for the enclave, as the data owner."),
        "detect": Part("data", "Find objects in photos, inside the enclave."),
        "prove": Part("prove", "Show that the parent instance can't decrypt."),
    },
    "Parts": {
        "model": Part("model", "List, fetch and check object-detection models.", is_noun=True),
        "enclave": Part("enclave", "Start, stop and look at enclaves.", is_noun=True),
        "proxy": Part("proxy", "The parent's proxy, which lets an enclave reach KMS.", is_noun=True),
        "eif": Part("eif", "Look into enclave image files.", is_noun=True),
        "attest": Part("attest", "Fetch an attestation document and verify it, step by step."),
        "receipt": Part("receipt", "Verify what an enclave answered, and open what it sealed.", is_noun=True),
        "stack": Part("stack", "The nitro target's CloudFormation stack; check a template.", is_noun=True),
    },
}


class Commands(Mapping[str, Any]):
    """The commands by name; each is imported when it is asked for."""

    def __init__(self) -> None:
        self._parts = {name: part for parts in SECTIONS.values() for name, part in parts.items()}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, self._parts[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _load(name: str, part: Part) -> Any:
    frame = typer.Typer(rich_markup_mode=None, add_completion=False)
    frame.add_typer(import_module(f"necli.cli.{part.module}").app, name=name if part.is_noun else None)
    return get_group(frame).commands[name]
