"""How fast an image is measured, against one plain SHA-384 pass over the same file.

Both run in turn, each in a process of its own whose peak memory is taken too; the fastest round of each
counts. Measuring hashes most bytes twice, on two cores: what else runs there meanwhile falls on it alone, so
the load is shown. Exits with 1 when measuring is slower than the limit, or takes more than constant memory.
Needs 2 GiB of disk in the temporary folder; an argument sets another size in MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from necli.eif import image_metadata, write_eif

LIMIT = 0.8
MEMORY_LIMIT_MIB = 100
ROUNDS = 5

_MEASURE_SELF = """
import resource, sys, time
from pathlib import Path
{imports}
started = time.perf_counter()
{work}
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
PLAIN, OURS = "plain SHA-384", "PCR0-2 and CRC32"
PROGRAMS = {
    PLAIN: _MEASURE_SELF.format(
        imports="import hashlib",
        work="with open(sys.argv[1], 'rb') as file: hashlib.file_digest(file, 'sha384')",
    ),
    OURS: _MEASURE_SELF.format(
        imports="from necli.eif import measure_eif", work="measure_eif(Path(sys.argv[1]))"
    ),
}


def run(program: str, path: Path) -> tuple[float, float]:
    """Seconds, and MiB of peak memory."""
    done = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def main(size_mib: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        ramdisk, path = Path(folder, "ramdisk"), Path(folder, "large.eif")
        with ramdisk.open("wb") as file:
            file.truncate(size_mib << 20)
        metadata = image_metadata(name="large", version="1", build_time="now", build_tool_version="0")
        write_eif(
            path, kernel=bytes(10 << 20), cmdline="", ramdisks=[bytes(1 << 20), ramdisk], metadata=metadata
        )
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
        for _ in range(ROUNDS):
            for name, program in PROGRAMS.items():
                results[name].append(run(program, path))
        size = path.stat().st_size / (1 << 20)
    fastest = {name: min(seconds for seconds, _ in taken) for name, taken in results.items()}
    memory = {name: max(peak for _, peak in taken) for name, taken in results.items()}
    for name, seconds in fastest.items():
        print(
            f"{name:<18} {seconds:6.2f} s  {size / seconds:6.0f} MiB/s"
            f"  peak {memory[name]:4.0f} MiB  (fastest of {ROUNDS})"
        )
    ratio = fastest[PLAIN] / fastest[OURS]
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    print(f"{'speed, of plain':<18} {ratio:6.2f}    (limit {LIMIT}; load {load:.1f} on {cores} cores)")
    return 0 if ratio >= LIMIT and memory[OURS] < MEMORY_LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048))
