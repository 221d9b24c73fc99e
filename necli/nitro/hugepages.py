"""What the kernel really set aside for enclaves: huge pages by NUMA node, and the pool of CPUs.

The allocator's service says that it succeeded even where it took its settings back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_NODES = "sys/devices/system/node"
_POOL = "sys/module/nitro_enclaves/parameters/ne_cpus"
_SIBLINGS = "sys/devices/system/cpu/cpu0/topology/thread_siblings_list"
_SMALLEST_PAGE_MIB = 2


@dataclass(frozen=True)
class NodePages:
    """The huge pages of one size on one NUMA node."""

    node: int
    page_mib: int
    total: int
    free: int

    @property
    def mib(self) -> int:
        return self.total * self.page_mib


@dataclass(frozen=True)
class HugePages:
    nodes: tuple[NodePages, ...]

    @classmethod
    def read(cls, root: Path) -> Self:
        return cls(tuple(_read_nodes(root)))

    @property
    def mib(self) -> int:
        return sum(pages.mib for pages in self.nodes)

    @property
    def free_mib(self) -> int:
        return sum(pages.free * pages.page_mib for pages in self.nodes)

    @property
    def largest_node_mib(self) -> int:
        """An enclave's memory is all on one node."""
        by_node: dict[int, int] = {}
        for pages in self.nodes:
            by_node[pages.node] = by_node.get(pages.node, 0) + pages.mib
        return max(by_node.values(), default=0)

    @property
    def smallest_page_mib(self) -> int:
        """2 where nothing is set aside yet."""
        return min((pages.page_mib for pages in self.nodes if pages.total), default=_SMALLEST_PAGE_MIB)

    def __str__(self) -> str:
        held = [f"node {p.node}: {p.total} of {p.page_mib} MiB" for p in self.nodes if p.total]
        return ", ".join(held) or "none"


def _read_nodes(root: Path) -> Iterator[NodePages]:
    for folder in sorted((root / _NODES).glob("node[0-9]*/hugepages/hugepages-*kB")):
        node = int(folder.parts[-3].removeprefix("node"))
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) >> 10
        yield NodePages(node, size, _number(folder / "nr_hugepages"), _number(folder / "free_hugepages"))


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def cpu_pool(root: Path) -> tuple[int, ...]:
    """The CPUs that the parent gave away to enclaves; none where the driver isn't loaded."""
    try:
        return parse_cpu_list((root / _POOL).read_text(encoding="ascii"))
    except OSError:
        return ()


def threads_per_core(root: Path) -> int:
    try:
        return len(parse_cpu_list((root / _SIBLINGS).read_text(encoding="ascii"))) or 1
    except OSError:
        return 1


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's `0-3,8`."""
    cpus: list[int] = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)
