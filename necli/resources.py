"""Finds the folders that ship beside the package, in a wheel and in an editable install alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: str) -> Path:
    """`templates`, `cloudformation` or `enclave_payload`, as a folder on disk."""
    shipped = _PACKAGE / "_data" / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / name
