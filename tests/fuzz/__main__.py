"""`make fuzz`: every parser that hostile bytes reach, a process for each, and one table.

`python -m tests.fuzz [--count N] [TARGET…]`. Target and number name an input,
which is the same in every run.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.harness import Crash, fuzz
from tests.fuzz.targets import TARGETS

FOUND = Path(".fuzz")
"""Inputs that broke something."""
_HEADINGS = ("target", "inputs", "accepted", "slowest", "growth", "peak", "time")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    if len(options.targets) == 1:
        return _run(options.targets[0], options.count)
    _row(*_HEADINGS)
    results = [_in_its_own_process(name, options.count) for name in options.targets or TARGETS]
    return max(results)


def _in_its_own_process(name: str, count: int) -> int:
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "tests.fuzz", "--count", str(count), name]).returncode


def _run(name: str, count: int) -> int:
    # Nothing else ends an input that never does.
    faulthandler.dump_traceback_later(60 + count / 20, exit=True)
    try:
        with TARGETS[name]() as target:
            outcome = fuzz(name, target, count=count, found=FOUND)
    except Crash as crash:
        print(f"FAILED {crash}", flush=True)
        return 1
    _row(
        name,
        f"{outcome.inputs:,}",
        f"{outcome.accepted:,}",
        f"{outcome.slowest_s * 1000:.0f} ms",
        f"{outcome.growth_mib:+.0f} MiB",
        f"{outcome.peak_mib:.0f} MiB",
        f"{outcome.seconds:.0f} s",
    )
    for fault in outcome.faults():
        print(f"FAILED {name}: {fault}")
    return 1 if outcome.faults() else 0


def _row(name: str, *cells: str) -> None:
    print(f"{name:<14}", *(f"{cell:>10}" for cell in cells), flush=True)


if __name__ == "__main__":
    os.nice(10)
    sys.exit(main())
