"""What identifies a model: a digest over the names and contents of its files, and over nothing else."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from necli.errors import MeasurementMismatch
from necli.home import host_errors


@dataclass(frozen=True)
class FileDigest:
    sha384: str
    size: int


@dataclass(frozen=True)
class FolderDigest:
    files: Mapping[str, FileDigest]
    """By path in the folder, with forward slashes."""

    @property
    def sha384(self) -> str:
        """Over the canonical JSON of {path: SHA-384 of the content}."""
        content = {path: file.sha384 for path, file in self.files.items()}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha384(canonical.encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


def digest_folder(folder: Path) -> FolderDigest:
    """:raises MeasurementMismatch: it holds something that is neither a file nor a folder."""
    with host_errors(f"can't read {folder}"):
        files = [path for path in sorted(folder.rglob("*")) if not _is_folder(path)]
        return FolderDigest(
            {
                path.relative_to(folder).as_posix(): FileDigest(
                    digest_of(path, "sha384"), path.stat().st_size
                )
                for path in files
            }
        )


def digest_of(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _is_folder(path: Path) -> bool:
    mode = path.lstat().st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise MeasurementMismatch(f"{path} is neither a file nor a folder, and a model has nothing else")
    return stat.S_ISDIR(mode)
