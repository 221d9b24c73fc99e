"""The allocator's file, the kernel's huge pages, and how much an enclave needs of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from necli.errors import InputError, UsageError
from necli.nitro.allocator import AllocatorSettings
from necli.nitro.hugepages import HugePages, parse_cpu_list
from necli.nitro.memory import MODEL_PEAK_MIB, advised_memory_mib, check_cpus, check_memory

TEXT = "# ours\nmemory_mib: 512 # was 256\n\n#memory_mib: 1\ncpu_count:   2\nlog: x\n"


def test_only_the_two_numbers_change() -> None:
    assert AllocatorSettings(4096, 4).written_into(TEXT) == (
        "# ours\nmemory_mib: 4096 # was 256\n\n#memory_mib: 1\ncpu_count:   4\nlog: x\n"
    )


def test_windows_line_ends_stay() -> None:
    written = AllocatorSettings(64, 4).written_into("memory_mib: 512\r\ncpu_count: 2\r\n")
    assert written == "memory_mib: 64\r\ncpu_count: 4\r\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory_mib: 512\ncpu_pool: 2,3\n", "one by one"),
        ("cpu_count: 2\n", "memory_mib"),
        ("memory_mib: lots\ncpu_count: 2\n", "lots"),
        ("- memory_mib: 512\n", "isn't a list of settings"),
        ("memory_mib: [\n", "isn't valid YAML"),
        ("memory_mib: 512\nmemory_mib: 513\ncpu_count: 2\n", "2 lines memory_mib"),
        ("{memory_mib: 512, cpu_count: 2}\n", "0 lines memory_mib"),
    ],
)
def test_a_file_that_cannot_be_edited_safely_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AllocatorSettings(4096, 2).written_into(text)


def page_folder(root: Path, node: int, size_kb: int, total: int, free: int) -> None:
    folder = root / f"sys/devices/system/node/node{node}/hugepages/hugepages-{size_kb}kB"
    folder.mkdir(parents=True)
    (folder / "nr_hugepages").write_text(f"{total}\n")
    (folder / "free_hugepages").write_text(f"{free}\n")


def test_huge_pages_are_counted_by_node_and_size(tmp_path: Path) -> None:
    page_folder(tmp_path, 0, 2048, 128, 100)
    page_folder(tmp_path, 0, 1048576, 2, 2)
    page_folder(tmp_path, 1, 2048, 0, 0)
    pages = HugePages.read(tmp_path)
    assert (pages.mib, pages.free_mib, pages.largest_node_mib) == (2304, 2248, 2304)
    assert str(pages) == "node 0: 2 of 1024 MiB, node 0: 128 of 2 MiB"


def test_a_machine_without_huge_pages_has_none(tmp_path: Path) -> None:
    assert HugePages.read(tmp_path).largest_node_mib == 0


def test_the_kernels_lists_of_cpus_are_read() -> None:
    assert parse_cpu_list("0-2,8\n") == (0, 1, 2, 8)
    assert parse_cpu_list("\n") == ()


def image(folder: Path, mib: float) -> Path:
    path = folder / "image.eif"
    with path.open("wb") as file:
        file.truncate(int(mib * (1 << 20)))
    return path


def test_a_large_image_is_advised_four_times_its_size_in_whole_pages(tmp_path: Path) -> None:
    assert advised_memory_mib(image(tmp_path, 1800.1), page_mib=2) == 7202
    assert advised_memory_mib(image(tmp_path, 1800.1), page_mib=1024) == 8192


def test_a_small_image_is_advised_room_for_the_model_at_its_peak(tmp_path: Path) -> None:
    assert advised_memory_mib(image(tmp_path, 100)) == 100 + MODEL_PEAK_MIB + 1


def test_too_little_memory_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    check_memory(image(tmp_path, 1024), 4096)
    with pytest.raises(UsageError, match=r"4095 MiB are too little.* needs 4096") as refused:
        check_memory(image(tmp_path, 1024), 4095)
    assert (refused.value.code, refused.value.hint) == ("E26", "give it --memory 4096")


def test_half_a_core_is_refused() -> None:
    check_cpus(4, 2)
    check_cpus(3, 1)
    with pytest.raises(UsageError, match="aren't whole cores") as refused:
        check_cpus(3, 2)
    assert refused.value.hint == "give it --cpus 4"
