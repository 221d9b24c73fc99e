"""How much memory and how many CPUs an enclave needs, as nitro-cli and the kernel count them."""

from __future__ import annotations

from pathlib import Path

from necli.errors import UsageError

MODEL_PEAK_MIB = 1331
"""What TensorFlow with the embedded model was measured to take at most, on a large photo (1.3 GiB)."""
_EIF_FACTOR = 4
"""nitro-cli refuses less than four times the image's size (E26)."""


def least_memory_mib(eif: Path) -> int:
    """What nitro-cli asks of an enclave that boots this image."""
    return -(-_EIF_FACTOR * eif.stat().st_size >> 20)


def advised_memory_mib(eif: Path, *, page_mib: int = 2) -> int:
    """Enough for nitro-cli, and for the unpacked image with the model at its peak beside it.

    In whole huge pages: the kernel gives nothing else.
    """
    size_mib = -(-eif.stat().st_size >> 20)
    return round_to_pages(max(least_memory_mib(eif), size_mib + MODEL_PEAK_MIB), page_mib)


def round_to_pages(mib: int, page_mib: int) -> int:
    return -(-mib // page_mib) * page_mib


def check_memory(eif: Path, memory_mib: int) -> None:
    """:raises UsageError: too little, before nitro-cli has loaded the image to find that out."""
    least = least_memory_mib(eif)
    if memory_mib < least:
        raise UsageError(
            f"{memory_mib} MiB are too little: {eif.name} needs {least}, four times its size",
            hint=f"give it --memory {advised_memory_mib(eif)}",
            code="E26",
        )


def check_cpus(cpus: int, threads_per_core: int) -> None:
    """:raises UsageError: half a core; its other half would stay with the parent, who could listen."""
    if cpus % threads_per_core:
        raise UsageError(
            f"{cpus} CPUs aren't whole cores: each has {threads_per_core} threads here",
            hint=f"give it --cpus {cpus + threads_per_core - cpus % threads_per_core}",
            code="E32",
        )
