"""Stands in for linuxkit, for the two calls that nitro-cli makes of it: a ramdisk of files, or of an image.

    python -m tests.conformance.stand_in_linuxkit build [--docker] --name PREFIX --format … --no-sbom YAML

As linuxkit does, it exports the image's container, leaves out what Docker adds to it, and keeps the times
that its files have, but for the folder that Docker touches each time.
"""

from __future__ import annotations

import argparse
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import docker
import yaml

from tests.eif.ramdisks import END, member

ADDED_BY_DOCKER = {
    ".dockerenv",
    "dev",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "sys",
}
TOUCHED_BY_DOCKER = "etc"
KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["build"])
    parser.add_argument("--docker", action="store_true")
    parser.add_argument("--no-sbom", action="store_true", required=True)
    parser.add_argument("--format", choices=["kernel+initrd-nogz"], required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("config", type=Path)
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text())
    with open(f"{options.name}-initrd.img", "wb") as ramdisk:
        for image in config.get("init", ()):
            for part in of_image(image, config["prefix"]):
                ramdisk.write(part)
        for file in config["files"]:
            ramdisk.write(of_file(file))
        ramdisk.write(END)


def of_image(image: str, prefix: str) -> Iterator[bytes]:
    client = docker.DockerClient(base_url=os.environ["DOCKER_HOST"], timeout=600)
    container = client.containers.create(image)
    try:
        with tempfile.TemporaryFile() as exported:
            for chunk in container.export():
                exported.write(chunk)
            exported.seek(0)
            yield from of_archive(exported, prefix)
    finally:
        container.remove()


def of_archive(exported: IO[bytes], prefix: str) -> Iterator[bytes]:
    with tarfile.open(fileobj=exported) as archive:
        for entry in archive:
            if any(entry.name == name or entry.name.startswith(f"{name}/") for name in ADDED_BY_DOCKER):
                continue
            file = archive.extractfile(entry) if entry.isreg() or entry.islnk() else None
            data = file.read() if file else entry.linkname.encode()
            mode = KINDS[entry.type] | entry.mode
            mtime = 0 if entry.name == TOUCHED_BY_DOCKER else int(entry.mtime)
            yield member(prefix + entry.name, data, mode=mode, mtime=mtime)


def of_file(file: dict[str, Any]) -> bytes:
    mode = int(file["mode"], 8)
    if file.get("directory"):
        return member(file["path"], mode=stat.S_IFDIR | mode, mtime=0)
    return member(file["path"], Path(file["source"]).read_bytes(), mode=stat.S_IFREG | mode, mtime=0)


if __name__ == "__main__":
    main()
